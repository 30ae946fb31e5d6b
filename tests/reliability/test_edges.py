"""Two runs in one workdir, lost folders, dead workers, hangs, odd clocks."""

import os
import re
import signal
import subprocess

import pytest

from mixer import checkpoints, metrics, stop
from tests import conftest, test_train
from tests.reliability import at, several, test_phases, test_processes

undisturbed = test_phases.undisturbed


def at_rest(data_dir, workdir, moment=at.COMPILE, nth=12, **kwargs):
  """A run that has come to a moment and goes no further."""
  run = test_phases.start(data_dir, workdir, moment, nth, "HANG", **kwargs)
  for line in run.processes[0].stdout:
    if line.startswith("at "):
      return run
  raise AssertionError(run.processes[0].communicate())


@pytest.mark.slow
def test_a_second_run_is_refused_until_the_first_has_died(
  data_dir, tmp_path, undisturbed
):
  workdir = tmp_path / "run"
  first = at_rest(data_dir, workdir)
  pid = first.processes[0].pid
  before = (workdir / "config.json").read_bytes()
  second = several.Run(
    data_dir, workdir, [*test_phases.ARGS, "--config.seed=9"]
  )
  assert second.wait() == [stop.FAILED]
  assert "is in use" in second.err[0] and str(pid) in second.err[0]
  assert os.uname().nodename in second.err[0]
  assert "Traceback" not in second.err[0]
  assert (workdir / "config.json").read_bytes() == before
  first.kill()
  third = several.Run(data_dir, workdir, test_phases.ARGS)
  assert third.wait() == [stop.DONE], third.err
  assert str(pid) in third.out[0]  # It says whose lock it found.
  test_train.assert_same_run(workdir, undisturbed(1))


@pytest.mark.slow
def test_a_hang_ends_with_every_threads_place(data_dir, tmp_path, undisturbed):
  workdir = tmp_path / "run"
  run = test_phases.start(
    data_dir, workdir, at.COMPILE, 12, "HANG", more=["--config.hang_seconds=5"]
  )
  assert run.wait() == [stop.LOST]
  assert "no progress for 5 s (hang_seconds)" in run.err[0]
  assert "at.py" in run.err[0] and "in train" in run.err[0]
  test_phases.finish(data_dir, workdir, undisturbed(1))


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_all_end_when_one_of_two_hangs(
  data_dir, tmp_path, undisturbed, process
):
  workdir = tmp_path / "run"
  run = test_phases.start(
    data_dir,
    workdir,
    at.COMPILE,
    12,
    "HANG",
    process,
    processes=2,
    more=["--config.hang_seconds=20"],
  )
  codes = run.wait()
  assert not {*codes} & {stop.DONE, stop.PREEMPTED, -signal.SIGKILL}, codes
  test_phases.finish(data_dir, workdir, undisturbed(2), 2)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["workdir", "checkpoints"])
def test_a_folder_that_vanishes_is_told(data_dir, tmp_path, what, undisturbed):
  workdir = tmp_path / "run"
  args = (*test_phases.ARGS, "--config.total=2000 steps")
  run = several.Run(data_dir, workdir, args)
  test_processes.wait_for_update(run, workdir, 20)
  gone = workdir if what == "workdir" else workdir / "checkpoints"
  gone.rename(tmp_path / "elsewhere")
  if what == "workdir":
    assert run.wait() == [stop.FAILED]
    assert "error: " in run.err[0] and "Traceback" not in run.err[0]
    assert str(workdir) in run.err[0]
  else:  # Made anew: what is being computed is worth more than the folder.
    test_processes.wait_for_update(run, workdir, 60)
    run.processes[0].send_signal(signal.SIGTERM)
    assert run.wait() == [stop.PREEMPTED], run.err
    assert "had vanished" in run.out[0]
    assert checkpoints.committed(workdir)


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


def test_a_clock_that_jumps_changes_nothing(data_dir, tmp_path, undisturbed):
  workdir, script = tmp_path / "run", tmp_path / "jumping.py"
  script.write_text(_CLOCK)
  program = (str(script), "train.py")
  env = {"PYTHONPATH": str(conftest.ROOT)}
  run = several.Run(
    data_dir, workdir, test_phases.ARGS, program=program, env=env
  )
  assert run.wait() == [stop.DONE], run.err
  test_train.assert_same_run(workdir, undisturbed(1))
  seconds = [
    sum(v for k, v in r.items() if k.startswith("goodput/"))
    for r in metrics.read(workdir)
    if "goodput/start" in r
  ]
  assert seconds == sorted(seconds) and 0 < seconds[-1] < 3600


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_a_full_disk_is_told_and_the_run_goes_on(
  data_dir, tmp_path, undisturbed
):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("no disk can be mounted here")
  try:
    workdir = disk / "run"
    first = test_phases.start(data_dir, workdir, at.COMPILE, 12, "SIGTERM")
    assert first.wait() == [stop.PREEMPTED], first.err
    kept = checkpoints.committed(workdir)
    filler = disk / "filler"
    with open(filler, "wb") as f:
      try:
        while True:
          f.write(bytes(1 << 16))
          f.flush()
      except OSError:
        pass
    full = several.Run(data_dir, workdir, test_phases.ARGS)
    assert full.wait() == [stop.FAILED], full.err
    assert "error: " in full.err[0] and "Traceback" not in full.err[0]
    assert re.search("space|disk", full.err[0])
    assert set(kept) <= set(checkpoints.committed(workdir))
    filler.unlink()
    test_phases.finish(data_dir, workdir, undisturbed(1))
  finally:
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_where_the_time_went_is_told(undisturbed, data_dir, tmp_path):
  workdir = tmp_path / "run"
  killed = at_rest(data_dir, workdir, nth=15)
  killed.kill()
  spent = metrics.read(workdir)
  done = several.Run(data_dir, workdir, test_phases.ARGS)
  assert done.wait() == [stop.DONE], done.err
  last = metrics.read(workdir)[-1]
  table = done.out[0]
  for words in ("waiting for data", "lost to restarts", "in all"):
    assert words in table
  # The updates after checkpoint 8 were made in vain.
  total = {
    r["step"]: sum(v for k, v in r.items() if k.startswith("goodput/"))
    for r in spent
    if "goodput/start" in r
  }
  in_vain = total[max(total)] - total[8]
  assert last["goodput/lost"] == pytest.approx(in_vain, abs=0.01)
  assert set(last) == {"step"} | {
    f"goodput/{kind}"
    for kind in ("start compile data step evaluation saving lost".split())
  }


_NOTING = """
import logging, os, runpy, sys
for name in ("interpreters.pxla", "compiler"):  # What is compiled, and found.
  logger = logging.getLogger(f"jax._src.{name}")
  logger.setLevel(logging.DEBUG)
  logger.addHandler(logging.FileHandler(os.environ["NOTES"]))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_the_update_is_compiled_once(data_dir, tmp_path):
  script = tmp_path / "noting.py"
  script.write_text(_NOTING)
  stopped = ("tests.reliability.at", at.COMPILE, "12", "SIGTERM", "0", "--")
  compiled = 0
  for words, code in ((stopped, stop.PREEMPTED), (("train",), stop.DONE)):
    log = tmp_path / f"{words[0]}.log"
    env = {
      "PYTHONPATH": str(conftest.ROOT),
      "NOTES": str(log),
      "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
    }
    run = several.Run(
      data_dir,
      tmp_path / "run",
      test_phases.ARGS,
      program=(str(script), *words),
      env=env,
    )
    assert run.wait() == [code], run.err
    text = log.read_text()
    assert len(re.findall(r"Compiling jit\(train_step\)", text)) == 1
    found = "Persistent compilation cache hit for 'jit_train_step'" in text
    compiled += not found
  assert compiled == 1
