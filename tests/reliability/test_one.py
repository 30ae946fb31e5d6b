"""One process, hit at any moment: no bit of what comes out changes."""

import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

from mixer import checkpoints, metrics, stop
from tests import conftest, test_train
from tests.reliability import at, several

# Moment, and which time: in the middle of the run where there are several.
MOMENTS = [
  ("start", 1),
  ("data", 1),
  ("check", 1),
  ("gate", 1),
  ("init", 1),
  (at.COMPILE, 1),
  ("batch", 4),
  ("put", 4),
  (at.COMPILE, 12),
  ("metrics", 12),
  ("evaluation", 2),
  ("evaluated", 2),
  ("save", 2),
  ("saving", 2),
  ("commit", 2),
  ("committed", 2),
  ("committed", 3),  # The final save; what is too old is still there.
  ("examine", 1),
  ("account", 1),
  ("end", 1),
  ("report", 1),
]


def hit_once(data_dir, workdir, moment, nth, name):
  run = several.hit(data_dir, workdir, moment, nth, name)
  (code,) = run.wait()
  assert f"at {moment}" in run.out[0], run.err
  if name == "SIGKILL":
    assert code == -9
    return
  if (moment, nth) == ("committed", 3):  # The last evaluation may be on.
    assert code in (stop.DONE, stop.PREEMPTED), run.err
  else:
    done = moment in ("account", "end", "report")
    assert code == (stop.DONE if done else stop.PREEMPTED), run.err
  assert "Traceback" not in run.err[0]
  # No update is lost: the metrics end where the newest checkpoint is.
  steps = [r["step"] for r in metrics.read(workdir)]
  assert several.newest(workdir) == max(steps, default=0)


def test_killed_at_a_commit_and_stopped_at_an_update(
  data_dir, tmp_path, undisturbed_run
):
  workdir = tmp_path / "run"
  hit_once(data_dir, workdir, "commit", 2, "SIGKILL")
  assert several.newest(workdir) == 8
  hit_once(data_dir, workdir, at.COMPILE, 4, "SIGINT")
  assert several.newest(workdir) == 12
  run = several.finish(data_dir, workdir, undisturbed_run())
  assert "lost to restarts" in run.out[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize(("moment", "nth"), MOMENTS)
def test_a_signal_at_any_moment(
  data_dir, tmp_path, undisturbed_run, moment, nth, name
):
  hit_once(data_dir, tmp_path / "run", moment, nth, name)
  several.finish(data_dir, tmp_path / "run", undisturbed_run())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_signal_while_restoring(data_dir, tmp_path, undisturbed_run, name):
  workdir = tmp_path / "run"
  shutil.copytree(undisturbed_run(), workdir)
  shutil.rmtree(workdir / "checkpoints" / "24")
  run = several.hit(data_dir, workdir, "restore", 1, name)
  assert run.wait() == [-9 if name == "SIGKILL" else stop.PREEMPTED]
  several.finish(data_dir, workdir, undisturbed_run())


@pytest.mark.slow
def test_killed_twenty_times_at_random(data_dir, tmp_path):
  args = (
    "--config.total=1500 steps",
    "--config.checkpoint_every=10 steps",
    "--config.eval_every=500 steps",
  )
  start = time.monotonic()
  expected = several.Run(data_dir, tmp_path / "expected", *args)
  expected.wait_for_line("step    1/")
  start_up = time.monotonic() - start
  assert expected.wait() == [stop.DONE], expected.err
  rng = random.Random(1)
  workdir = tmp_path / "killed"
  for i in range(20):
    run = several.Run(data_dir, workdir, *args)
    if i % 2:  # Before its first step.
      time.sleep(rng.uniform(0, start_up))
    else:
      goal = several.newest(workdir) + rng.randrange(10, 50)
      run.wait_for_update(workdir, goal)
      time.sleep(rng.uniform(0, 0.05))
    run.kill()
    # It may have come to its end, if this test was held up for long.
    assert run.processes[0].returncode in (-signal.SIGKILL, 0)
  last = several.Run(data_dir, workdir, *args)
  assert last.wait() == [stop.DONE], last.err
  test_train.assert_same_run(workdir, tmp_path / "expected")


@pytest.mark.slow
def test_a_second_run_is_refused_until_the_first_has_died(
  data_dir, tmp_path, undisturbed_run
):
  workdir = tmp_path / "run"
  first = several.hit(data_dir, workdir, at.COMPILE, 12, "HANG")
  first.wait_for_line("at ")
  who = f"process {first.processes[0].pid} on {os.uname().nodename}"
  before = (workdir / "config.json").read_bytes()
  second = several.Run(data_dir, workdir, "--config.seed=9")
  assert second.wait() == [stop.FAILED]
  assert f"is in use: {who}" in second.err[0]
  assert "Traceback" not in second.err[0]
  assert (workdir / "config.json").read_bytes() == before
  first.kill()
  third = several.finish(data_dir, workdir, undisturbed_run())
  assert who in third.out[0]  # It says whose lock it found.
  assert metrics.read(workdir)[-1]["goodput/lost"] > 0


@pytest.mark.slow
def test_a_hang_ends_with_every_threads_place(data_dir, tmp_path):
  args = ["--config.hang_seconds=5"]
  run = several.hit(data_dir, tmp_path, at.COMPILE, 12, "HANG", args=args)
  assert run.wait() == [stop.LOST]
  assert "no progress for 5 s (hang_seconds)" in run.err[0]
  assert "at.py" in run.err[0] and "in train" in run.err[0]


_CLOCK = """
import sys, time
shift = 0.0
def jumping(real):
  def clock():
    global shift
    shift = -86400 * 365.0 - shift + 1e5  # To and fro by a year.
    return real() + shift
  return clock
time.time = jumping(time.time)
sys.argv = sys.argv[1:]
import runpy
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(
  data_dir, tmp_path, undisturbed_run
):
  workdir, script = tmp_path / "run", tmp_path / "jumping.py"
  script.write_text(_CLOCK)
  program = (str(script), "train.py")
  env = {"PYTHONPATH": str(conftest.ROOT)}
  run = several.Run(data_dir, workdir, program=program, env=env)
  assert run.wait() == [stop.DONE], run.err
  test_train.assert_same_run(workdir, undisturbed_run())
  seconds = [
    sum(v for k, v in r.items() if k.startswith("goodput/"))
    for r in metrics.read(workdir)
    if "goodput/start" in r
  ]
  assert seconds == sorted(seconds) and 0 < seconds[-1] < 3600


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_a_full_disk_is_told_and_the_run_goes_on(
  data_dir, tmp_path, undisturbed_run
):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("no disk can be mounted here")
  try:
    workdir, filler = disk / "run", disk / "filler"
    first = several.hit(data_dir, workdir, at.COMPILE, 12, "SIGTERM")
    assert first.wait() == [stop.PREEMPTED], first.err
    kept = checkpoints.committed(workdir)
    with pytest.raises(OSError, match="No space"), filler.open("wb") as f:
      while True:
        f.write(bytes(1 << 16))
        f.flush()
    full = several.Run(data_dir, workdir)
    assert full.wait() == [stop.FAILED], full.err
    assert "error: " in full.err[0] and "Traceback" not in full.err[0]
    assert re.search("space|disk", full.err[0])
    assert set(kept) <= set(checkpoints.committed(workdir))
    filler.unlink()
    several.finish(data_dir, workdir, undisturbed_run())
  finally:
    subprocess.run(["umount", str(disk)], check=True)
