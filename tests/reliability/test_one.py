"""One process, hit at any moment: no bit of what comes out changes."""

import json
import math
import os
import random
import re
import signal
import subprocess
import time

import pytest

from mixer import checkpoints, metrics, stop
from tests import test_train
from tests.reliability import conftest


def hit_once(start, workdir, moment, nth, name):
  """A start that is hit, and ends as it should."""
  run = start(workdir, hit=(moment, nth, name))
  (code,) = run.wait()
  assert f"at {moment}" in run.out[0], run.err
  if name == "SIGKILL":
    assert code == -9
    return
  done = moment in ("account", "end", "report")
  if moment in ("commit", "committed", "examine", "evaluated"):
    # It may be the last.
    done = code == stop.DONE and conftest.newest(workdir) == 24
  if "nothing was under way" in run.err[0]:  # But the report, at a late start.
    done = False
  assert code == (stop.DONE if done else stop.PREEMPTED), run.err
  assert "Traceback" not in run.err[0]
  # No update is lost: the metrics end where the newest checkpoint is.
  steps = [r["step"] for r in metrics.read(workdir)]
  assert conftest.newest(workdir) == max(steps, default=0)


def test_killed_at_a_commit_and_stopped_at_an_update(start, tmp_path, finish):
  workdir = tmp_path / "run"
  hit_once(start, workdir, "commit", 2, "SIGKILL")
  assert conftest.newest(workdir) == 8
  hit_once(start, workdir, "metrics", 4, "SIGINT")
  # A thread hears the signal, at this check of the loop or by the next one.
  assert conftest.newest(workdir) in (12, 13)
  run = finish(workdir)
  assert "lost to restarts" in run.out[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize(
  "moments",
  [
    "start data check gate init batch update account",
    "metrics evaluation committed restore evaluated saving save commit end",
    "commit committed restore examine report",
  ],
)
def test_signals_at_moments_one_after_another(
  start, tmp_path, finish, moments, name
):
  workdir, last = tmp_path / "run", {"account", "end", "report"}
  for moment in moments.split():
    if conftest.newest(workdir) == 24 and moment not in last:
      continue
    hit_once(start, workdir, moment, 1, name)
    if moment in last and name == "SIGTERM":
      break  # It is done.
  finish(workdir)


@pytest.mark.slow
def test_killed_at_random(start, tmp_path):
  args = (
    "--config.total=1000 steps",
    "--config.checkpoint_every=10 steps",
    "--config.eval_every=500 steps",
  )
  begin = time.monotonic()
  expected = start(tmp_path / "expected", *args)
  expected.wait_for_line("step    1/")
  start_up = time.monotonic() - begin
  assert expected.wait() == [stop.DONE], expected.err
  rng, workdir = random.Random(1), tmp_path / "killed"
  for i in range(10):
    run = start(workdir, *args)
    if i % 2:  # Before its first step.
      time.sleep(rng.uniform(0, start_up))
    else:
      goal = conftest.newest(workdir) + rng.randrange(10, 50)
      run.wait_for_update(workdir, goal)
      time.sleep(rng.uniform(0, 0.05))
    run.kill()
    # It may have come to its end, if this test was held up for long.
    assert run.processes[0].returncode in (-signal.SIGKILL, 0)
  last = start(workdir, *args)
  assert last.wait() == [stop.DONE], last.err
  test_train.assert_same_run(workdir, tmp_path / "expected")


@pytest.mark.slow
def test_a_second_run_is_refused_until_the_first_hangs_and_ends(
  start, tmp_path, finish
):
  workdir, hang = tmp_path / "run", "--config.hang_seconds=40"
  first = start(workdir, hang, hit=("metrics", 12, "HANG"))
  first.wait_for_line("at ")
  who = f"process {first.processes[0].pid} on {os.uname().nodename}"
  before = (workdir / "config.json").read_bytes()
  second = start(workdir, "--config.seed=9")
  assert second.wait() == [stop.FAILED]
  assert f"is in use: {who}" in second.err[0]
  assert "Traceback" not in second.err[0]
  assert (workdir / "config.json").read_bytes() == before
  assert first.wait() == [stop.LOST]
  assert "no progress for 40 s (hang_seconds)" in first.err[0]
  assert "at.py" in first.err[0] and "in train" in first.err[0]
  third = finish(workdir)
  assert who in third.out[0]  # It says whose lock it found.
  assert metrics.read(workdir)[-1]["goodput/lost"] > 0


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(start, tmp_path, undisturbed_run):
  run = start(tmp_path / "run", hit=("start", 1, "CLOCK"))
  assert run.wait() == [stop.DONE], run.err
  test_train.assert_same_run(tmp_path / "run", undisturbed_run(1))
  seconds = [
    sum(v for k, v in r.items() if k.startswith("goodput/"))
    for r in metrics.read(tmp_path / "run")
    if "goodput/start" in r
  ]
  assert seconds == sorted(seconds) and 0 < seconds[-1] < 3600


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_a_full_disk_is_told_and_the_run_goes_on(start, tmp_path, finish):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("no disk can be mounted here")
  try:
    workdir, filler = disk / "run", disk / "filler"
    hit_once(start, workdir, "metrics", 12, "SIGTERM")
    kept = checkpoints.committed(workdir)
    with pytest.raises(OSError, match="No space"), filler.open("wb") as f:
      while True:
        f.write(bytes(1 << 16))
        f.flush()
    full = start(workdir)
    assert full.wait() == [stop.FAILED], full.err
    assert "error: " in full.err[0] and "Traceback" not in full.err[0]
    assert re.search("space|disk", full.err[0])
    assert {*kept} <= {*checkpoints.committed(workdir)}
    filler.unlink()
    finish(workdir)
  finally:
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_nan_stops_at_its_update_and_the_replay_finds_it(start, tmp_path):
  workdir = tmp_path / "run"
  run = start(workdir, hit=("poison", "12", "train"))
  assert run.wait() == [stop.FAILED]
  assert "loss is nan at step 12: training stops there. All chec" in run.err[0]
  command = f"python -m mixer replay {workdir} --step=12"
  assert command in run.err[0] and "Traceback" not in run.err[0]
  report = json.loads((workdir / "nonfinite" / "12.json").read_text())
  assert report["replay"] == command and len(report["records"]) == 32
  assert checkpoints.committed(workdir) == [8]
  done = subprocess.run(
    [
      *(test_train.conftest.sys.executable, "-m", "tests.reliability.at"),
      *("poison", "12", "replay", "0", "--"),
      *(str(workdir), "--step=12", "--json"),
    ],
    cwd=test_train.conftest.ROOT,
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
def test_broken_updates_are_skipped_if_asked(start, tmp_path):
  skip, poison = "--config.nonfinite=skip", ("poison", "12,13", "train")
  skipped, stopped = tmp_path / "skipped", tmp_path / "stopped"
  run = start(skipped, skip, hit=poison)
  assert run.wait() == [stop.DONE], run.err
  assert "train/loss is nan at step 12: skipped." in run.out[0]
  records = {r["step"]: r for r in metrics.read(skipped) if "train/loss" in r}
  assert len(records) == 24
  assert [s for s, r in records.items() if r["train/skipped"]] == [12, 13]
  # The weights stay as they are.
  norms = {s: r["train/param_norm"] for s, r in records.items()}
  assert norms[12] == norms[13] == norms[14] != norms[15]
  # Stopped by it, then gone on with: the run that skips it from the start.
  assert start(stopped, hit=poison).wait() == [stop.FAILED]
  assert start(stopped, skip, hit=poison).wait() == [stop.DONE]
  found, expected = map(test_train.exact, (stopped, skipped))
  # The two modes are compiled apart, and differ in last bits.
  for one, other in zip(found, expected, strict=True):
    for name, value in other.items():
      if name in one and value is not None:
        assert one[name] == pytest.approx(value, rel=1e-5), name
