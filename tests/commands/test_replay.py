"""Making an update again: against the run's own metrics."""

import json
import shutil

import numpy as np
import pytest

import train
from configs import smoke
from mixer import cli, metrics
from mixer.commands import replay
from mixer.datasets import stored
from mixer.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
  config = smoke.get_config()
  config.data.data_dir = data_dir
  config.total, config.schedule.warmup = "12 steps", "2 steps"
  config.checkpoint_every, config.log_every = "4 steps", "1 steps"
  config.loss.mixup, config.model.dropout = 0.3, 0.1
  config.optimizer.accumulate, config.report = 2, False
  workdir = tmp_path_factory.mktemp("replay") / "run"
  train.train(config, workdir)
  return workdir


@pytest.mark.parametrize(("step", "origin"), [(3, 0), (7, 4)])
def test_it_is_the_update_of_the_run(finished, step, origin, capsys):
  before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
  words = ["replay", str(finished), f"--step={step}"]
  assert cli.main([*words, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["step"], found["from_step"]) == (step, origin)
  records = {r["step"]: r for r in metrics.read(finished) if "train/loss" in r}
  for name, value in found["metrics"].items():
    assert value == records[step][f"train/{name}"], name
  assert len(found["records"]) == len(found["losses"]) == 32
  # One example at a time, under the same dropout and mixup.
  np.testing.assert_allclose(
    np.mean(found["losses"]), records[step]["train/loss"], rtol=1e-5
  )
  assert list(found["layers"])[:2] == ["stem", "MixerBlock_0"]
  assert found["weights"].keys() == found["gradients"].keys()
  assert {
    p: p.read_bytes() for p in finished.rglob("*") if p.is_file()
  } == before
  # For people; and what is not finite is named.
  found |= {"layers": {"stem": 2.0, "MixerBlock_0": np.inf, "head": np.nan}}
  found["losses"][3] = np.nan
  text = replay.text(found, "runs/x")
  start = "checkpoint 4" if origin else "the beginning"
  assert f"update {step} of runs/x, made again from {start}\nloss " in text
  bad = found["records"][3]
  assert f"1 of 32 are not finite; the first nan (record {bad})" in text
  assert "layers: 2 of 3 are not finite, first MixerBlock_0" in text
  assert "weights: all finite, the largest" in text


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
