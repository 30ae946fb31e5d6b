"""Checkpoints: whole or absent, the same to the bit on any devices."""

import dataclasses
import pathlib
import resource
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from mixer import checkpoints, saving, sharding, workdir
from mixer.errors import UserError
from tests import conftest, object_store, states

ABSTRACT = states.abstract(states.tiny(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A workdir with checkpoints 1, 3 and 5, and the states that they hold."""
  folder = tmp_path_factory.mktemp("saved")
  return folder, states.save_tiny(folder, 1, 3, 5)


@pytest.fixture
def spoiled(saved, tmp_path) -> pathlib.Path:
  """A copy of `saved`'s workdir, to be spoiled."""
  shutil.copytree(saved[0] / "checkpoints", tmp_path / "checkpoints")
  return tmp_path


def restore(folder, abstract=ABSTRACT):
  with saving.Checkpoints(folder, keep=9) as c:
    state, step = c.restore(abstract)
    assert c.latest == step
  return state, step


def test_all_comes_back(saved):
  folder, made = saved
  state, step = restore(folder)
  assert step == 5
  states.assert_same(state, made[5])
  leaves = zip(jax.tree.leaves(state), jax.tree.leaves(ABSTRACT), strict=True)
  assert all(leaf.sharding == there.sharding for leaf, there in leaves)
  average, info = checkpoints.load_params(folder)
  states.assert_same(average, made[5].ema)
  where = folder / "checkpoints" / "1"
  states.assert_same(checkpoints.restore(where, ABSTRACT), made[1])
  params, info = checkpoints.load_params(where, averaged=False)
  states.assert_same(params, made[1].params)
  known = {"class_names": ["a", "b"], "step": 1, "averaged": True}
  assert info == known | {"path": str(where)}
  assert checkpoints.verify(folder) == (7, [])
  with pytest.raises(UserError, match="no checkpoint in .*: 1, 3, 5"):
    checkpoints.locate(folder / "checkpoints" / "2")
  with pytest.raises(UserError, match="expected a workdir of train.py.*none"):
    checkpoints.locate(folder / "nowhere")


@pytest.mark.parametrize("devices", [1, 4])
def test_onto_fewer_devices_and_back(saved, tmp_path, devices):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  state, _ = restore(saved[0], states.abstract(states.tiny(0, mesh)))
  states.assert_same(state, saved[1][5])
  for leaf in jax.tree.leaves(state):
    assert leaf.sharding.device_set == {*jax.devices()[:devices]}
  with saving.Checkpoints(tmp_path) as c:
    c.save(5, dataclasses.replace(state, ema=None), {})
  found, _ = restore(tmp_path, dataclasses.replace(ABSTRACT, ema=None))
  states.assert_same(found, dataclasses.replace(saved[1][5], ema=None))
  assert not checkpoints.load_params(tmp_path)[1]["averaged"]


def test_a_state_may_be_donated_right_after_a_save(tmp_path):
  trainer = states.make_trainer()
  state = states.update(trainer, trainer.init())
  expected = states.copy(state)
  with saving.Checkpoints(tmp_path) as c:
    c.save(1, state, {})
    states.update(trainer, state)  # Over the buffers being saved.
    assert state.params["stem"]["kernel"].is_deleted()
  states.assert_same(restore(tmp_path, trainer.abstract)[0], expected)


@pytest.mark.parametrize(
  ("options", "left"),
  [
    ({"keep": 1}, ["8"]),
    ({"keep": 2, "keep_every": 3}, ["3", "6", "7", "8"]),
    (
      {"keep": 1, "scores": lambda: {2: 0.9, 4: 0.9, 6: float("nan")}},
      ["4", "8"],
    ),
  ],
)
def test_what_stays(tmp_path, options, left):
  states.save_tiny(tmp_path, *range(1, 9), **options)
  assert states.listing(tmp_path) == left


def test_what_a_killed_save_leaves_is_put_away(spoiled, capsys):
  folder = spoiled / "checkpoints"
  for name in ("7.orbax-checkpoint-tmp", "2.removed"):
    shutil.copytree(folder / "1", folder / name)
  (folder / "5" / "commit_success.txt").unlink()
  with saving.Checkpoints(spoiled) as c:
    assert c.restore(ABSTRACT)[1] == 3
    c.save(6, states.tiny(0), {})
    c.save(7, states.tiny(0), {})
  assert states.listing(spoiled) == ["3", "7"]  # What was restored stays.
  out = capsys.readouterr().out
  assert f"{folder}/5 was never finished, or has lost its mark of that" in out
  assert f"now in {spoiled}/checkpoints.damaged/5" in out


@conftest.noisy
@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")
def test_each_file_damaged(saved, tmp_path, capsys):
  whole = saved[0] / "checkpoints"
  names = [p.relative_to(whole / "5") for p in (whole / "5").rglob("*")]
  # Another part's files stand for the average's.
  names = [
    n for n in names if (whole / "5" / n).is_file() and "ema" not in n.parts
  ]
  assert len(names) > 8
  for i, name in enumerate(sorted(names)):
    folder = tmp_path / str(i)
    shutil.copytree(whole, folder / "checkpoints")
    path = folder / "checkpoints" / "5" / name
    content = path.read_bytes()
    how = ["flipped", "deleted", "truncated"][i % 3]
    if how == "deleted":
      path.unlink()
    elif how == "truncated":
      path.write_bytes(content[: len(content) // 2])
    elif content:
      states.flip(path)
    state, step = restore(folder)
    # Never a wrong bit; and of what arrays are read from, none goes unnoticed.
    states.assert_same(state, saved[1][step])
    out = capsys.readouterr().out
    vital = str(name).endswith(("_METADATA", "params/manifest.ocdbt"))
    assert step == 3 if vital else step in (3, 5), (name, how)
    if step == 3:
      assert (folder / "checkpoints.damaged" / "5").is_dir()
      assert "checkpoints/5 " in out


def add_one_bit(parts) -> None:
  kernel = np.array(parts["params"]["stem"]["kernel"])
  kernel.view(np.uint32)[5, 77] ^= 1
  parts["params"]["stem"]["kernel"] = kernel


def test_a_bit_that_no_file_tells_of(saved, spoiled, capsys):
  states.rewrite(spoiled / "checkpoints" / "5", add_one_bit)
  path = spoiled / "checkpoints" / "3" / "_CHECKPOINT_METADATA"
  path.write_text(path.read_text().replace('["a", "b"]', '["b", "a"]'))
  assert checkpoints.verify(spoiled) == (7, ["params/stem/kernel"])
  with pytest.raises(UserError, match=r"params/stem/kernel. Inst.* take .*3\."):
    checkpoints.load_params(spoiled, averaged=False)
  checkpoints.load_params(spoiled)  # The average is as it was.
  (spoiled / "checkpoints.damaged" / "5").mkdir(parents=True)
  state, step = restore(spoiled)
  assert step == 1
  states.assert_same(state, saved[1][1])
  out = capsys.readouterr().out
  assert "checkpoints/5 is damaged: not as saved: params/stem/kernel." in out
  assert "checkpoints/3 is damaged: can't be read: its metadata are not" in out
  away = spoiled / "checkpoints.damaged"
  assert sorted(p.name for p in away.iterdir()) == ["3", "5", "5.2"]
  # None is whole.
  states.rewrite(spoiled / "checkpoints" / "1", add_one_bit)
  with pytest.raises(UserError, match="none of the .*1 is damaged.*left as th"):
    restore(spoiled)
  assert states.listing(spoiled) == ["1"]


def test_too_little_memory_is_no_damage(saved, monkeypatch):
  def load(*unused):
    raise MemoryError

  ocp = "orbax.checkpoint.experimental.v1"  # Not the lazy one.
  monkeypatch.setattr(f"{ocp}.load_checkpointables", load)
  with pytest.raises(MemoryError):
    checkpoints.load_params(saved[0])


def test_another_model_is_refused_and_nothing_moved(spoiled):
  stem = ABSTRACT.params["stem"]
  other = jax.ShapeDtypeStruct((5,), "float16", sharding=stem["bias"].sharding)
  params = {"stem": {"bias": other, "x": stem["bias"]}}
  with pytest.raises(UserError, match="of another model or op") as caught:
    restore(spoiled, dataclasses.replace(ABSTRACT, params=params))
  for line in (
    "params/stem/bias is float32 (4,) there and float16 (5,) here",
    "params/stem/kernel float32 (8, 4096) is unexpected",
    "params/stem/x float32 (4,) is missing",
    f"--config.init_from={spoiled}/checkpoints/5",
  ):
    assert line in str(caught.value)
  assert states.listing(spoiled) == ["1", "3", "5"]


def test_a_damaged_config_is_written_anew(tmp_path):
  known = {"config": {"seed": 3}, "resolved": {"total": 7}}
  with saving.Checkpoints(tmp_path) as c:
    c.save(1, states.tiny(1), known)
  assert checkpoints.mend_config(tmp_path) == ""  # It is missing.
  workdir.write_config(tmp_path, **known)
  assert checkpoints.mend_config(tmp_path) == ""
  states.flip(tmp_path / "config.json")
  assert "as checkpoint 1 has it" in checkpoints.mend_config(tmp_path)
  assert workdir.read_config(tmp_path) == known


@conftest.noisy
def test_a_save_that_fails(tmp_path):
  """What was saved before stays, and the next save succeeds."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  states.save_tiny(tmp_path, 3)
  with saving.Checkpoints(tmp_path) as c:
    # Python ignores the signal: the kernel then refuses what is longer.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
      with pytest.raises(saving.SaveError, match=r"earlier steps are whole. M"):
        c.save(4, states.tiny(4), {})
        c.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  state, step = restore(tmp_path)
  assert step == 3
  states.assert_same(state, states.copy(states.tiny(3)))
  states.save_tiny(tmp_path, 5, keep=1)
  assert states.listing(tmp_path) == ["5"]


def test_a_workdir_that_has_vanished_is_not_made_anew(tmp_path):
  with saving.Checkpoints(tmp_path / "run") as c:
    (tmp_path / "run").mkdir()
    c.save(2, states.tiny(3), {})
    c.wait()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(saving.SaveError, match="has vanished"):
      c.save(3, states.tiny(3), {})
  assert not (tmp_path / "run").exists()


def change_a_row(parts) -> None:
  value = np.array(parts["training"]["opt_state"][0]["mu"])
  value[6, 2] += 1
  parts["training"]["opt_state"][0]["mu"] = value


@pytest.mark.slow
def test_two_processes_walk_back_together(tmp_path):
  # 2 processes of 2 devices save 1, 2, 3; then the newest are damaged.
  states.processes(2, 2, str(tmp_path), "save", "1", "2", "3")
  where = tmp_path / "checkpoints"
  shutil.copytree(where, tmp_path / "copy" / "checkpoints")
  states.flip(where / "3" / "params" / "manifest.ocdbt")
  # In what the second process alone loads, and no file tells of it.
  states.rewrite(where / "2", change_a_row)
  one, two = states.processes(2, 2, str(tmp_path), "restore", "1")
  assert "checkpoints/3 is damaged: can't be read" in one
  assert "2 is damaged: not as saved: training/opt_state/0/mu" in one
  assert "damaged" not in two
  assert states.listing(tmp_path) == ["1"]
  # Whole ones, onto one process of 4, and of 2 devices.
  for devices in (4, 2):
    states.processes(1, devices, str(tmp_path / "copy"), "restore", "3")


@pytest.mark.slow
def test_an_object_store():
  pytest.importorskip("gcsfs")
  with object_store.Server() as server:
    folder = f"gs://{object_store.BUCKET}/run"
    # A process of its own: libraries keep the store's address.
    states.processes(1, 2, folder, "save", "1", "2", "3", **server.environment)
    objects = server.store.objects
    objects["run/checkpoints/3/params/_METADATA"] = b"x"
    # As a killed save leaves it.
    objects["run/checkpoints/7/params/_METADATA"] = b"x"
    (out,) = states.processes(
      1, 4, folder, "restore", "2", **server.environment
    )
    assert "3 is damaged: can't be read" in out
    assert "7 was never finished" in out and "is removed" in out
    assert {tuple(name.split("/")[1:3]) for name in objects} == {
      ("checkpoints", "1"),
      ("checkpoints", "2"),
      ("checkpoints.damaged", "3"),
    }


# Digests.


def by_definition(x: np.ndarray) -> str:
  """With Python's integers, element by element."""

  def mix(h: int) -> int:
    h = (h ^ h >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 16

  raw, size = x.tobytes(), x.dtype.itemsize
  sum_u = sum_v = 0
  for i in range(x.size):
    u = mix(int.from_bytes(raw[i * size : (i + 1) * size], "little") ^ mix(i))
    sum_u, sum_v = sum_u + u, sum_v + u * (mix(i) | 1)
  return f"{sum_u % 2**32:08x}{sum_v % 2**32:08x}"


@given(st.data())
@settings(max_examples=60)
def test_a_digest_is_as_defined_and_any_bit_changes_it(data):
  shape = data.draw(st.sampled_from([(), (1,), (7,), (3, 4), (2, 3, 5)]))
  dtypes = ["float32", "int32", "bfloat16", "float16", "int8"]
  dtype = jax.numpy.dtype(data.draw(st.sampled_from(dtypes)))
  size = int(np.prod(shape)) * dtype.itemsize
  raw = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
  x = np.frombuffer(bytes(raw), dtype).reshape(shape)
  expected = by_definition(x)
  assert checkpoints.digests({"a": {"x": x}}) == {"a/x": expected}
  on_device = jax.device_get(checkpoints._sums(jax.numpy.asarray(x)))
  assert "".join(f"{int(half):08x}" for half in on_device) == expected
  bit = data.draw(st.integers(0, 8 * size - 1))
  raw[bit // 8] ^= 1 << bit % 8
  flipped = np.frombuffer(bytes(raw), dtype).reshape(shape)
  other = checkpoints.digests([flipped])["0"]
  assert other[:8] != expected[:8] and other[8:] != expected[8:]


def test_a_digest_is_the_same_on_any_devices():
  x = np.random.default_rng(0).standard_normal((64, 1104), np.float32)
  expected, where = checkpoints.digests({"x": x}), None
  for spec in [(), ("data",), (None, "data")]:
    where = NamedSharding(sharding.make_mesh(), PartitionSpec(*spec))
    assert checkpoints.digests({"x": jax.device_put(x, where)}) == expected
  assert checkpoints.digests({"x": np.asfortranarray(x)}) == expected
  for other in (-x, np.roll(x, 1), np.roll(x, 1, axis=0), 0 * x):
    assert checkpoints.digests({"x": other}) != expected
  lowered = checkpoints._sums.lower(jax.device_put(x, where))
  text = str(lowered.compile().as_text())
  assert "all-reduce" in text and "all-gather" not in text
