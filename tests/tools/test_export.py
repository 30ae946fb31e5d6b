"""`python -m tools.export`: weights without their optimizer."""

import jax
import numpy as np
import pytest

from configs import smoke
from mixer import npz, released, runtime, trained, weights
from tests import trained_files
from tools import export


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
  """Lets main() not change the tests' own process."""
  monkeypatch.setattr(runtime, "start", lambda platform: None)
  monkeypatch.setattr(runtime, "quiet_libraries", lambda: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  return workdir, trained_files.save(workdir, smoke.get_config())


def run_export(workdir, output, *more) -> int:
  return export.main([f"--checkpoint={workdir}", f"--output={output}", *more])


@pytest.mark.parametrize("averaged", [True, False])
def test_the_same_bits(run, tmp_path, capsys, averaged):
  workdir, state = run
  output = tmp_path / "weights.npz"
  more = [] if averaged else ["--no-averaged"]
  assert run_export(workdir, output, "--to=npz", *more) == 0
  expected = weights.flatten(state.ema if averaged else state.params)
  with np.load(output, allow_pickle=False) as found:
    assert {*found} == {*expected}
    for name, value in expected.items():
      assert found[name].dtype == np.float32
      assert found[name].tobytes() == np.asarray(value).tobytes(), name
  out = capsys.readouterr().out
  assert out.startswith(
    f"{output}: {sum(x.size for x in expected.values()):,} "
  )
  assert f"{workdir}/checkpoints/4 (step 4" in out
  assert ("averaged weights" in out) == averaged


def test_it_is_a_model_that_every_command_takes(run, tmp_path):
  workdir, _ = run
  output = tmp_path / "weights.npz"
  assert run_export(workdir, output) == 0
  ours, theirs = trained.load(str(workdir)), trained.load(str(output))
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
  assert theirs.image_size == ours.image_size
  # And once more from there.
  assert run_export(output, tmp_path / "again.npz") == 0
  assert (tmp_path / "again.npz").read_bytes() == output.read_bytes()


def test_what_was_written_is_compared(run, tmp_path, capsys, monkeypatch):
  write = npz.write

  def broken(path, arrays):
    name = "stem/kernel"
    write(path, arrays | {name: arrays[name] + np.float32(1e-3)})

  monkeypatch.setattr(released.npz, "write", broken)
  output = tmp_path / "weights.npz"
  assert run_export(run[0], output) == 1
  error = capsys.readouterr().err
  assert f"{output} doesn't hold what was written to it: stem/kernel" in error


def test_a_damaged_checkpoint_is_not_exported(tmp_path, capsys):
  trained_files.save(tmp_path, smoke.get_config())
  (tmp_path / "checkpoints" / "4" / "ema" / "manifest.ocdbt").write_bytes(b"x")
  output = tmp_path / "weights.npz"
  assert run_export(tmp_path, output) == 1
  error = capsys.readouterr().err
  assert "checkpoints/4 is damaged: its file ema/manifest.ocdbt has 1" in error
  assert not output.exists()


def test_permuted_images_are_refused(tmp_path, capsys):
  config = smoke.get_config()
  config.data.permute = "pixels"
  trained_files.save(tmp_path, config)
  assert run_export(tmp_path, tmp_path / "weights.npz") == 1
  error = capsys.readouterr().err
  assert "with their pixels permuted, of which an .npz file can't tell" in error


@pytest.mark.parametrize(
  ("name", "said"),
  [("weights.pt", "expected a name ending in .npz"), ("no/w.npz", "no folder")],
)
def test_names_that_cannot_be(run, tmp_path, capsys, name, said):
  assert run_export(run[0], tmp_path / name) == 1
  assert said in capsys.readouterr().err


def test_nothing_there(tmp_path, capsys):
  assert run_export(tmp_path / "no", tmp_path / "weights.npz") == 1
  assert "there are no weights at" in capsys.readouterr().err
