"""Restoring: the newest that is whole, whatever happens to the others."""

import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1
import pytest

from mixer import checkpoints, sharding
from mixer.errors import UserError
from tests import conftest, object_store, states
from tests.reliability import several
from tests.storage.test_saved import add_one_bit, flip, forget_files, rewrite

ocp: Any = orbax.checkpoint.experimental.v1
ABSTRACT = states.abstract(states.tiny(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A workdir with checkpoints 1, 3 and 5, and the states that they hold."""
  workdir = tmp_path_factory.mktemp("saved")
  return workdir, states.save_tiny(workdir, 1, 3, 5)


@pytest.fixture
def workdir(saved, tmp_path) -> pathlib.Path:
  """A copy of `saved`'s, to be spoiled."""
  shutil.copytree(saved[0] / "checkpoints", tmp_path / "checkpoints")
  return tmp_path


def restore(workdir, abstract=ABSTRACT):
  """The state, its step, and what was told."""
  said = []
  with checkpoints.Checkpoints(workdir, keep=9, tell=said.append) as c:
    state, step = c.restore(abstract)
    assert c.latest == step
  return state, step, said


def test_the_newest_comes_back(saved):
  state, step, said = restore(saved[0])
  assert (step, said) == (5, [])
  states.assert_same(state, saved[1][5])
  leaves = zip(jax.tree.leaves(state), jax.tree.leaves(ABSTRACT), strict=True)
  assert all(leaf.sharding == there.sharding for leaf, there in leaves)


def assert_walked_back(workdir, saved, names=("5",), step=3):
  """It went on from an older one, told, and moved what was damaged."""
  state, found, said = restore(workdir)
  assert found == step
  states.assert_same(state, saved[1][step])
  away = workdir / "checkpoints.damaged"
  assert sorted(p.name for p in away.iterdir()) == sorted(names)
  left = {"1", "3", "5"} - {n.split(".")[0] for n in names}
  assert states.listing(workdir) == sorted(left)
  assert len(said) == len(names)
  return said


def files(workdir) -> list[str]:
  """Of the newest checkpoint; hashes in names as *."""
  where = workdir / "checkpoints" / "5"
  return sorted(
    str(p.relative_to(where)) for p in where.rglob("*") if p.is_file()
  )


def damage(path: pathlib.Path, how: str) -> bool:
  """Whether it could be done."""
  content = path.read_bytes()
  if how == "deleted":
    path.unlink()
  elif not content:
    return False
  elif how == "truncated":
    path.write_bytes(content[: len(content) // 2])
  else:
    flip(path)
  return True


@pytest.mark.parametrize("how", ["deleted", "truncated", "flipped"])
def test_each_file_damaged(saved, tmp_path, how):
  done = 0
  for name in files(saved[0]):
    workdir = tmp_path / name.replace("/", "_")
    shutil.copytree(saved[0] / "checkpoints", workdir / "checkpoints")
    if not damage(workdir / "checkpoints" / "5" / name, how):
      continue
    done += 1
    if (name, how) == ("files.json", "deleted"):
      # The one file that is not missed: what it lists is whole all the same.
      state, step, said = restore(workdir)
      assert (step, said) == (5, [])
      states.assert_same(state, saved[1][5])
      continue
    (sentence,) = assert_walked_back(workdir, saved)
    if (name, how) == ("commit_success.txt", "deleted"):
      assert "lost its mark" in sentence
    else:
      assert sentence.startswith(
        f"checkpoint {workdir}/checkpoints/5 is damaged: its file {name} "
      )
      assert sentence.endswith(
        f". It now lies in {workdir}/checkpoints.damaged/5; going on from "
        "checkpoint 3."
      )
  assert done > 15


@conftest.noisy
@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")
@pytest.mark.parametrize(
  "how",
  [
    "flipped",
    pytest.param("deleted", marks=pytest.mark.slow),
    pytest.param("truncated", marks=pytest.mark.slow),
  ],
)
def test_each_file_damaged_where_no_list_tells(saved, tmp_path, how):
  harmless = []
  for name in files(saved[0]):
    if name == "files.json" or "ema" in name or name == "commit_success.txt":
      continue  # Another part's files stand for these.
    workdir = tmp_path / name.replace("/", "_")
    shutil.copytree(saved[0] / "checkpoints", workdir / "checkpoints")
    forget_files(workdir / "checkpoints" / "5")
    if not damage(workdir / "checkpoints" / "5" / name, how):
      continue
    state, step, said = restore(workdir)
    # Never a wrong bit; and of what arrays are read from, none goes unnoticed.
    states.assert_same(state, saved[1][step])
    assert (step, len(said)) in [(3, 1), (5, 0)]
    if step == 5:
      harmless.append(name)
    else:
      assert "checkpoints/5 is damaged: " in said[0]
  for name in harmless:
    assert not name.endswith("/_METADATA") and name != "_CHECKPOINT_METADATA"
    assert name not in ("params/manifest.ocdbt", "training/manifest.ocdbt")


def test_a_bit_that_no_file_tells_of(saved, workdir):
  rewrite(workdir / "checkpoints" / "5", add_one_bit)
  (sentence,) = assert_walked_back(workdir, saved)
  assert (
    "checkpoints/5 is damaged: not as saved: params/stem/kernel." in sentence
  )


def test_several_damaged_ones(saved, workdir):
  away = workdir / "checkpoints.damaged"
  (away / "5").mkdir(parents=True)  # Of an earlier time.
  flip(workdir / "checkpoints" / "5" / "params" / "_METADATA")
  (workdir / "checkpoints" / "3" / "training" / "_METADATA").unlink()
  state, step, said = restore(workdir)
  assert step == 1 and len(said) == 2
  states.assert_same(state, saved[1][1])
  assert "going on from checkpoint 1" in said[0]
  assert sorted(p.name for p in away.iterdir()) == ["3", "5", "5.2"]


def test_none_is_whole(saved, workdir):
  before = files(workdir)
  for step in ("1", "3", "5"):
    flip(workdir / "checkpoints" / step / "params" / "manifest.ocdbt")
  with pytest.raises(UserError) as caught:
    restore(workdir)
  message = str(caught.value)
  assert message.startswith(
    f"none of the checkpoints in {workdir}/checkpoints is whole (5: its file "
    "params/manifest.ocdbt is changed; 3: "
  )
  assert "They are left as they are" in message
  assert states.listing(workdir) == ["1", "3", "5"] and files(workdir) == before
  assert not (workdir / "checkpoints.damaged").exists()


def test_a_damaged_one_that_cannot_be_moved(workdir):
  flip(workdir / "checkpoints" / "5" / "params" / "manifest.ocdbt")
  (workdir / "checkpoints.damaged").write_text("in the way")
  with pytest.raises(UserError, match="5 is damaged and can't be moved to"):
    restore(workdir)


def changed(change):
  abstract = states.abstract(states.tiny(0))
  change(abstract)
  return abstract


def bigger(abstract):
  leaf = abstract.params["stem"]["bias"]
  abstract.params["stem"]["bias"] = jax.ShapeDtypeStruct(
    (5,), leaf.dtype, sharding=leaf.sharding
  )


def narrower(abstract):
  leaf = abstract.ema["stem"]["bias"]
  abstract.ema["stem"]["bias"] = jax.ShapeDtypeStruct(
    leaf.shape, jax.numpy.bfloat16, sharding=leaf.sharding
  )


@pytest.mark.parametrize(
  ("change", "lines"),
  [
    (bigger, "params/stem/bias is (4,) there and (5,) here"),
    (narrower, "ema/stem/bias is float32 there and bfloat16 here"),
    (lambda a: a.params.pop("stem"), "params/stem/bias (4,) is unexpected; pa"),
    (lambda a: a.ema.update(x=a.step), "ema/x () is missing"),
  ],
)
def test_another_model_is_refused_and_nothing_moved(workdir, change, lines):
  with pytest.raises(UserError) as caught:
    restore(workdir, changed(change))
  message = str(caught.value)
  assert f"{workdir}/checkpoints/5 is of another model or optimizer" in message
  assert lines in message and "Use the config that it was made" in message
  assert states.listing(workdir) == ["1", "3", "5"]
  assert not (workdir / "checkpoints.damaged").exists()


def test_without_an_average(saved):
  abstract = ABSTRACT.replace(ema=None)
  with pytest.raises(UserError, match=r"ema/stem/bias \(4,\) is unexpected"):
    restore(saved[0], abstract)


def test_one_from_before_there_were_digests(tmp_path):
  state = states.tiny(7)
  parts = {"step": state.step, "opt_state": state.opt_state}
  parts = {"params": state.params, "ema": state.ema, "training": parts}
  where = tmp_path / "checkpoints"
  with ocp.training.Checkpointer(where) as old:  # As it was done then.
    old.save_checkpointables(7, parts, custom_metadata={"x": 1})
  got, step, said = restore(tmp_path)
  states.assert_same(got, states.copy(state))
  assert step == 7
  assert said == [
    f"checkpoint {where}/7 carries no digests, as it is from an older version: "
    "nothing tells whether it is as it was saved."
  ]


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_onto_fewer_devices_and_back(saved, tmp_path, devices):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  fewer = states.abstract(states.tiny(0, mesh))
  state, step, _ = restore(saved[0], fewer)
  states.assert_same(state, saved[1][5])
  for leaf in jax.tree.leaves(state):
    assert leaf.sharding.device_set == {*jax.devices()[:devices]}
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(step, state, {})
  state, step, said = restore(tmp_path)
  assert (step, said) == (5, [])
  states.assert_same(state, saved[1][5])


def processes(count, devices, *args, **environment) -> list[str]:
  """Runs tests/restore_process.py so often; what each has printed."""
  port = several.free_port()
  command = [sys.executable, "-m", "tests.restore_process"]
  flags = f"--xla_force_host_platform_device_count={devices}"
  running = [
    subprocess.Popen(
      [*command, str(rank), str(count), str(port), *args],
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
  assert states.listing(tmp_path) == ["1", "2", "3"]
  where = tmp_path / "checkpoints"
  shutil.copytree(where, tmp_path / "copy" / "checkpoints")
  flip(where / "3" / "params" / "manifest.ocdbt")
  # In what the second process alone loads, and no file tells of it.
  rewrite(where / "2", change_a_row)
  one, two = processes(2, 2, str(tmp_path), "restore", "1")
  assert "checkpoints/3 is damaged: its file params/manifest.ocdbt" in one
  assert (
    "checkpoints/2 is damaged: not as saved: training/opt_state/0/mu" in one
  )
  assert "damaged" not in two
  assert states.listing(tmp_path) == ["1"]
  away = tmp_path / "checkpoints.damaged"
  assert sorted(p.name for p in away.iterdir()) == ["2", "3"]
  # Whole ones, onto one process of 4, and of 2 devices.
  for devices in (4, 2):
    processes(1, devices, str(tmp_path / "copy"), "restore", "3")


@pytest.mark.slow
def test_an_object_store():
  pytest.importorskip("gcsfs")
  with object_store.Server() as server:
    workdir = f"gs://{object_store.BUCKET}/run"
    # A process of its own: libraries keep the store's address.
    processes(1, 2, workdir, "save", "1", "2", "3", **server.environment)
    objects = server.store.objects
    objects["run/checkpoints/3/params/_METADATA"] = b"x"
    # As a killed save leaves it.
    objects["run/checkpoints/7/params/_METADATA"] = b"x"
    (out,) = processes(1, 4, workdir, "restore", "2", **server.environment)
    assert "3 is damaged: its file params/_METADATA has 1 bytes" in out
    assert "7 was never finished" in out and "it has been removed" in out
    names = {tuple(name.split("/")[1:3]) for name in objects}
    assert names == {
      ("checkpoints", "1"),
      ("checkpoints", "2"),
      ("checkpoints.damaged", "3"),
    }
