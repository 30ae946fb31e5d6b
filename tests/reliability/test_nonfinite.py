"""A NaN in the middle of a run: stop, skip, replay."""

import json
import math
import os
import subprocess
import sys

import pytest

from mixer import checkpoints, metrics, stop
from tests import conftest, test_train
from tests.reliability import several


def start(data_dir, workdir, updates, *args):
  program = ("-m", "tests.reliability.poison", updates, "train")
  run = several.Run(data_dir, workdir, *args, program=program)
  return run.wait()[0], run


@pytest.mark.slow
def test_it_stops_at_the_update_and_the_replay_finds_it(data_dir, tmp_path):
  workdir = tmp_path / "run"
  code, run = start(data_dir, workdir, "12")
  assert code == stop.FAILED
  (err,) = run.err
  assert "train/loss is nan at step 12: training stops there. All chec" in err
  command = f"python -m mixer replay {workdir} --step=12"
  assert command in err and "Traceback" not in err
  report = json.loads((workdir / "nonfinite" / "12.json").read_text())
  assert report["replay"] == command and len(report["records"]) == 32
  assert checkpoints.committed(workdir) == [8]
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
  assert found["records"] == report["records"]


@pytest.mark.slow
def test_broken_updates_are_skipped_if_asked(data_dir, tmp_path):
  skip = "--config.nonfinite=skip"
  skipped, stopped = tmp_path / "skipped", tmp_path / "stopped"
  code, run = start(data_dir, skipped, "12,13", skip)
  assert code == stop.DONE, run.err
  assert "train/loss is nan at step 12: skipped." in run.out[0]
  records = {r["step"]: r for r in metrics.read(skipped) if "train/loss" in r}
  assert len(records) == 24
  assert [s for s, r in records.items() if r["train/skipped"]] == [12, 13]
  # The weights stay as they are.
  norms = {s: r["train/param_norm"] for s, r in records.items()}
  assert norms[12] == norms[13] == norms[14] != norms[15]
  # Stopped by it, then gone on with: the run that skips it from the start.
  assert start(data_dir, stopped, "12,13")[0] == stop.FAILED
  assert start(data_dir, stopped, "12,13", skip)[0] == stop.DONE
  found, expected = (
    [
      {k: v for k, v in r.items() if k != "train/skipped"}
      for r in test_train.exact(workdir)
    ]
    for workdir in (stopped, skipped)
  )
  # The two modes are compiled apart, and differ in last bits.
  for one, other in zip(found, expected, strict=True):
    assert one == {
      k: v if v is None else pytest.approx(v, rel=1e-5)
      for k, v in other.items()
    }
