"""Choosing a learning rate."""

import json

import pytest

from mixer import metrics
from mixer.commands import sweep
from mixer.errors import UserError


@pytest.fixture
def config(smoke_config):
  c = smoke_config
  c.total = "30 steps"
  c.schedule.warmup = "0 steps"
  c.schedule.decay = "constant"
  # One that can't learn, one that learns, one that diverges.
  c.sweep.learning_rates = (1e-12, 0.01, 1e38)
  c.sweep.train_split = "train[:80%]"
  c.sweep.eval_split = "train[80%:]"
  return c


def test_the_best_rate_is_chosen_and_trained_with(config, tmp_path, capsys):
  found = sweep.sweep(config, tmp_path)
  low, good, diverged = (t["accuracy"] for t in found["trials"])
  assert good > low and diverged is None
  last = found["last"]
  assert last["learning_rate"] == 0.01
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
  assert accuracy == last["accuracy"]
  written = json.loads((tmp_path / "sweep.json").read_text())
  assert written.pop("config")["total"] == "30 steps"
  assert written == found
  text = capsys.readouterr().out
  assert f"\n0.01            {good:.4f}  <- best\n" in text
  assert "\n1e+38           diverged\n" in text
  assert f"accuracy {accuracy:.4f} on test\n" in text
  # Again: nothing is trained anew.
  config.sweep.learning_rates = (1e-12, 0.01)
  before = (tmp_path / "lr_0.01" / "metrics.jsonl").read_bytes()
  again = sweep.sweep(config, tmp_path)
  assert again == {"trials": found["trials"][:2], "last": last}
  assert (tmp_path / "lr_0.01" / "metrics.jsonl").read_bytes() == before
  assert capsys.readouterr().out.count("after step 30 of 30") == 3


@pytest.mark.parametrize(
  ("key", "value", "sentence"),
  [
    ("learning_rates", (), "nothing to choose"),
    ("train_split", "", "nothing to choose"),
    ("eval_split", "test", "is data.eval_split as well"),
    ("learning_rates", (1e38,), "diverged with every learning rate"),
  ],
)
def test_what_cannot_choose_is_refused(config, tmp_path, key, value, sentence):
  config.sweep[key] = value
  with pytest.raises(UserError, match=sentence):
    sweep.sweep(config, tmp_path)
