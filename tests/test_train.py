"""train.py as a user meets it: what it writes, how it ends, how it goes on."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import input_pipeline
import train
from mixer import checkpoints, metrics, stop, trained
from mixer import workdir as workdir_lib
from mixer.datasets import split as split_lib
from mixer.datasets import stored
from mixer.errors import UserError
from tests import conftest


def exact(workdir):
  """The records without what depends on the clock."""
  timed = (
    "train/images_per_second",
    "train/seconds_per_step",
    "train/mfu",
    "data/images_per_second",
    "data/wait",
  )
  kept = (
    {
      k: v
      for k, v in r.items()
      if k not in timed and not k.startswith("goodput/")
    }
    for r in metrics.read(workdir)
  )
  # Records of goodput alone tell of the starts, not of the run.
  return [r for r in kept if r.keys() != {"step"}]


def assert_same_run(one, two):
  """Bits of weights, average and metrics."""
  for averaged in (False, True):
    a, _ = checkpoints.load_params(str(one), averaged=averaged)
    b, _ = checkpoints.load_params(str(two), averaged=averaged)
    a, b = dict(conftest.leaves(a)), dict(conftest.leaves(b))
    assert a.keys() == b.keys()
    for name, array in a.items():
      np.testing.assert_array_equal(array, b[name], err_msg=name)
  assert exact(one) == exact(two)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, data_dir):
  """A finished smoke run, and what it printed."""
  workdir = tmp_path_factory.mktemp("undisturbed") / "run"
  done = conftest.TrainCommand(data_dir)(workdir, "--config.report=True")
  assert done.returncode == 0, done.stderr
  return workdir, done


def page(workdir):
  """The JSON of report.html."""
  text = (workdir / "report.html").read_text()
  (found,) = re.findall(
    r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL
  )
  return json.loads(found)


def test_a_run_ends_with_its_report(undisturbed):
  workdir, done = undisturbed
  assert f"report: {workdir}/report.html\n" in done.stdout
  (run,) = page(workdir)["runs"]
  assert run["metrics"] == metrics.read(workdir)
  config = json.loads((workdir / "config.json").read_text())["config"]
  assert run["config"] == config
  # Counted by other functions than the record, of the same pass.
  said = run["predictions"]
  (last,) = [
    r for r in metrics.read(workdir) if r["step"] == 60 and "eval/loss" in r
  ]
  assert said["examples"] == last["eval/examples"] == 397
  assert said["accuracy"] == last["eval/accuracy"]
  assert said["accuracy_top5"] == last["eval/accuracy_top5"]
  assert said["mean_loss"] == pytest.approx(last["eval/loss"], rel=1e-6)
  assert run["weights"]["stem"]["image"].startswith("data:image/png;base64,")


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
  evaluated = train._Run._evaluated
  said = {3: 0.9, 5: 0.1}
  monkeypatch.setattr(
    train._Run,
    "_evaluated",
    lambda run: evaluated(run) | {"eval/accuracy": said[run.step]},
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
  # Where nothing is known of the best, it says so.
  config = (workdir / "config.json").read_text()
  (workdir / "config.json").write_text("{")
  said = "/5 (step 5, newest, as config.json can't be read"
  assert said in trained.load(f"{workdir}").origin
  (workdir / "config.json").write_text(config)
  (workdir / "metrics.jsonl").write_text("{}")
  said = "/5 (step 5, newest, as far as damaged metrics tell"
  assert said in trained.load(f"{workdir}").origin


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


def test_a_report_that_is_gone_is_made_again(
  undisturbed, smoke_config, tmp_path, capsys
):
  """And one that can't be made fails no run."""
  shutil.copytree(undisturbed[0], tmp_path / "run")
  smoke_config.report = True
  smoke_config.data.threads = 2
  before = page(tmp_path / "run")
  (tmp_path / "run" / "report.html").unlink()
  train.train(smoke_config, tmp_path / "run")
  after = page(tmp_path / "run")
  assert (
    before["runs"][0]["predictions"]["confusion"]
    == after["runs"][0]["predictions"]["confusion"]
  )
  (tmp_path / "run" / "report.html").unlink()
  (tmp_path / "run" / "report.html").mkdir()
  (tmp_path / "run" / "report.json").unlink()
  (tmp_path / "run" / "report.json").mkdir()
  capsys.readouterr()
  train.train(smoke_config, tmp_path / "run")
  assert "there is no report" not in capsys.readouterr().out  # It is there.
  (tmp_path / "run" / "report.html").rmdir()
  assert train.train(smoke_config, tmp_path / "run")["eval/examples"] == 397
  assert "there is no report of this run: " in capsys.readouterr().out


def test_damaged_files_of_a_workdir_are_told_and_made_anew(
  undisturbed, smoke_config, tmp_path, capsys
):
  workdir = tmp_path / "run"
  shutil.copytree(undisturbed[0], workdir)
  config, lines = workdir / "config.json", workdir / metrics.FILE
  before = config.read_bytes()
  config.write_bytes(before.replace(b'"total": 60', b'"total": 61'))
  lines.write_bytes(lines.read_bytes().replace(b'"step": 20', b'"step": 21', 1))
  train.train(smoke_config, workdir)
  said = capsys.readouterr().out
  assert "config.json was damaged, and is written anew as checkpoint 60" in said
  assert "1 are damaged or gone (3); they are left out" in said
  assert workdir_lib.read_config(workdir)["resolved"]["total"] == 60
  assert 20 not in [
    r["step"] for r in metrics.read(workdir) if "train/loss" in r
  ]


def test_a_run_writes_config_metrics_and_checkpoints(undisturbed):
  workdir, done = undisturbed
  assert done.stderr == ""
  assert "Mixer S/4 at 16 px, 10 classes" in done.stdout
  content = json.loads((workdir / "config.json").read_text())
  assert content["config"]["model"]["variant"] == "S/4"
  assert content["resolved"]["total"] == 60
  assert content["resolved"]["train_examples"] == 1400
  found = metrics.read(workdir)
  trained = [r["step"] for r in found if "train/loss" in r]
  assert trained == [1, 10, 20, 30, 40, 50, 60]
  assert {
    "train/loss",
    "train/learning_rate",
    "train/grad_norm",
    "train/images_per_second",
    "goodput/step",
  } <= found[-3].keys()
  evaluated = {r["step"]: r for r in found if "eval/accuracy" in r}
  assert evaluated.keys() == {30, 60}
  assert evaluated[60]["eval/examples"] == 397
  assert 0.2 < evaluated[60]["eval/accuracy"] <= 1
  assert evaluated[60]["eval/accuracy_top5"] > evaluated[60]["eval/accuracy"]
  assert checkpoints.locate(str(workdir))[1] == 60
  assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))


def test_a_finished_run_stays_as_it_is(undisturbed, train_command):
  workdir, _ = undisturbed
  before = (workdir / "metrics.jsonl").read_bytes()
  done = train_command(workdir)
  assert done.returncode == 0
  assert "after step 60 of 60" in done.stdout
  assert (workdir / "metrics.jsonl").read_bytes() == before


def wait_for(process, workdir, step):
  """Until the metrics say so."""
  path = workdir / "metrics.jsonl"
  deadline = time.monotonic() + 200
  while time.monotonic() < deadline:
    if path.exists() and f'"step": {step},' in path.read_text():
      return
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.01)
  raise AssertionError("no progress")


# SIGTERM also hits two processes, in tests/reliability/test_processes.py.
@pytest.mark.parametrize(
  "number",
  [
    *(
      pytest.param(s, marks=pytest.mark.slow)
      for s in (signal.SIGTERM, signal.SIGHUP)
    ),
    signal.SIGINT,
  ],
)
def test_a_signal_saves_and_exits_with_42(
  undisturbed, train_command, tmp_path, number
):
  workdir = tmp_path / "run"
  process = train_command.start(workdir)
  wait_for(process, workdir, 1)
  process.send_signal(number)
  _, err = process.communicate(timeout=200)
  assert process.returncode == stop.PREEMPTED == 42
  assert number.name in err
  assert "Traceback" not in err
  step = checkpoints.locate(str(workdir))[1]
  # At once, not at the next of the checkpoints that come every 20 steps.
  assert 1 <= step < 60
  assert train_command(workdir).returncode == 0
  assert_same_run(workdir, undisturbed[0])


def test_nan_stops_at_its_step_and_keeps_the_last_good_checkpoint(
  train_command, tmp_path
):
  done = train_command(
    tmp_path / "run",
    "--config.optimizer.name=sgd",
    "--config.optimizer.weight_decay=0",
    "--config.optimizer.clip_norm=0",
    "--config.optimizer.learning_rate=1e6",
    "--config.checkpoint_every=1 steps",
  )
  assert done.returncode == 1
  message = re.search(
    r"error: train/\w+ is (?:nan|inf) at step (\d+): training stops there. The "
    r"newest checkpoint, of step (\d+), is from before",
    done.stderr,
  )
  assert message, done.stderr
  bad, good = map(int, message.groups())
  assert good == bad - 1
  assert checkpoints.locate(str(tmp_path / "run"))[1] == good
  params, _ = checkpoints.load_params(str(tmp_path / "run"), averaged=False)
  assert all(np.isfinite(x).all() for _, x in conftest.leaves(params))


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


def test_a_checkpoint_that_cannot_be_written_stops_with_a_sentence(
  undisturbed, train_command, tmp_path
):
  del undisturbed  # It has prepared the data.
  # The kernel refuses files over 20 kB: what a full disk is to a save.
  limit = ("bash", "-c", 'ulimit -f 20 && exec "$@"', "bash")
  process = train_command.start(tmp_path / "run", prefix=limit)
  _, err = process.communicate(timeout=200)
  assert process.returncode == 1
  assert re.search(
    r"error: the checkpoint of step \d+ could not be written to .*There is "
    r"none yet",
    err,
  ), err
  assert "Traceback" not in err
  done = train_command(tmp_path / "run")
  assert done.returncode == 0, done.stderr


def test_a_vanished_checkpoint_folder_ends_the_run(
  undisturbed, train_command, tmp_path
):
  del undisturbed
  workdir = tmp_path / "run"
  process = train_command.start(
    workdir, "--config.total=4000 steps", "--config.checkpoint_every=10 steps"
  )
  wait_for(process, workdir, 20)
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


def test_an_accelerator_that_is_not_there_is_missed(train_command, tmp_path):
  environment = {"JAX_PLATFORMS": ""}
  process = train_command.start(
    tmp_path / "run", "--platform=gpu", env=environment
  )
  _, err = process.communicate(timeout=100)
  assert process.returncode == 1
  assert err.startswith("error: JAX finds no device of the platform 'gpu'")
  assert not (tmp_path / "run").exists()


def test_drift_is_refused_with_a_diff(undisturbed, train_command):
  done = train_command(undisturbed[0], "--config.batch_size=64")
  assert done.returncode == 1
  assert "batch_size: 32 -> 64" in done.stderr


def test_another_data_set_is_refused_with_a_diff(
  undisturbed, smoke_config, tmp_path
):
  # Prepared anew with other class names of equal number.
  root = tmp_path / "data"
  shutil.copytree(smoke_config.data.data_dir, root)
  (folder,) = root.glob("digits/*")
  names = folder / "label.labels.txt"
  names.write_text(names.read_text().replace("3\n", "three\n"))
  stored.seal(folder)
  smoke_config.data.data_dir = str(root)
  for allow in ((), ("total",)):
    with pytest.raises(UserError, match=r"data_set\.class_names: '10 names, "):
      train.train(smoke_config, undisturbed[0], allow)


def test_a_total_that_lies_behind_is_refused(undisturbed, smoke_config):
  smoke_config.total = "6 steps"
  with pytest.raises(
    UserError, match="comes to 6 steps, and the run in .* has"
  ):
    train.train(smoke_config, undisturbed[0], ("total",))


@pytest.mark.slow
def test_a_wrong_first_command_can_be_mended(
  undisturbed, train_command, tmp_path
):
  wrong = train_command(tmp_path / "run", "--config.init_from=nowhere")
  assert wrong.returncode == 1
  assert "there are no weights at nowhere" in wrong.stderr
  mended = train_command(
    tmp_path / "run", f"--config.init_from={undisturbed[0]}"
  )
  assert mended.returncode == 0, mended.stderr


def test_fine_tuning_starts_from_a_workdir(
  undisturbed, train_command, tmp_path
):
  done = train_command(
    tmp_path / "run",
    f"--config.init_from={undisturbed[0]}",
    "--config.optimizer.name=sgd",
    "--config.optimizer.weight_decay=0",
  )
  assert done.returncode == 0, done.stderr
  assert "starting from the weights of" in done.stdout
  # A fresh head: the first loss is that of a guess.
  assert metrics.read(tmp_path / "run")[0]["train/loss"] == pytest.approx(
    np.log(10), rel=1e-5
  )


def test_tensorflow_is_never_imported(train_command, tmp_path):
  fake = tmp_path / "fake" / "tensorflow"
  fake.mkdir(parents=True)
  marker = tmp_path / "imported"
  (fake / "__init__.py").write_text(
    f"open({str(marker)!r}, 'w').close()\nraise ImportError('not here')\n"
  )
  environment = {"PYTHONPATH": str(tmp_path / "fake")}
  process = train_command.start(tmp_path / "run", env=environment)
  _, err = process.communicate(timeout=200)
  assert process.returncode == 0, err
  assert not marker.exists()


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
