"""What a workdir is read as."""

import json

import pytest

from configs import smoke
from mixer import config as config_lib
from mixer import metrics
from mixer.errors import UserError
from mixer.report import files, runs
from tests.report import run_files

_CONFIG = config_lib.to_json(smoke.get_config())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
  path = tmp_path_factory.mktemp("whole")
  run_files.make(path, data_dir)
  return path


@pytest.fixture
def bare(tmp_path):
  """A run without a checkpoint; a function that writes its metrics."""

  def write(records):
    run_files.write(tmp_path, _CONFIG, records)
    return tmp_path

  return write


def test_a_whole_run(whole):
  got = runs.read(whole, "me")
  assert got["name"] == "me"
  assert got["metrics"] == run_files.RECORDS
  assert got["config"]["model"]["variant"] == "S/4"
  assert got["environment"]["versions"]["jax"] == "1.2.3"
  assert (got["predictions"], got["weights"]) == (None, None)
  facts = dict(got["facts"])
  assert facts == {
    "workdir": str(whole),
    "model": "Mixer S/4 at 16 px, 10 classes, 0.01 M parameters, float32",
    "started": "from random weights",
    "data": "digits: train (1,400 images) for training, test (397 images) for "
    "evaluation",
    "steps": "20 of 20 (0.5 epochs)",
    "batch": "32 images an update",
    "devices": "8 x TPU v0",
    "speed": "1,000 images/s (median of the last 2 records)",
    "accuracy": "25.00% at step 20",
    "time": "1m06s in all",
    "code": "mixer 0.1.0, jax 1.2.3",
  }
  mfu, predictions = got["notes"]
  assert "no MFU" in mfu
  assert f"python -m mixer report --evaluate {whole} at any time" in predictions


def test_a_run_under_way_and_a_line_cut_off(bare):
  path = bare(run_files.RECORDS[:1])
  with open(path / metrics.FILE, "a") as f:
    f.write('{"step": 20, "train/lo')
  got = runs.read(path, "x")
  assert got["metrics"] == run_files.RECORDS[:1]
  assert got["environment"] is None
  assert "10 of 20 updates: it is under way" in got["notes"][0]
  assert "There is no evaluation yet." in got["notes"]
  assert any("There is no whole checkpoint yet" in n for n in got["notes"])
  assert "accuracy" not in dict(got["facts"])


def test_nothing_yet(bare):
  path = bare([])
  (path / metrics.FILE).unlink()
  got = runs.read(path, "x", "Because.")
  assert got["metrics"] == []
  assert any("no metrics yet" in n for n in got["notes"])
  assert "Because." in got["notes"]
  assert not any("No predictions" in n for n in got["notes"])


@pytest.mark.parametrize("line", ["12", '{"loss": 1}', '{"step": "a"}'])
def test_a_line_that_is_no_record(bare, line):
  path = bare(run_files.RECORDS)
  with open(path / metrics.FILE, "a") as f:
    f.write(line + "\n")
  got = runs.read(path, "x")
  assert got["metrics"] == run_files.RECORDS
  assert any("1 of its lines hold no record" in n for n in got["notes"])


def test_metrics_that_are_no_text(bare):
  path = bare([])
  (path / metrics.FILE).write_bytes(b"\xff\xfe\x00")
  got = runs.read(path, "x")
  assert got["metrics"] == []
  assert "1 of its lines hold no record" in got["notes"][0]


def test_lines_that_a_checkpoint_knows_of_are_gone(tmp_path, data_dir):
  lines = {"metrics_lines": 9}
  run_files.make(tmp_path, data_dir, change=lambda m: m.update(lines))
  (tmp_path / metrics.FILE).unlink()
  got = runs.read(tmp_path, "x")
  assert any(
    "of 9 lines 9 are damaged or gone (1 to 9)" in n for n in got["notes"]
  )


def test_no_workdir(tmp_path):
  with pytest.raises(UserError, match="has no config.json"):
    runs.read(tmp_path, "x")


def test_long_metrics_are_thinned(bare):
  records = []
  for step in range(1, 45_001):
    records.append({"step": step, "train/loss": step / 7})
    if step % 1000 == 0:
      records.append({"step": step, "eval/accuracy": step / 45_000})
  got = runs.read(bare(records), "x")
  shown = got["metrics"]
  assert len(shown) <= 20_001
  assert [r for r in shown if "eval/accuracy" in r] == [
    r for r in records if "eval/accuracy" in r
  ]
  training = [r for r in shown if "train/loss" in r]
  steps = [r["step"] for r in training]
  assert steps == [*range(1, 45_001, 3), 45_000]
  assert all(r["train/loss"] == r["step"] / 7 for r in training)
  assert (
    "Of the 45,000 records of training 15,001 are shown" in got["notes"][-1]
  )


def _kept(step):
  return {"step": step, "predictions": {"a": 1}, "weights": None, "notes": []}


def test_predictions_of_another_step(whole):
  got = runs.read(whole, "x", fresh=_kept(20))
  assert got["predictions"] == {"a": 1}
  assert not any("Predictions" in n for n in got["notes"])
  # The checkpoint is that of step 4: nothing newer can be evaluated.
  got = runs.read(whole, "x", fresh=_kept(4))
  assert got["notes"][-1] == (
    "Predictions and weights are those of step 4, and the newest evaluation is "
    "that of step 20."
  )
  got = runs.read(whole, "x", fresh=_kept(2))
  assert "--evaluate" in got["notes"][-1]


def test_what_is_kept(bare):
  path = bare(run_files.RECORDS)
  assert files.kept(path) == (None, "")
  content = _kept(20) | {"notes": ["Beware."]}
  content["predictions"] = {"mean_loss": float("nan")}
  files.keep(path, content)
  got = runs.read(path, "x")
  assert got["predictions"] == {"mean_loss": None}
  assert "Beware." in got["notes"]
  written = json.loads((path / files.KEPT).read_text())
  for broken, said in (
    ("{", "is no JSON"),
    ("[]", "holds no JSON object"),
    (b"\xff{}", "is no UTF-8"),
    (json.dumps(written | {"step": 21}), "is damaged"),
    (json.dumps({**content, "format": 1, "step": "a"}), "not what mixer wri"),
    (json.dumps({**content, "format": 0}), "another version"),
  ):
    broken = broken if isinstance(broken, bytes) else broken.encode()
    (path / files.KEPT).write_bytes(broken)
    got = runs.read(path, "x")
    assert got["predictions"] is None
    assert any(said in n for n in got["notes"])
