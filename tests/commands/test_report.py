"""What `python -m mixer report` and a run's end write, looked at again."""

import dataclasses
import json
import operator
import shutil

import numpy as np
import pytest

import input_pipeline
from mixer import cli, evaluate, metrics, sharding, train_step, trained
from mixer import workdir as workdir_lib
from mixer.commands import report
from mixer.datasets import split as split_lib
from mixer.report import files, making
from tests.report import run_files, test_text, test_thumbnails

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
def made(tmp_path_factory, data_dir):
  """A run, and what the model says by itself: classes, scores, labels."""
  path = tmp_path_factory.mktemp("runs") / "one"
  run_files.make(path, data_dir)
  found = trained.load(str(path))
  split = split_lib.open_split("digits", "test", data_dir)
  mesh = sharding.make_mesh()
  functions = train_step.Inference(found.module, "softmax", 10, mesh)
  assert found.config is not None
  found.config.batch_size = 64
  batches = input_pipeline.eval_batches(split, found.config)
  # The same functions and batches, for what is made at a run's end.
  gathered = making.gather(
    functions, found.params, batches, mesh, split, found.config
  )
  batches = input_pipeline.eval_batches(split, found.config)
  rows = list(evaluate.examples(functions, found.params, batches, mesh))
  rows = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
  return path, rows, gathered, split


@pytest.fixture
def run(made, tmp_path):
  """A copy of the run, to change."""
  return shutil.copytree(made[0], tmp_path / "one")


def data(path):
  return test_text.data_of(path.read_text("utf-8"))


def check(made, run):
  """The page about a run says what the model says."""
  _, rows, _, split = made
  (found,) = data(run / "report.html")["runs"]
  assert found["name"] == "one"
  assert found["metrics"] == metrics.read(run)
  stored = json.loads((run / "config.json").read_text())
  assert found["config"] == stored["config"]
  got = found["predictions"]
  right = rows["classes"][:, 0] == rows["label"]
  assert (got["step"], got["split"], got["examples"]) == (4, "test", 397)
  assert got["accuracy"] == right.mean()
  for example in got["samples"] + got["worst"]:
    i = example["index"]
    kind, pixels = test_thumbnails.decoded(example["image"])
    record = split[i]
    assert kind == "PNG"
    assert pixels.shape == (16, 16, 3)
    assert example["label"] == record["label"] == rows["label"][i]
  assert len(found["weights"]["tokens"]) == 2
  return found


def test_at_a_runs_end(made, run):
  said = making.finish(workdir_lib.path(run), 4, made[2])
  assert said == f"report: {run}/report.html"
  check(made, run)
  page = (run / "report.html").read_bytes()
  # Once more, as by a run that finds itself finished.
  assert making.finish(workdir_lib.path(run), 4, None) == said
  assert (run / "report.html").read_bytes() == page


def test_examples_have_the_names_of_their_files(made):
  split = made[3]

  class Named:
    def __len__(self):
      return len(split.source)

    def __getitems__(self, indices):
      names = [{"file_name": f"c\x1b/{i}.png"} for i in indices]
      records = split.source.__getitems__(indices)
      return list(map(operator.or_, records, names))

  named = dataclasses.replace(split, source=Named())
  got = making.result(dataclasses.replace(made[2], split=named), 4)
  for example in got["predictions"]["worst"] + got["predictions"]["samples"]:
    assert example["file"] == f"c\\x1b/{example['index']}.png"


def test_a_runs_end_never_fails(made, run, monkeypatch):
  (run / "report.json").mkdir()
  said = making.finish(workdir_lib.path(run), 4, made[2])
  assert said.startswith("there is no report of this run: ")
  assert "report.json" in said
  monkeypatch.setattr(making.page, "text", lambda runs: 1 / 0)
  said = making.finish(workdir_lib.path(run), 4, None)
  assert said == "there is no report of this run: division by zero."


def test_evaluates_once(made, run, command, monkeypatch):
  out = command(run)
  found = check(made, run)
  assert out.startswith("one: steps 20 of 20 (0.5 epochs), accuracy 25.00%")
  assert "4 records of metrics, 397 predictions for test at step 4" in out
  assert all(f"  note: {note}" in out for note in found["notes"])
  assert out.endswith(f"written to    {run}/report.html\n")
  monkeypatch.setattr(report, "_evaluate", None)  # Not a second time.
  command(run)
  assert check(made, run) == found


def test_several_and_those_without_a_model(made, run, command, monkeypatch):
  files.keep(run, making.result(made[2], 4))
  other = run.parent / "deep" / "one"
  run_files.write(run.parent / "deep", {}, [])
  stored = json.loads((run / "config.json").read_text())["config"]
  evil = test_text._EVIL.replace("/", "")
  third = run.parent / evil
  for path in (other, third):
    run_files.write(path, stored, run_files.RECORDS[:1])
  monkeypatch.chdir(run.parent)
  out = command(run, other, third, f"{run}/../one")
  names = [f"{run.parent.name}/one", "deep/one", f"{run.parent.name}/{evil}"]
  found = data(run.parent / "report.html")["runs"]
  assert [r["name"] for r in found] == names
  assert [len(r["metrics"]) for r in found] == [4, 1, 1]
  assert found[0]["predictions"]["examples"] == 397
  assert found[1]["predictions"] is None
  assert "note: No predictions: there is no checkpoint yet." in out
  assert out.endswith("written to    report.html\n")


def test_without_evaluation(run, command, tmp_path):
  target = tmp_path / "x.html"
  out = command(run, "--no-evaluate", "-o", target)
  assert "note: No predictions, as of --no-evaluate." in out
  (found,) = data(target)["runs"]
  assert found["predictions"] is None
  assert not (run / "report.html").exists()
  assert not (run / "report.json").exists()


def test_data_that_is_not_here(tmp_path, data_dir, command):
  def change(metadata):
    metadata["config"]["data"]["name"] = "imagenet2012"

  run_files.make(tmp_path / "r", data_dir, change=change)
  out = command(tmp_path / "r", f"--data_dir={tmp_path}")
  assert "note: Checkpoint 4 isn't evaluated: data set imagenet2012" in out
  (found,) = data(tmp_path / "r" / "report.html")["runs"]
  assert len(found["metrics"]) == 4


def test_a_checkpoint_of_another_model(tmp_path, data_dir, command):
  def change(metadata):
    metadata["config"]["model"]["hidden_dim"] = 40

  run_files.make(tmp_path / "r", data_dir, change=change)
  out = command(tmp_path / "r")
  assert "weights of another model than the config" in out


def test_a_damaged_checkpoint(run, command):
  step = run / "checkpoints" / "4"
  files_of_it = [p for p in (step / "ema").rglob("*") if p.is_file()]
  largest = max(files_of_it, key=lambda p: p.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  out = command(run)
  assert "note: Checkpoint 4 isn't evaluated: checkpoint" in out
  assert "is damaged" in out
  assert (run / "report.html").exists()


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["{tmp}/nowhere"], "there is no folder"),
    (["{tmp}"], "is not a workdir of train.py: it has no config.json"),
    (["{run}", "-o", "/dev/null/x.html"], "x.html can't be written: "),
    (["{run}", "-o", "{tmp}"], "is a folder: name a file"),
  ],
)
def test_mistakes(made, tmp_path, command, args, said):
  places = {"tmp": str(tmp_path), "run": str(made[0])}
  assert said.format(**places) in command(
    *(a.format(**places) for a in args), code=1
  )
