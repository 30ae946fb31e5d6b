"""What `python -m mixer inspect` shows."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import smoke
from mixer import (
  checkpoints,
  metrics,
  runtime,
  sharding,
  stop,
  train_step,
  weights,
)
from mixer.commands import inspect
from tests import states, test_description, trained_files, updates

pytestmark = pytest.mark.usefixtures("untouched")


def trained(workdir, ema_decay: float, step: int = 4):
  """A workdir with one checkpoint; the state in it."""
  config = smoke.get_config()
  config.optimizer.ema_decay = ema_decay
  trainer = train_step.Trainer(config, updates.PLAN, 10, sharding.make_mesh())
  state = trainer.init()
  if ema_decay:
    state = state.replace(ema=jax.tree.map(lambda x: x * 2 + 1, state.ema))
  metadata = {
    "class_names": list("0123456789"),
    "config": {"seed": 0},
    "resolved": {"total": 20},
  } | runtime.history(None, 0, "starting from random weights")
  with checkpoints.Checkpoints(workdir) as c:
    c.save(step, state, metadata)
  return state


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir with an average and metrics; the state in it."""
  workdir = tmp_path_factory.mktemp("run")
  state = trained(workdir, 0.9)
  w = metrics.Writer(workdir, 0)
  w.write(2, {"train/loss": 2.0, "eval/accuracy": 0.25})
  w.write(4, {"train/loss": 1.0})
  w.write(5, {"train/loss": 0.5})  # Of after the checkpoint.
  w.close()
  return workdir, state


def test_json(run, capsys):
  workdir, state = run
  assert inspect.main([str(workdir), "--json"]) == 0
  got = json.loads(capsys.readouterr().out)
  params = jax.device_get(state.params)
  leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(params)]
  norm = np.sqrt(sum(np.sum(x**2) for x in leaves))
  assert got.pop("norm") == pytest.approx(norm, rel=1e-12)
  assert got.pop("modules").keys() >= {"stem", "MixerBlock_1/token_mixing"}
  assert got == {
    "path": str(workdir / "checkpoints" / "4"),
    "model": "2 blocks, C 32, T 16, F 64, patches of 4 px, 16 tokens",
    "step": 4,
    "parameters": sum(x.size for x in leaves),
    "finite": True,
    "sha256": test_description.by_the_docstring(params),
    "sha256_ema": test_description.by_the_docstring(jax.device_get(state.ema)),
    "digests": len(jax.tree.leaves(state)),
    "not_as_saved": [],
    "shapes": {k: list(v) for k, v in weights.shapes(state.params).items()},
    "metrics": {"step": 4, "train/loss": 1.0, "eval/accuracy": 0.25},
    "config": {"seed": 0},
    "resolved": {"total": 20},
    "class_names": list("0123456789"),
    **runtime.history(None, 0, "starting from random weights"),
  }


def test_text(run, capsys):
  workdir, state = run
  assert inspect.main([str(workdir / "checkpoints" / "4")]) == 0
  out = capsys.readouterr().out
  for label, tree in (("sha256", state.params), ("sha256_ema", state.ema)):
    sha = test_description.by_the_docstring(jax.device_get(tree))
    assert f"{label:<12}{sha}" in out
  assert "step        4 of 20\n" in out
  assert f"jax {jax.__version__}" in out
  # A screen of it; every parameter only where that is asked for.
  assert "stem/kernel" not in out and out.count("\n") < 40
  assert "eval/accuracy" in out and "0.25" in out
  assert "NOT ALL FINITE" not in out
  count = len(jax.tree.leaves(state))
  assert f"digests     {count} arrays, all as saved\n" in out
  assert inspect.main([str(workdir), "--parameters"]) == 0
  more = capsys.readouterr().out
  assert more.startswith(out)
  assert "stem/kernel" in more and "(4, 4, 3, 32)" in more


def test_arrays_that_are_not_as_saved(run, tmp_path, capsys):
  shutil.copytree(run[0] / "checkpoints", tmp_path / "checkpoints")
  checkpoint = tmp_path / "checkpoints" / "4"

  def change(parts):
    bias = np.array(parts["training"]["opt_state"][1]["mu"]["head"]["bias"])
    bias[3] += 1
    parts["training"]["opt_state"][1]["mu"]["head"]["bias"] = bias

  states.rewrite(checkpoint, change)
  for more in ([], ["--json"]):
    assert inspect.main([str(tmp_path), *more]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: checkpoint {checkpoint} is damaged")
    assert "NOT AS SAVED: training/opt_state/1/mu/head/bias" in captured.err
    name = '"training/opt_state/1/mu/head/bias"' if more else "NOT AS SAVED"
    assert name in captured.out


def test_without_average_or_metrics(tmp_path, capsys):
  trained(tmp_path, 0.0, step=0)
  assert inspect.main([str(tmp_path), "--json"]) == 0
  got = json.loads(capsys.readouterr().out)
  assert "sha256_ema" not in got
  assert (got["metrics"], got["step"]) == ({}, 0)


def test_a_broken_state_is_pointed_out(tmp_path, capsys):
  state = trained(tmp_path / "good", 0.0)
  head = {"kernel": state.params["head"]["kernel"] + np.float32("nan")}
  params = dict(state.params) | {"head": dict(state.params["head"]) | head}
  with checkpoints.Checkpoints(tmp_path / "bad") as c:
    c.save(1, state.replace(params=params), {})
  assert inspect.main([str(tmp_path / "bad")]) == 0
  assert "NOT ALL FINITE" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_nothing_there(tmp_path, capsys, more):
  assert inspect.main([str(tmp_path), *more]) == stop.FAILED == 1
  captured = capsys.readouterr()
  assert captured.out == ""
  assert captured.err.startswith(f"error: there is no checkpoint in {tmp_path}")
  assert captured.err.count("\n") == 1


def test_a_step_that_is_not_there(run, capsys):
  path = run[0] / "checkpoints" / "3"
  assert inspect.main([str(path)]) == 1
  assert "checkpoints: 4." in capsys.readouterr().err


def test_a_file_of_weights(tmp_path, capsys):
  trained_files.npz(tmp_path / "own.npz", 10)
  assert inspect.main([str(tmp_path / "own.npz")]) == 0
  out = capsys.readouterr().out
  assert "model       2 blocks, C 8, T 6, F 12, patches of 4 px" in out
  assert "current names" in out
  assert "\nstep " not in out and "digests" not in out


def test_two(run, tmp_path, capsys):
  """A run beside a copy of it with another rate and one changed weight."""
  workdir, state = run
  config = {"seed": 1, "optimizer": {"learning_rate": 0.5}}
  bias = np.array(state.params["head"]["bias"])
  bias[3] += 1
  head = dict(state.params["head"]) | {"bias": jax.numpy.asarray(bias)}
  changed = state.replace(params=dict(state.params) | {"head": head})
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(9, changed, {"config": config, "class_names": ["a"]})
  paths = [str(workdir), str(tmp_path)]
  assert inspect.main(paths) == 0
  out = capsys.readouterr().out
  assert "config seed: 0 -> 1\n" in out
  assert "config optimizer.learning_rate: (none) -> 0.5\n" in out
  assert "step: 4 -> 9\n" in out
  assert "metrics eval/accuracy: 0.25 -> (none)\n" in out
  (line,) = [x for x in out.splitlines() if x.startswith("head ")]
  assert line.split()[-1] == "0.3%" and line.split()[-2] == "1"
  assert inspect.main([*paths, "--json"]) == 0
  got = json.loads(capsys.readouterr().out)
  assert not got["same_weights"] and got["shapes"] == []
  assert got["modules"]["stem"] == {
    "relative": 0.0,
    "cosine": pytest.approx(1),
    "largest": 0.0,
    "changed": 0.0,
  }
  assert inspect.main([str(workdir), str(workdir)]) == 0
  out = capsys.readouterr().out
  assert out.endswith("\n\nThe weights are the same to the bit.\n")


def test_two_models(run, tmp_path, capsys):
  trained_files.npz(tmp_path / "own.npz", 10)
  assert inspect.main([str(run[0]), str(tmp_path / "own.npz")]) == 0
  out = capsys.readouterr().out
  assert "in a, not so in b: stem/kernel is (4, 4, 3, 32) there and" in out
