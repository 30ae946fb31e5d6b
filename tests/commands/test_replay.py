"""Making an update again: against the run's own metrics, and a finite one."""

import json
import shutil

import numpy as np
import pytest

import train
from mixer import cli, metrics
from mixer.commands import replay
from mixer.datasets import stored
from mixer.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
  from configs import smoke

  config = smoke.get_config()
  config.data.data_dir = data_dir
  config.total = "12 steps"
  config.schedule.warmup = "2 steps"
  config.checkpoint_every = "4 steps"
  config.log_every = "1 steps"
  config.loss.mixup = 0.3
  config.model.dropout = 0.1
  config.optimizer.accumulate = 2
  workdir = tmp_path_factory.mktemp("replay") / "run"
  train.train(config, workdir)
  return workdir


@pytest.mark.parametrize(("step", "origin"), [(3, 0), (7, 4)])
def test_it_is_the_update_of_the_run(finished, step, origin):
  found = replay.replay(str(finished), step)
  assert (found["step"], found["from_step"]) == (step, origin)
  (record,) = (
    r for r in metrics.read(finished) if r["step"] == step and "train/loss" in r
  )
  for name, value in found["metrics"].items():
    assert value == record[f"train/{name}"], name
  assert len(found["records"]) == len(found["losses"]) == 32
  # One example at a time, under the same dropout and mixup.
  np.testing.assert_allclose(
    np.mean(found["losses"]), record["train/loss"], rtol=1e-5
  )
  assert list(found["layers"])[:2] == ["stem", "MixerBlock_0"]
  assert found["weights"].keys() == found["gradients"].keys()


def test_it_is_told_in_words_and_nothing_changes(finished, capsys):
  before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
  assert cli.main(["replay", str(finished), "--step=5"]) == 0
  out = capsys.readouterr().out
  assert f"update 5 of {finished}, made again from checkpoint 4" in out
  assert "every one of the 32 losses is finite" in out
  assert out.count("all finite") == 3
  after = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
  assert after == before


def test_what_cannot_be_replayed_is_refused(finished, data_dir, tmp_path):
  with pytest.raises(UserError, match="has the updates 1 to 12"):
    replay.replay(str(finished), 13)
  with pytest.raises(UserError, match="not a workdir of train.py"):
    replay.replay(str(tmp_path), 1)
  shutil.copytree(f"{data_dir}/digits", tmp_path / "digits")
  (names,) = tmp_path.glob("digits/*/label.labels.txt")
  names.write_text("\n".join("9876543210") + "\n")
  stored.seal(names.parent)
  with pytest.raises(UserError, match="another data set:\n.*class_names: "):
    replay.replay(str(finished), 3, str(tmp_path))


def test_what_is_not_finite_is_named():
  nan, inf = float("nan"), float("inf")
  found = {
    "step": 7,
    "from_step": 0,
    "metrics": {"loss": nan, "grad_norm": inf, "learning_rate": 0.1},
    "records": [5, 6, 7],
    "losses": [1.0, nan, 2.0],
    "weights": {"head/kernel": 1.0},
    "layers": {"stem": 2.0, "MixerBlock_0": inf, "head": nan},
    "gradients": {"head/kernel": nan},
  }
  text = replay.text(json.loads(json.dumps(found)), "runs/x")
  assert "made again from the beginning\nloss nan, grad_norm inf" in text
  assert "not finite: 1 of 3: nan (record 6)\n" in text
  assert "layers: 2 of 3 are not finite, first MixerBlock_0" in text
  assert "gradients: 1 of 1 are not finite, first head/kernel" in text
