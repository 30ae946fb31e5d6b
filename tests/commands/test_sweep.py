"""Choosing a learning rate."""

import json
import subprocess
import sys

import pytest

from mixer import metrics
from mixer.commands import sweep
from mixer.errors import UserError
from tests import conftest


@pytest.fixture
def config(smoke_config):
  c = smoke_config
  c.total = "30 steps"
  c.schedule.warmup = "0 steps"
  c.schedule.decay = "constant"
  # One that can't learn, one that learns.
  c.sweep.learning_rates = (1e-12, 0.01)
  c.sweep.train_split = "train[:80%]"
  c.sweep.eval_split = "train[80%:]"
  return c


def test_the_best_rate_is_chosen_and_trained_with(config, tmp_path, capsys):
  trials, last = sweep.sweep(config, tmp_path)
  assert [t.learning_rate for t in trials] == [1e-12, 0.01]
  assert trials[1].accuracy > trials[0].accuracy
  assert last.learning_rate == 0.01
  # The trials saw the held-out part, the last run the test split.
  for name, train, test in (
    ("lr_0.01", 1120, 280),
    ("lr_1e-12", 1120, 280),
    ("final", 1400, 397),
  ):
    saved = json.loads((tmp_path / name / "config.json").read_text())
    assert saved["resolved"]["train_examples"] == train
    assert saved["resolved"]["eval_examples"] == test
  (accuracy,) = (
    r["eval/accuracy"]
    for r in metrics.read(tmp_path / "final")
    if "eval/accuracy" in r
  )
  assert accuracy == last.accuracy
  text = sweep.table(config, trials, last)
  assert f"0.01            {trials[1].accuracy:.4f}  <- best" in text
  assert f"accuracy {last.accuracy:.4f} on test" in text
  # Again: nothing is trained anew.
  before = (tmp_path / "lr_0.01" / "metrics.jsonl").read_bytes()
  capsys.readouterr()
  assert sweep.sweep(config, tmp_path) == (trials, last)
  assert (tmp_path / "lr_0.01" / "metrics.jsonl").read_bytes() == before
  assert capsys.readouterr().out.count("after step 30 of 30") == 3


def test_the_edge_of_the_grid_is_told(config):
  trials = [sweep.Trial(0.1, 0.5), sweep.Trial(0.2, 0.6), sweep.Trial(0.3, 0.7)]
  assert "largest tried" in sweep.table(config, trials, trials[2])
  assert "smallest tried" in sweep.table(config, trials, trials[0])
  trials[0] = sweep.Trial(0.1, None)
  text = sweep.table(config, trials, trials[1])
  assert "tried" not in text and "0.1             diverged\n" in text


@pytest.mark.parametrize(
  ("key", "value", "sentence"),
  [
    ("learning_rates", (), "nothing to choose"),
    ("learning_rates", ("a",), "sweep.learning_rates='a' should be at least 0"),
    ("learning_rates", (0.1, float("nan")), "sweep.learning_rates=nan should"),
    ("train_split", "", "nothing to choose"),
    ("eval_split", "test", "is data.eval_split as well"),
  ],
)
def test_what_cannot_choose_is_refused(config, tmp_path, key, value, sentence):
  config.sweep[key] = value
  with pytest.raises(UserError, match=sentence):
    sweep.sweep(config, tmp_path)


def test_all_diverged(config, tmp_path):
  config.sweep.learning_rates = (1e38,)
  with pytest.raises(UserError, match="diverged with every learning rate"):
    sweep.sweep(config, tmp_path)


@pytest.mark.slow
def test_the_command(data_dir, tmp_path):
  run = [sys.executable, "-m", "mixer", "sweep", "--config=configs/smoke.py"]
  run += [
    *("--config.total=2 steps", f"--config.data.data_dir={data_dir}"),
    *(f"--workdir={tmp_path}", "--config.schedule.warmup=1 steps"),
    "--config.sweep.learning_rates=(0.001,)",
    "--config.sweep.train_split=train[:80%]",
    "--config.sweep.eval_split=train[80%:]",
  ]
  done = subprocess.run(run, cwd=conftest.ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  table = json.loads((tmp_path / "sweep.json").read_text())
  assert [t["learning_rate"] for t in table["trials"]] == [0.001]
  assert f"accuracy {table['last']['accuracy']:.4f} on test" in done.stdout
