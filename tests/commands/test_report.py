"""What `python -m mixer report` and a run's end write, looked at again."""

import shutil

import numpy as np
import pytest

from configs import smoke
from mixer import cli, evaluate, runtime, sharding, train_step, trained
from mixer import workdir as workdir_lib
from mixer.datasets import split as split_lib
from mixer.report import collect, predictions
from tests import states, test_report

pytestmark = pytest.mark.usefixtures("untouched")


@pytest.fixture
def command(capfd):
  """Runs the command; what it printed."""

  def run(*args, code=0):
    assert cli.main(["report", *map(str, args)]) == code
    captured = capfd.readouterr()
    if code:
      assert captured.err.startswith("error: ")
      return captured.err
    return captured.out

  return run


@pytest.fixture(scope="module")
def config(data_dir):
  found = smoke.get_config()
  found.data.data_dir = data_dir
  return found


@pytest.fixture(scope="module")
def made(tmp_path_factory, config):
  """A run, and what the model says by itself: classes, scores, labels."""
  path = tmp_path_factory.mktemp("runs") / "one"
  test_report.save_checkpoint(path, config)
  test_report.make_run(path, config)
  found = trained.load(str(path))
  split = split_lib.open_split("digits", "test", config.data.data_dir)
  mesh = sharding.make_mesh()
  functions = train_step.Inference(found.module, "softmax", 10, mesh)

  def batches():
    return evaluate.batches(split, (16, 16), 16, 64)

  _, gathered = predictions.gather(
    4, functions, found.params, batches(), split, config
  )
  rows = list(evaluate.examples(functions, found.params, batches()))
  rows = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
  return path, rows, gathered, split


@pytest.fixture
def run(made, tmp_path):
  """A copy of the run, to change."""
  return shutil.copytree(made[0], tmp_path / "one")


def data(path):
  return test_report.data_of(path.read_text("utf-8"))["runs"]


def check(made, run):
  """The page about a run says what the model says."""
  _, rows, _, split = made
  (found,) = data(run / "report.html")
  assert found["name"] == "one"
  assert found["curves"]["eval/accuracy"] == [[10, 20], [0.5, 0.25]]
  got = found["predictions"]
  right = rows["classes"][:, 0] == rows["label"]
  assert (got["step"], got["split"], got["examples"]) == (4, "test", 397)
  assert got["accuracy"] == right.mean()
  for example in got["samples"] + got["worst"]:
    kind, pixels = test_report.decoded(example["image"])
    assert (kind, pixels.shape) == ("PNG", (16, 16, 3))
    label = split[example["index"]]["label"]
    assert example["label"] == label == rows["label"][example["index"]]
  assert len(found["weights"]) == 3
  return found


def test_at_a_runs_end(made, run, monkeypatch):
  path = workdir_lib.path(run)
  assert collect.finish(path, made[2]) == f"report: {run}/report.html"
  check(made, run)
  # It never fails.
  (run / "report.json").unlink()
  (run / "report.json").mkdir()
  said = collect.finish(path, made[2])
  assert said.startswith("there is no report of this run: ")
  assert "report.json" in said
  (run / "report.json").rmdir()
  monkeypatch.setattr(collect, "text", lambda runs: 1 / 0)
  said = collect.finish(path, made[2])
  assert said == "there is no report of this run: division by zero."


def test_it_evaluates_once(made, run, command, monkeypatch):
  target = run.parent / "new" / "x.html"
  out = command(run, "--no-evaluate", "-o", target)
  assert "note: Predictions and weights: none" in out
  assert data(target)[0]["predictions"] is None
  assert not {"report.html", "report.json"} & {p.name for p in run.iterdir()}
  out = command(run)
  found = check(made, run)
  assert out.startswith(
    "one: steps 20 of 20 (0.5 epochs), 32 images each, Accuracy 25.00%"
  )
  assert all(f"  note: {note}" in out for note in found["notes"])
  assert out.endswith(f"written to    {run}/report.html\n")
  # Not a second time, and an accelerator is left to others.
  started = []
  monkeypatch.setattr(runtime, "start", started.append)
  monkeypatch.setattr(trained, "load", None)
  command(run)
  assert check(made, run) == found and started == ["cpu"]


def test_several_and_those_without_a_model(
  made, run, config, command, monkeypatch
):
  collect.keep(run, made[2])
  (run.parent / "deep").mkdir()
  other, evil = run.parent / "deep" / "one", run.parent / "<b>a&b"
  for path in (other, evil):
    test_report.make_run(path, config, test_report.RECORDS[:1])
  monkeypatch.chdir(run.parent)
  out = command(run, other, evil, f"{run}/../one")
  names = ["one", "deep/one", "<b>a&b"]
  found = data(run.parent / "report.html")
  assert [r["name"] for r in found] == names
  assert [bool(r["predictions"]) for r in found] == [True, False, False]
  assert "are not known: there is no checkpoint in " in out
  assert out.endswith("written to    report.html\n")


def test_checkpoints_that_cannot_be_evaluated(run, tmp_path, config, command):
  def change(metadata):
    metadata["config"]["data"] |= {"name": "imagenet2012"}

  test_report.save_checkpoint(tmp_path / "a", config, change)
  test_report.make_run(tmp_path / "a", config)
  out = command(tmp_path / "a", f"--data_dir={tmp_path}")
  assert (
    "note: The newest checkpoint is not evaluated: data set imagenet2012" in out
  )
  assert data(tmp_path / "a" / "report.html")[0]["curves"]

  def spoil(parts):
    parts["ema"]["head"]["bias"] = np.ones(10, np.float32)

  states.rewrite(run / "checkpoints" / "4", spoil)
  out = command(run)
  assert "note: The newest checkpoint is not evaluated: checkpoint" in out
  assert "is damaged" in out and (run / "report.html").exists()


def test_mistakes(made, tmp_path, command):
  for args, said in (
    ([tmp_path / "nowhere"], "has no config.json"),
    ([made[0], "-o", "/dev/null/x.html"], "x.html can't be written: "),
    ([made[0], "-o", tmp_path], "it is a folder"),
  ):
    assert said in command(*args, code=1)
  (tmp_path / "config.json").write_text("{")
  assert "config.json" in command(tmp_path, code=1)
