"""Reading weights alone, and proving a whole checkpoint."""

import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1
import pytest

from mixer import checkpoints
from mixer.errors import UserError
from mixer.storage import saved as saved_lib
from tests import states

# Orbax's annotations don't fit its own classes.
ocp: Any = orbax.checkpoint.experimental.v1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A workdir with checkpoints 1 and 3, and the states that they hold."""
  workdir = tmp_path_factory.mktemp("saved")
  return workdir, states.save_tiny(workdir, 1, 3)


@pytest.fixture
def workdir(saved, tmp_path) -> pathlib.Path:
  """A copy of `saved`'s, to be spoiled."""
  shutil.copytree(saved[0] / "checkpoints", tmp_path / "checkpoints")
  return tmp_path


def flip(path: pathlib.Path, bit: int = 2) -> None:
  """Flips a bit in the middle of a file."""
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1 << bit
  path.write_bytes(bytes(content))


def forget_files(checkpoint: pathlib.Path) -> None:
  """Leaves it without its list of files: its arrays have to tell."""
  (checkpoint / "files.json").unlink()


def test_the_average_is_loaded_where_there_is_one(saved):
  workdir, made = saved
  average, info = checkpoints.load_params(workdir)
  states.assert_same(average, made[3].ema)
  params, plain = checkpoints.load_params(str(workdir), averaged=False)
  states.assert_same(params, made[3].params)
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
  # Whether there is an average, not whether it was asked for.
  assert info["averaged"] and plain["averaged"]


def test_metadata_comes_with_the_weights(saved):
  workdir, made = saved
  where = workdir / "checkpoints" / "1"
  params, info = checkpoints.load_params(where, averaged=False)
  assert info == {
    "class_names": ["a", "b"],
    "step": 1,
    "path": str(where),
    "averaged": True,
  }
  states.assert_same(params, made[1].params)


@pytest.mark.parametrize("part", ["params", "ema"])
def test_only_what_is_loaded_has_to_be_whole(saved, workdir, part):
  shutil.rmtree(workdir / "checkpoints" / "3" / part)
  averaged = part == "params"
  found, info = checkpoints.load_params(workdir, averaged=averaged)
  expected = saved[1][3].ema if averaged else saved[1][3].params
  states.assert_same(found, expected)
  assert info["averaged"]
  with pytest.raises(UserError) as caught:
    checkpoints.load_params(workdir, averaged=not averaged)
  message = str(caught.value)
  assert f"checkpoint {workdir}/checkpoints/3 is damaged: its file" in message
  assert f"Instead of it take {workdir}/checkpoints/1." in message


def rewrite(checkpoint: pathlib.Path, change) -> None:
  """Other arrays in place of those that were saved, written as they were."""
  metadata = ocp.checkpointables_metadata(checkpoint)
  on_host = jax.tree.map(
    lambda x: np.empty(x.shape, x.dtype), metadata.metadata
  )
  parts = ocp.load_checkpointables(checkpoint, on_host)
  change(parts)
  shutil.rmtree(checkpoint)
  ocp.save_checkpointables(
    checkpoint, parts, custom_metadata=metadata.custom_metadata
  )


def add_one_bit(parts) -> None:
  kernel = np.array(parts["params"]["stem"]["kernel"])
  kernel.view(np.uint32)[5, 77] ^= 1
  parts["params"]["stem"]["kernel"] = kernel


def test_a_bit_that_no_file_tells_of(workdir):
  where = workdir / "checkpoints" / "3"
  rewrite(where, add_one_bit)
  with pytest.raises(UserError, match="damaged: not as saved: params/stem/ker"):
    checkpoints.load_params(workdir, averaged=False)
  found, _ = checkpoints.load_params(workdir, averaged=False, verify=False)
  assert np.isfinite(found["stem"]["kernel"]).all()
  assert saved_lib.verify(workdir) == (7, ["params/stem/kernel"])
  checkpoints.load_params(workdir)


def test_arrays_that_are_not_those_that_were_saved(workdir):
  where = workdir / "checkpoints" / "3"
  rewrite(where, lambda parts: parts["params"]["stem"].pop("bias"))
  with pytest.raises(UserError, match=r"params/stem/bias \(4,\) is missing"):
    checkpoints.load_params(workdir, averaged=False)


def test_all_is_as_saved(saved):
  assert saved_lib.verify(saved[0]) == (7, [])


def test_changed_metadata_are_not_believed(workdir):
  where = workdir / "checkpoints" / "3"
  forget_files(where)
  path = where / "_CHECKPOINT_METADATA"
  path.write_text(path.read_text().replace('["a", "b"]', '["b", "a"]'))
  with pytest.raises(UserError, match="its metadata are not as they were"):
    checkpoints.load_params(workdir)


def test_one_from_before_there_were_digests(saved, tmp_path):
  made = saved[1][3]
  parts = {"params": made.params, "ema": made.ema}
  where = tmp_path / "checkpoints" / "3"
  ocp.save_checkpointables(where, parts, custom_metadata={"x": 1})
  found, info = checkpoints.load_params(tmp_path)
  states.assert_same(found, made.ema)
  assert info == {"x": 1, "step": 3, "path": str(where), "averaged": True}
  assert saved_lib.verify(tmp_path) == (0, [])


def test_too_little_memory_is_no_damage(saved, monkeypatch):
  def load(*unused):
    raise MemoryError

  monkeypatch.setattr(saved_lib.ocp, "load_checkpointables", load)
  with pytest.raises(MemoryError):
    checkpoints.load_params(saved[0])
