"""Several processes: they meet, stop, fail and go on together."""

import re
import signal
import time

import numpy as np
import pytest

from mixer import metrics, stop
from tests import test_train
from tests.reliability import at, several, test_phases

HEARTBEAT = 10
undisturbed = test_phases.undisturbed


def start(data_dir, workdir, processes=2, **kwargs):
  return several.Run(data_dir, workdir, test_phases.ARGS, processes, **kwargs)


def wait_for_update(run, workdir, step):
  """Until the metrics have it."""
  deadline = time.monotonic() + 200
  while time.monotonic() < deadline:
    if any(r["step"] >= step for r in metrics.read(workdir)):
      return
    for p in run.processes:
      assert p.poll() is None, p.communicate()
    time.sleep(0.02)
  raise AssertionError("no progress")


def losses(workdir):
  return {
    r["step"]: r["train/loss"]
    for r in metrics.read(workdir)
    if "train/loss" in r
  }


def check_stop(data_dir, tmp_path, undisturbed, moment, nth, process):
  """SIGTERM to one of two: both stop at one step; then they go on."""
  workdir = tmp_path / "run"
  run = test_phases.start(
    data_dir, workdir, moment, nth, "SIGTERM", process, processes=2
  )
  assert run.wait() == [stop.PREEMPTED] * 2, (run.out, run.err)
  assert f"at {moment}" in run.out[process]
  for text in run.err:
    assert "SIGTERM on " in text and "Traceback" not in text
  steps = [r["step"] for r in metrics.read(workdir)]
  assert test_phases.newest(workdir) == max(steps, default=0)
  test_phases.finish(data_dir, workdir, undisturbed(2), 2)


@pytest.mark.slow
def test_two_processes_stop_together(data_dir, tmp_path, undisturbed):
  check_stop(data_dir, tmp_path, undisturbed, at.COMPILE, 12, 1)
  # Both have evaluated for it, the first one has written it.
  (run,) = test_train.page(tmp_path / "run")["runs"]
  last = [r for r in run["metrics"] if "eval/accuracy" in r][-1]
  assert run["predictions"]["accuracy"] == last["eval/accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize(
  ("moment", "nth"),
  [
    ("gate", 1),
    ("init", 1),
    (at.COMPILE, 1),
    ("put", 4),
    ("metrics", 12),
    ("evaluation", 2),
    ("save", 2),
    ("saving", 2),
  ],
)
def test_two_processes_stop_together_at_any_moment(
  data_dir, tmp_path, undisturbed, moment, nth, process
):
  check_stop(data_dir, tmp_path, undisturbed, moment, nth, process)


def check_loss_of_one(data_dir, tmp_path, undisturbed, process, number):
  """One is killed or stopped: the other ends, and both can go on."""
  workdir = tmp_path / "run"
  run = start(data_dir, workdir)
  wait_for_update(run, workdir, 3)
  lost, left = run.processes[process], run.processes[1 - process]
  lost.send_signal(number)
  since = time.monotonic()
  # Killed by the test's own patience, it would show as -9.
  try:
    left.communicate(timeout=20 * HEARTBEAT)
  finally:
    seconds = time.monotonic() - since
    run.kill()
  print(f"the other process ended after {seconds:.1f} s: {left.returncode}")
  assert left.returncode not in (0, stop.PREEMPTED, -signal.SIGKILL)
  test_phases.finish(data_dir, workdir, undisturbed(2), 2)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_of_two_is_lost(data_dir, tmp_path, undisturbed, process, number):
  check_loss_of_one(data_dir, tmp_path, undisturbed, process, number)


def test_processes_that_differ_do_not_start(data_dir, tmp_path):
  own = {1: ["--config.optimizer.learning_rate=0.5"]}
  run = start(data_dir, tmp_path / "run", own=own)
  assert run.wait() == [stop.FAILED] * 2
  for text in run.err:
    assert re.search(
      r"process 1 on \S+: config optimizer.learning_rate: 0.5, where process "
      r"0 on \S+ has ",
      text,
    ), text
    assert "Traceback" not in text
  assert not losses(tmp_path / "run")


@pytest.mark.slow
def test_what_fails_on_one_is_told_by_all(data_dir, tmp_path):
  # The second finds no data where it looks for them.
  own = {1: ["--config.data.name=imagenet2012"]}
  run = start(data_dir, tmp_path / "run", own=own)
  codes = run.wait()
  assert codes == [stop.FAILED] * 2, (codes, run.err)
  assert "imagenet2012" in run.err[1]
  assert "process 1 on" in run.err[0] and "imagenet2012" in run.err[0]


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_device_that_is_too_small_is_no_loss(data_dir, tmp_path, process):
  # It would be as small after a restart, which 75 asks for.
  run = test_phases.start(
    data_dir, tmp_path / "run", at.COMPILE, 3, "MEMORY", process, processes=2
  )
  assert run.wait() == [stop.FAILED] * 2, run.err
  for text in run.err:
    assert "RESOURCE_EXHAUSTED: out of memory" in text


@pytest.mark.slow
def test_processes_that_do_not_come_are_not_waited_for_long(data_dir, tmp_path):
  run = start(data_dir, tmp_path / "run")
  run.processes[1].kill()
  codes = run.wait(timeout=400)
  assert codes[0] not in (0, stop.PREEMPTED, -9)


@pytest.mark.slow
def test_four_processes(data_dir, tmp_path, undisturbed):
  workdir = tmp_path / "run"
  run = start(data_dir, workdir, 4)
  assert run.wait(timeout=500) == [stop.DONE] * 4, run.err
  one, four = losses(undisturbed(1)), losses(workdir)
  assert one.keys() == four.keys()
  np.testing.assert_allclose(list(one.values()), list(four.values()), rtol=1e-4)
  # Only the first one speaks, but for a library.
  for out in run.out[1:]:
    assert all(line.startswith("[Gloo]") for line in out.splitlines())


def test_two_processes_make_the_run_of_one(undisturbed):
  one, two = losses(undisturbed(1)), losses(undisturbed(2))
  assert one.keys() == two.keys()
  np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-4)
  a, b = (test_train.exact(undisturbed(n))[-1] for n in (1, 2))
  assert a["step"] == b["step"] == 24
  assert a["eval/examples"] == b["eval/examples"] == 397


@pytest.mark.slow
def test_other_topologies_go_on(data_dir, tmp_path, undisturbed):
  workdir = tmp_path / "run"
  for devices, processes in ((4, 1), (2, 2), (2, 1)):
    # Each stops itself after some updates.
    run = test_phases.start(
      data_dir,
      workdir,
      at.COMPILE,
      6,
      "SIGTERM",
      processes=processes,
      devices=devices,
    )
    assert run.wait() == [stop.PREEMPTED] * processes, run.err
  run = start(data_dir, workdir, 4)
  assert run.wait(timeout=500) == [stop.DONE] * 4, run.err
  # One device or several differ in the last bits of sums.
  found, expected = losses(workdir), losses(undisturbed(1))
  assert found.keys() == expected.keys()
  np.testing.assert_allclose(
    list(found.values()), list(expected.values()), rtol=1e-3
  )
