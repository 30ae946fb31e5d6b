"""train.py as a user meets it: what it writes, how it ends, how it goes on."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
from typing import Any

import jax
import numpy as np
import pytest

import input_pipeline
import train
from mixer import checkpoints, evaluate, metrics, trained
from mixer import config as config_lib
from mixer import workdir as workdir_lib
from mixer.datasets import split as split_lib
from mixer.datasets import stored
from mixer.errors import UserError
from tests import conftest, states

_TIMED = re.compile("goodput/|data/|train/(images|seconds)_per|train/mfu")


def exact(workdir):
  """The records without what depends on the clock."""
  found = (
    {k: v for k, v in r.items() if not _TIMED.match(k)}
    for r in metrics.read(workdir)
  )
  # Records of goodput alone tell of the starts, not of the run.
  return [r for r in found if r.keys() != {"step"}]


def assert_same_run(one, two):
  """Bits of weights, average and metrics."""
  for averaged in (False, True):
    a, b = (
      checkpoints.load_params(str(run), averaged=averaged)[0]
      for run in (one, two)
    )
    states.assert_same(a, b)
  assert exact(one) == exact(two)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, data_dir):
  """A finished smoke run, and what it printed; it must not see TensorFlow."""
  folder = tmp_path_factory.mktemp("undisturbed")
  (folder / "tensorflow.py").write_text(
    f"open({str(folder / 'imported')!r}, 'w').close()\nraise ImportError"
  )
  process = conftest.TrainCommand(data_dir).start(
    folder / "run", "--config.report=True", env={"PYTHONPATH": str(folder)}
  )
  out, err = process.communicate(timeout=300)
  assert (process.returncode, err) == (0, "")
  assert not (folder / "imported").exists()
  return folder / "run", out


def page(workdir):
  """The JSON of report.html."""
  text = (workdir / "report.html").read_text()
  (found,) = re.findall(
    r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL
  )
  return json.loads(found)


def test_what_a_run_writes(undisturbed):
  workdir, out = undisturbed
  assert "Mixer S/4 at 16 px, 10 classes" in out
  assert f"report: {workdir}/report.html\n" in out
  content = workdir_lib.read_config(workdir)
  assert content["config"]["model"]["variant"] == "S/4"
  assert content["resolved"]["total"] == 60
  assert content["resolved"]["train_examples"] == 1400
  found = metrics.read(workdir)
  trained = {r["step"]: r for r in found if "train/loss" in r}
  assert [*trained] == [1, 10, 20, 30, 40, 50, 60]
  speed = {"train/images_per_second", "train/seconds_per_step", "data/wait"}
  assert {"train/learning_rate", "train/grad_norm", "goodput/step"} <= (
    trained[1].keys()
  )
  assert not speed & trained[1].keys() and speed < trained[10].keys()
  evaluated = {r["step"]: r for r in found if "eval/accuracy" in r}
  assert evaluated.keys() == {30, 60}
  last = evaluated[60]
  assert 0.2 < last["eval/accuracy"] < last["eval/accuracy_top5"] <= 1
  assert checkpoints.locate(workdir)[1] == 60
  assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
  # The report counts by other functions, in the same pass.
  (run,) = page(workdir)["runs"]
  losses = [[30, 60], [r["eval/loss"] for r in evaluated.values()]]
  assert run["curves"]["eval/loss"] == losses
  said = run["predictions"]
  assert said["examples"] == last["eval/examples"] == 397
  assert said["accuracy"] == last["eval/accuracy"]
  assert said["accuracy_top5"] == last["eval/accuracy_top5"]
  assert said["mean_loss"] == pytest.approx(last["eval/loss"], rel=1e-6)
  assert "data:image/png;base64," in json.dumps(run["weights"])


def test_a_finished_run_stays_and_what_is_damaged_is_mended(
  undisturbed, smoke_config, tmp_path, capsys
):
  workdir = tmp_path / "run"
  shutil.copytree(undisturbed[0], workdir)
  config, lines = workdir / "config.json", workdir / metrics.FILE
  smoke_config.report = True
  before = {p.name: p.read_bytes() for p in workdir.iterdir() if p.is_file()}
  train.train(smoke_config, workdir)
  assert "after step 60 of 60" in capsys.readouterr().out
  assert lines.read_bytes() == before[lines.name]
  assert (workdir / "report.html").read_bytes() == before["report.html"]
  # The report anew, and without what is damaged.
  config.write_bytes(
    before[config.name].replace(b'"total": 60', b'"total": 61')
  )
  lines.write_bytes(before[lines.name].replace(b'"step": 20', b'"step": 21', 1))
  (workdir / "report.html").unlink()
  train.train(smoke_config, workdir)
  said = capsys.readouterr().out
  assert "config.json was damaged, and is written anew as checkpoint 60" in said
  assert "lines are damaged or gone (3); they are left out" in said
  assert workdir_lib.read_config(workdir)["resolved"]["total"] == 60
  assert 20 not in [
    r["step"] for r in metrics.read(workdir) if "train/loss" in r
  ]
  ours, theirs = (page(w)["runs"][0] for w in (workdir, undisturbed[0]))
  assert ours["predictions"] == theirs["predictions"]
  # One that can't be made fails no run.
  (workdir / "report.html").unlink()
  (workdir / "report.json").unlink()
  (workdir / "report.json").mkdir()
  assert train.train(smoke_config, workdir)["eval/examples"] == 397
  assert "there is no report of this run: " in capsys.readouterr().out


def test_one_pass_for_metrics_and_report_and_the_best_is_kept(
  plain_config, tmp_path, monkeypatch
):
  c = plain_config
  c.total, c.schedule.warmup, c.eval_every = "5 steps", "0", "50%"
  c.log_every, c.checkpoint_every = "0", ""
  c.keep_best, c.keep_checkpoints, c.report = "eval/accuracy", 1, True
  passes, real = [], input_pipeline.eval_batches
  monkeypatch.setattr(
    input_pipeline,
    "eval_batches",
    lambda *args: passes.append(args) or real(*args),
  )
  counted, said = evaluate.evaluate, iter([0.9, 0.1])
  monkeypatch.setattr(
    evaluate,
    "evaluate",
    lambda *args: counted(*args) | {"accuracy": next(said)},
  )
  workdir = tmp_path / "run"
  train.train(c, workdir)
  records = metrics.read(workdir)
  steps = {
    kind: [r["step"] for r in records if kind in r]
    for kind in ("train/loss", "eval/loss")
  }
  # Half of an odd run, and not the step before the last as well.
  assert steps == {"train/loss": [1, 5], "eval/loss": [3, 5]}
  assert len(passes) == 2
  (run,) = page(workdir)["runs"]
  assert run["predictions"]["step"] == 5
  (last,) = (r for r in records if r["step"] == 5 and "eval/loss" in r)
  assert run["predictions"]["mean_loss"] == pytest.approx(
    last["eval/loss"], rel=1e-6
  )
  # No checkpoint was due at 3.
  assert checkpoints.committed(workdir) == [3, 5]
  assert (
    "/3 (step 3, best by eval/accuracy" in trained.load(f"{workdir}").origin
  )
  newest = trained.load(f"{workdir}/checkpoints/5").origin
  assert "/5 (step 5, " in newest and "best" not in newest


@pytest.mark.slow
def test_updates_dispatched_together_make_the_same_run(
  undisturbed, smoke_config, tmp_path
):
  smoke_config.steps_per_dispatch = 7
  smoke_config.data.threads = 2
  train.train(smoke_config, tmp_path / "run")
  expected, found = exact(undisturbed[0]), exact(tmp_path / "run")
  assert [r["step"] for r in found] == [r["step"] for r in expected]
  for one, two in zip(found, expected, strict=True):
    assert one == pytest.approx(two, rel=0.02, abs=0.02)


def test_a_damaged_record_stops_training_and_loses_nothing(
  smoke_config, tmp_path, monkeypatch
):
  real = split_lib.open_split
  good = real("digits", "train", smoke_config.data.data_dir)

  class Damaged:
    def __len__(self):
      return len(good)

    def __getitems__(self, indices):
      records = good.source.__getitems__(indices)
      for i, record in zip(indices, records, strict=True):
        if i == 77:
          record["image"] = record["image"][:40]
      return records

  def open_split(name, split, data_dir):
    if split == "train":
      return dataclasses.replace(good, source=Damaged())
    return real(name, split, data_dir)

  monkeypatch.setattr(split_lib, "open_split", open_split)
  with pytest.raises(UserError, match="split train, record 77 can't be dec"):
    train.train(smoke_config, tmp_path / "run")
  step = checkpoints.locate(str(tmp_path / "run"))[1]
  assert 0 < step < 44  # The epoch's 44th batch is its last.
  monkeypatch.undo()
  assert train.train(smoke_config, tmp_path / "run")["eval/examples"] == 397


@pytest.mark.slow
def test_a_vanished_checkpoint_folder_ends_the_run(
  undisturbed, train_command, tmp_path
):
  del undisturbed
  workdir = tmp_path / "run"
  process = train_command.start(
    workdir, "--config.total=4000 steps", "--config.checkpoint_every=10 steps"
  )
  while process.poll() is None and not checkpoints.committed(workdir):
    time.sleep(0.01)
  # A file where the folder was: no save can even begin.
  while True:
    try:
      (workdir / "checkpoints").rename(workdir / "away")
      (workdir / "checkpoints").touch()
      break
    except OSError:  # Orbax has just made it anew.
      shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
  # Its threads wait for each other: the process must end all the same.
  _, err = process.communicate(timeout=120)
  assert process.returncode == 1
  assert "error: the checkpoint of step" in err


def test_another_config_or_data_set_is_refused_with_a_diff(
  undisturbed, smoke_config, tmp_path
):
  smoke_config.batch_size = 64
  with pytest.raises(UserError, match="batch_size: 32 -> 64"):
    train.train(smoke_config, undisturbed[0])
  smoke_config.batch_size, smoke_config.total = 32, "6 steps"
  with pytest.raises(UserError, match="comes to 6 steps, and the run in .* ha"):
    train.train(smoke_config, undisturbed[0], ("total",))
  # Prepared anew with other class names of equal number.
  root = tmp_path / "data"
  shutil.copytree(smoke_config.data.data_dir, root)
  (folder,) = root.glob("digits/*")
  names = folder / "label.labels.txt"
  names.write_text(names.read_text().replace("3\n", "three\n"))
  stored.seal(folder)
  smoke_config.data.data_dir, smoke_config.total = str(root), "60 steps"
  with pytest.raises(UserError, match=r"data_set\.class_names: '10 names, "):
    train.train(smoke_config, undisturbed[0], ("total",))


def test_fine_tuning_starts_from_a_workdir(
  undisturbed, smoke_config, tmp_path, capsys
):
  smoke_config.init_from, smoke_config.total = str(undisturbed[0]), "8 steps"
  smoke_config.optimizer.update(name="sgd", weight_decay=0.0)
  train.train(smoke_config, tmp_path / "run")
  assert "starting from the weights of" in capsys.readouterr().out
  # A fresh head: the first loss is that of a guess.
  assert metrics.read(tmp_path / "run")[0]["train/loss"] == pytest.approx(
    np.log(10), rel=1e-5
  )


class Wandb(types.ModuleType):
  """What of Weights & Biases a run uses; `calls` in order."""

  def __init__(self):
    super().__init__("wandb")
    self.calls: list[Any] = []

  def init(self, **given):
    self.calls.append(given)
    return self

  def log(self, values, step):
    self.calls.append((step, values))
    if step == 4:
      raise ConnectionError("the service is gone")

  def finish(self):
    self.calls.append("finish")


def traced(workdir):
  """The updates in each profile, by its folder's name."""
  found = {}
  for file in (workdir / "profile").rglob("*.xplane.pb"):
    assert file.parent.parent == workdir / "profile" / "plugins" / "profile"
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    events = [e for p in planes for line in p.lines for e in line.events]
    steps = [dict(e.stats)["step_num"] for e in events if e.name == "train"]
    found[file.parent.name] = sorted(steps)
  return found


def test_weights_of_classes_wandb_and_a_profile_over_two_starts(
  plain_config, tmp_path, monkeypatch, capsys
):
  c, workdir, fake = plain_config, tmp_path / "run", Wandb()
  monkeypatch.setitem(sys.modules, "wandb", fake)
  c.data.train_split, c.loss.class_weights = "train[:100]", "balanced"
  c.total, c.schedule.warmup, c.eval_every = "6 steps", "0", "0"
  c.log_every, c.log.wandb, c.keep_best = "1 steps", "mixer", "eval/macro_f1"
  with pytest.raises(UserError, match="5:7: the run has only updates 1 to 6"):
    train.train(c, workdir, profile=(5, 7))
  assert not workdir.exists()
  c.total = "4 steps"
  train.train(c, workdir, profile=(2, 3))
  assert "profile: `xprof --logdir=" in capsys.readouterr().out
  assert traced(workdir) == {"updates_2_3": [2, 3]}
  first, *logged, end = fake.calls
  assert end == "finish"
  identity = {"id": first["id"], "resume": "allow", "dir": str(workdir)}
  assert first == identity | {
    "project": "mixer", "name": "run", "config": config_lib.to_json(c)
  }  # fmt: skip
  records = [dict(r) for r in metrics.read(workdir)]
  assert logged == [(r.pop("step"), r) for r in records]
  assert {"eval/balanced_accuracy", "train/loss"} <= {
    k for r in records for k in r
  }
  # It goes on there, too; of updates sent together all are traced.
  fake.calls.clear()
  c.total, c.steps_per_dispatch, c.log_every = "12 steps", 4, "0"
  train.train(c, workdir, ("total",), profile=(6, 6))
  assert fake.calls[0]["id"] == first["id"]
  assert fake.calls[1][0] == 12
  assert traced(workdir) == {"updates_2_3": [2, 3], "updates_6_6": [5]}
  train.train(c, workdir, profile=(6, 6))
  assert "no profile: update 6 is done" in capsys.readouterr().out
  # What can't be used is a sentence, and loses nothing.
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match="log.wandb=mixer: W&B can't be used: "):
    train.train(c, workdir)
  c.log.wandb = ""
  assert train.train(c, workdir)["eval/macro_f1"] > 0


def test_importing_train_starts_no_backend():
  code = (
    "import train, sys, jax._src.xla_bridge as b;"
    "assert not b._backends;"
    "heavy = {'matplotlib', 'sklearn', 'tensorboardX', 'tensorflow'};"
    "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
  )
  subprocess.run(
    [sys.executable, "-c", code], cwd=conftest.ROOT, check=True, env=os.environ
  )
