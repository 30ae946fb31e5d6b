"""A NaN in the middle of a run: stop, skip, replay."""

import json
import math
import os
import subprocess
import sys

import pytest

import input_pipeline
from mixer import checkpoints, metrics, stop
from tests import conftest, test_train
from tests.reliability import several, test_phases


def start(data_dir, workdir, updates, *args):
  program = ("-m", "tests.reliability.poison", updates, "train")
  args = (*test_phases.ARGS, *args)
  run = several.Run(data_dir, workdir, args, program=program)
  return run.wait()[0], run


@pytest.fixture(scope="module")
def stopped(data_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("nan") / "run"
  return (workdir, *start(data_dir, workdir, "12"))


def test_it_stops_at_the_update_and_names_the_records(stopped, smoke_config):
  workdir, code, run = stopped
  assert code == stop.FAILED
  (err,) = run.err
  assert "train/loss is nan at step 12: training stops there." in err
  assert "The newest checkpoint, of step 8, is from before." in err
  command = f"python -m mixer replay {workdir} --step=12"
  assert command in err and "Traceback" not in err
  report = json.loads((workdir / "nonfinite" / "12.json").read_text())
  train_split, _ = input_pipeline.open_splits(smoke_config)
  expected = input_pipeline.train_records(train_split, smoke_config, 12)
  assert report["records"] == expected and len(expected) == 32
  assert report["replay"] == command
  assert f"records {expected[0]}, {expected[1]}, " in err
  assert checkpoints.committed(workdir) == [8]


def test_the_replay_finds_it(stopped):
  workdir = stopped[0]
  done = subprocess.run(
    [
      sys.executable,
      *("-m", "tests.reliability.poison", "12", "replay"),
      *(str(workdir), "--step=12", "--json"),
    ],
    cwd=conftest.ROOT,
    env=os.environ | {"XLA_FLAGS": ""},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["from_step"] == 8
  assert all(map(math.isnan, found["losses"]))
  assert all(map(math.isfinite, found["weights"].values()))
  report = json.loads((workdir / "nonfinite" / "12.json").read_text())
  assert found["records"] == report["records"]


@pytest.mark.slow
def test_broken_updates_are_skipped_if_asked(data_dir, tmp_path):
  workdir = tmp_path / "run"
  code, run = start(data_dir, workdir, "12,13", "--config.nonfinite=skip")
  assert code == stop.DONE, run.err
  assert "train/loss is nan at step 12: skipped." in run.out[0]
  records = {r["step"]: r for r in metrics.read(workdir) if "train/loss" in r}
  assert len(records) == 24
  assert [s for s, r in records.items() if r["train/skipped"]] == [12, 13]
  assert records[12]["train/loss"] is None
  # The weights stay as they were until the next sound update.
  norms = [records[s]["train/param_norm"] for s in (12, 13, 14)]
  assert len({*norms}) == 1
  assert records[15]["train/param_norm"] != norms[0]
  # And a run that was stopped goes on so, by the same command.
  assert {p.name for p in (workdir / "nonfinite").iterdir()} == {
    "12.json",
    "13.json",
  }


@pytest.mark.slow
def test_too_many_in_a_row_stop_it(data_dir, tmp_path):
  code, run = start(
    data_dir,
    tmp_path / "run",
    "10,11,12,13",
    "--config.nonfinite=skip",
    "--config.nonfinite_limit=3",
  )
  assert code == stop.FAILED
  assert (
    "at step 13: training stops there. The 3 updates before it were"
    in (run.err[0])
  )


@pytest.mark.slow
def test_what_was_stopped_goes_on_without_the_update(data_dir, tmp_path):
  # Stopped by it, then gone on with: the run that skips it from the start.
  first, second = tmp_path / "first", tmp_path / "second"
  assert start(data_dir, first, "12")[0] == stop.FAILED
  skip = "--config.nonfinite=skip"
  assert start(data_dir, first, "12", skip)[0] == stop.DONE
  assert start(data_dir, second, "12", skip)[0] == stop.DONE
  found, expected = (
    [
      {k: v for k, v in r.items() if k != "train/skipped"}
      for r in test_train.exact(workdir)
    ]
    for workdir in (first, second)
  )
  # The two modes are compiled apart, and differ in last bits.
  assert len(found) == len(expected)
  for one, other in zip(found, expected, strict=True):
    assert one == {
      k: v if v is None else pytest.approx(v, rel=1e-5)
      for k, v in other.items()
    }
