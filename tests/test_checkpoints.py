"""Checkpoints: whole or absent, the same to the bit on any devices."""

import dataclasses
import os
import pathlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from mixer import checkpoints, digests, saving, sharding, workdir
from mixer.errors import UserError
from tests import conftest, object_store, states
from tests.reliability import several

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


def save(folder, steps: Sequence[int], **options) -> list[str]:
  """What is there after saves of these steps."""
  state = states.tiny(0)
  with saving.Checkpoints(folder, **options) as c:
    for step in steps:
      c.save(step, state, {})
  return states.listing(folder)


def test_all_comes_back(saved):
  folder, made = saved
  state, step = restore(folder)
  assert step == 5
  states.assert_same(state, made[5])
  leaves = zip(jax.tree.leaves(state), jax.tree.leaves(ABSTRACT), strict=True)
  assert all(leaf.sharding == there.sharding for leaf, there in leaves)
  states.assert_same(checkpoints.restore_at(folder, 3, ABSTRACT), made[3])
  average, info = checkpoints.load_params(folder)
  states.assert_same(average, made[5].ema)
  where = folder / "checkpoints" / "1"
  params, info = checkpoints.load_params(where, averaged=False)
  states.assert_same(params, made[1].params)
  assert info == {
    "class_names": ["a", "b"],
    "step": 1,
    "path": str(where),
    "averaged": True,
  }
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
  state = dataclasses.replace(state, ema=None)
  with saving.Checkpoints(tmp_path) as c:
    c.save(5, state, {})
  states.assert_same(
    restore(tmp_path, dataclasses.replace(ABSTRACT, ema=None))[0],
    dataclasses.replace(saved[1][5], ema=None),
  )
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
    ({}, ["8"]),
    ({"keep": 2, "keep_every": 3}, ["3", "6", "7", "8"]),
    ({"scores": lambda: {2: 0.9, 4: 0.9, 6: float("nan")}}, ["4", "8"]),
  ],
)
def test_what_stays(tmp_path, options, left):
  assert save(tmp_path, range(1, 9), **options) == left


def test_the_one_that_was_restored_stays(tmp_path):
  save(tmp_path, (1, 2))
  with saving.Checkpoints(tmp_path) as c:
    assert c.restore(ABSTRACT)[1] == 2
    for step in (3, 4, 5):
      c.save(step, states.tiny(0), {})
  assert states.listing(tmp_path) == ["2", "5"]
  assert save(tmp_path, (6,)) == ["6"]


def test_what_a_killed_save_leaves_is_put_away(spoiled, capsys):
  folder = spoiled / "checkpoints"
  for name in ("7.orbax-checkpoint-tmp", "2.removed"):
    shutil.copytree(folder / "1", folder / name)
  (folder / "5" / "commit_success.txt").unlink()
  with saving.Checkpoints(spoiled) as c:
    assert c.latest == 3
  assert states.listing(spoiled) == ["1", "3"]
  out = capsys.readouterr().out
  assert f"{folder}/5 was never finished, or has lost its mark of that" in out
  assert f"now in {spoiled}/checkpoints.damaged/5" in out


def files(where) -> list[str]:
  return sorted(
    str(p.relative_to(where)) for p in where.rglob("*") if p.is_file()
  )


@conftest.noisy
@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")
@pytest.mark.parametrize("how", ["flipped", "deleted", "truncated"])
def test_each_file_damaged(saved, tmp_path, how, capsys):
  for name in files(saved[0] / "checkpoints" / "5"):
    if "ema" in name:
      continue  # Another part's files stand for these.
    folder = tmp_path / name.replace("/", "_")
    shutil.copytree(saved[0] / "checkpoints", folder / "checkpoints")
    path = folder / "checkpoints" / "5" / name
    content = path.read_bytes()
    if how == "deleted":
      path.unlink()
    elif not content:
      continue
    elif how == "truncated":
      path.write_bytes(content[: len(content) // 2])
    else:
      states.flip(path)
    state, step = restore(folder)
    # Never a wrong bit; and of what arrays are read from, none goes unnoticed.
    states.assert_same(state, saved[1][step])
    out = capsys.readouterr().out
    vital = name.endswith(("_METADATA", "params/manifest.ocdbt"))
    assert step == 3 if vital else step in (3, 5), name
    if step == 3:
      assert (folder / "checkpoints.damaged" / "5").is_dir()
      assert "checkpoints/5 " in out
      if how != "deleted" or "commit" not in name:
        assert "is damaged: " in out and "from checkpoint 3" in out, name


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
  checkpoints.load_params(spoiled, averaged=False, verify=False)
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


def test_none_is_whole(spoiled):
  for step in ("1", "3", "5"):
    states.rewrite(spoiled / "checkpoints" / step, add_one_bit)
  with pytest.raises(UserError, match="none of the .*5 is damaged.*left as th"):
    restore(spoiled)
  assert states.listing(spoiled) == ["1", "3", "5"]
  assert not (spoiled / "checkpoints.damaged").exists()


def test_too_little_memory_is_no_damage(saved, monkeypatch):
  def load(*unused):
    raise MemoryError

  monkeypatch.setattr(checkpoints.ocp, "load_checkpointables", load)
  with pytest.raises(MemoryError):
    checkpoints.load_params(saved[0])


def test_another_model_is_refused_and_nothing_moved(spoiled):
  def like(leaf, shape=None, dtype=None):
    shape, dtype = shape or leaf.shape, dtype or leaf.dtype
    return jax.ShapeDtypeStruct(shape, dtype, sharding=leaf.sharding)

  stem = ABSTRACT.params["stem"]
  params = {"stem": {"bias": like(stem["bias"], shape=(5,)), "x": stem["bias"]}}
  ema = {"stem": stem | {"bias": like(stem["bias"], dtype=np.float16)}}
  other = dataclasses.replace(ABSTRACT, params=params, ema=ema)
  with pytest.raises(UserError, match="of another model or op") as caught:
    restore(spoiled, other)
  for line in (
    "params/stem/bias is float32 (4,) there and float32 (5,) here",
    "ema/stem/bias is float32 (4,) there and float16 (4,) here",
    "params/stem/kernel float32 (8, 4096) is unexpected",
    "params/stem/x float32 (4,) is missing",
    f"--config.init_from={spoiled}/checkpoints/5",
  ):
    assert line in str(caught.value)
  assert states.listing(spoiled) == ["1", "3", "5"]


def test_a_damaged_config_is_written_anew(tmp_path):
  config, resolved = {"seed": 3}, {"total": 7}
  with saving.Checkpoints(tmp_path) as c:
    c.save(1, states.tiny(1), {"config": config, "resolved": resolved})
  assert checkpoints.mend_config(tmp_path) == ""  # It is missing.
  workdir.write_config(tmp_path, config, resolved)
  assert checkpoints.mend_config(tmp_path) == ""
  states.flip(tmp_path / "config.json")
  assert "as checkpoint 1 has it" in checkpoints.mend_config(tmp_path)
  found = workdir.read_config(tmp_path)
  assert found == {"config": config, "resolved": resolved}


def full(*unused, **also_unused):
  raise OSError(28, "No space left on device")


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_save_that_fails(tmp_path, monkeypatch, when):
  class Later:
    result = full

  broken = full if when == "at once" else lambda *a, **k: Later()
  state = states.tiny(0)
  with saving.Checkpoints(tmp_path) as c:
    for kept in ("there is none yet", "that of step 5 is whole"):
      with monkeypatch.context() as patch:
        patch.setattr(checkpoints.ocp, "save_checkpointables_async", broken)
        with pytest.raises(saving.SaveError) as caught:
          c.save(6, state, {})
          c.wait()
      assert f"No space left on device; {kept}" in str(caught.value)
      c.save(5, state, {}) if "none" in kept else None  # The next succeeds.
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError), c:
      patch.setattr(checkpoints.ocp, "save_checkpointables_async", broken)
      raise ZeroDivisionError  # What went wrong first is what is told.
  assert states.listing(tmp_path) == ["5"]


@conftest.noisy
def test_what_a_disk_refuses(tmp_path):
  """Saves 3, can't save 4; 3 is as it was, and then 4 can be saved."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with saving.Checkpoints(tmp_path) as c:
    c.save(3, states.tiny(3), {})
    c.wait()
    # Python ignores the signal: the kernel then refuses what is longer.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
      with pytest.raises(saving.SaveError, match=r"step 3 is whole\. M"):
        c.save(4, states.tiny(4), {})
        c.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  state, step = restore(tmp_path)
  assert step == 3
  states.assert_same(state, states.copy(states.tiny(3)))
  assert save(tmp_path, (4,)) == ["4"]


def test_a_workdir_that_has_vanished_is_not_made_anew(tmp_path):
  with saving.Checkpoints(tmp_path / "run") as c:
    (tmp_path / "run").mkdir()
    c.save(2, states.tiny(3), {})
    c.wait()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(saving.SaveError, match="has vanished"):
      c.save(3, states.tiny(3), {})
  assert not (tmp_path / "run").exists()


# Processes.


def processes(count, devices, *args, **environment) -> list[str]:
  """Saves or restores on processes of their own; what each has printed."""
  port = several.free_port()
  flags = f"--xla_force_host_platform_device_count={devices}"
  running = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "tests.states"),
        *(str(rank), str(count), str(port), *args),
      ],
      cwd=conftest.ROOT,
      env=os.environ | {"XLA_FLAGS": flags} | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(count)
  ]
  said = [p.communicate(timeout=200) for p in running]
  assert [p.returncode for p in running] == [0] * count, said
  return [out for out, _ in said]


def change_a_row(parts) -> None:
  value = np.array(parts["training"]["opt_state"][0]["mu"])
  value[6, 2] += 1
  parts["training"]["opt_state"][0]["mu"] = value


@pytest.mark.slow
def test_two_processes_walk_back_together(tmp_path):
  # 2 processes of 2 devices save 1, 2, 3; then the newest are damaged.
  processes(2, 2, str(tmp_path), "save", "1", "2", "3")
  where = tmp_path / "checkpoints"
  shutil.copytree(where, tmp_path / "copy" / "checkpoints")
  states.flip(where / "3" / "params" / "manifest.ocdbt")
  # In what the second process alone loads, and no file tells of it.
  states.rewrite(where / "2", change_a_row)
  one, two = processes(2, 2, str(tmp_path), "restore", "1")
  assert "checkpoints/3 is damaged: can't be read" in one
  assert "2 is damaged: not as saved: training/opt_state/0/mu" in one
  assert "damaged" not in two
  assert states.listing(tmp_path) == ["1"]
  # Whole ones, onto one process of 4, and of 2 devices.
  for devices in (4, 2):
    processes(1, devices, str(tmp_path / "copy"), "restore", "3")


@pytest.mark.slow
def test_an_object_store():
  pytest.importorskip("gcsfs")
  with object_store.Server() as server:
    folder = f"gs://{object_store.BUCKET}/run"
    # A process of its own: libraries keep the store's address.
    processes(1, 2, folder, "save", "1", "2", "3", **server.environment)
    objects = server.store.objects
    objects["run/checkpoints/3/params/_METADATA"] = b"x"
    # As a killed save leaves it.
    objects["run/checkpoints/7/params/_METADATA"] = b"x"
    (out,) = processes(1, 4, folder, "restore", "2", **server.environment)
    assert "3 is damaged: can't be read" in out
    assert "7 was never finished" in out and "is removed" in out
    assert {tuple(name.split("/")[1:3]) for name in objects} == {
      ("checkpoints", "1"),
      ("checkpoints", "2"),
      ("checkpoints.damaged", "3"),
    }


# Digests.


def by_the_docstring(x: np.ndarray) -> str:
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
@settings(max_examples=60, deadline=None)
def test_a_digest_is_what_the_docstring_says_and_any_bit_changes_it(data):
  shape = data.draw(st.sampled_from([(), (1,), (7,), (3, 4), (2, 3, 5)]))
  dtypes = ["float32", "int32", "bfloat16", "float16", "int8"]
  dtype = jax.numpy.dtype(data.draw(st.sampled_from(dtypes)))
  size = int(np.prod(shape)) * dtype.itemsize
  raw = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
  x = np.frombuffer(bytes(raw), dtype).reshape(shape)
  expected = by_the_docstring(x)
  assert digests.of({"a": {"x": x}}) == {"a/x": expected}
  on_device = jax.device_get(digests._sums(jax.numpy.asarray(x)))
  assert "".join(f"{int(half):08x}" for half in on_device) == expected
  bit = data.draw(st.integers(0, 8 * size - 1))
  raw[bit // 8] ^= 1 << bit % 8
  other = digests.of([np.frombuffer(bytes(raw), dtype).reshape(shape)])["0"]
  assert other[:8] != expected[:8] and other[8:] != expected[8:]


def test_a_digest_is_the_same_on_any_devices():
  x = np.random.default_rng(0).standard_normal((64, 1104), np.float32)
  expected = digests.of({"x": x})
  for spec in [(), ("data",), (None, "data")]:
    where = NamedSharding(sharding.make_mesh(), PartitionSpec(*spec))
    assert digests.of({"x": jax.device_put(x, where)}) == expected
  assert digests.of({"x": np.asfortranarray(x)}) == expected
  for other in (-x, np.roll(x, 1), np.roll(x, 1, axis=0), 0 * x):
    assert digests.of({"x": other}) != expected
  text = str(digests._sums.lower(jax.device_put(x, where)).compile().as_text())
  assert "all-reduce" in text and "all-gather" not in text
  with pytest.raises(ValueError, match="no digest of x, float64"):
    digests.of({"x": np.zeros(3)})
