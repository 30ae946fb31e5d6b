"""Several processes: they meet, stop, fail and go on together."""

import re
import signal

import numpy as np
import pytest

from mixer import metrics, stop
from tests import test_train
from tests.reliability import conftest


@pytest.mark.slow
def test_two_processes_stop_together(start, tmp_path, finish):
  """SIGTERM to one of two: both stop at one step; then they go on."""
  # Both know of it within some updates, which must not be the last ones.
  workdir, long = tmp_path / "run", "--config.total=96 steps"
  for moment, nth, process in (
    ("gate", 1, 1),
    ("update", 1, 0),
    ("metrics", 4, 1),
    ("evaluation", 1, 0),
    ("save", 1, 0),
    ("saving", 1, 1),
  ):
    hit = (moment, nth, "SIGTERM", process)
    run = start(workdir, long, hit=hit, processes=2)
    assert run.wait() == [stop.PREEMPTED] * 2, (hit, run.out, run.err)
    assert f"at {moment}" in run.out[process]
    for text in run.err:
      assert "SIGTERM on " in text and "Traceback" not in text
    steps = [r["step"] for r in metrics.read(workdir)]
    assert conftest.newest(workdir) == max(steps, default=0)
  finish(workdir, 2, long)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_of_two_is_lost(start, tmp_path, finish, number):
  """The other ends, and both can go on."""
  workdir = tmp_path / "run"
  for process in (0, 1):
    run = start(workdir, processes=2)
    run.wait_for_line("step ")  # Of its own: the metrics have older ones.
    lost, left = run.processes[process], run.processes[1 - process]
    lost.send_signal(number)
    # Killed by the test's own patience, it would show as -9.
    try:
      left.communicate(timeout=200)
    finally:
      run.kill()
    assert left.returncode not in (0, stop.PREEMPTED, -signal.SIGKILL)
  finish(workdir, 2)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_all_end_when_one_of_two_hangs(start, tmp_path, process):
  hit = ("metrics", 12, "HANG", process)
  run = start(tmp_path, "--config.hang_seconds=20", hit=hit, processes=2)
  codes = run.wait()
  assert not {*codes} & {stop.DONE, stop.PREEMPTED, -signal.SIGKILL}, codes


def test_processes_that_differ_do_not_start(start, tmp_path):
  own = ["--config.optimizer.learning_rate=0.5"]
  run = start(tmp_path / "run", processes=2, own=own)
  assert run.wait() == [stop.FAILED] * 2
  for text in run.err:
    assert re.search(
      r"config.optimizer.learning_rate: \S+ -> 0.5 \(process 0 on \S+ -> "
      r"process 1 on ",
      text,
    ), text
    assert "Traceback" not in text
  assert not conftest.losses(tmp_path / "run")


@pytest.mark.slow
def test_what_fails_on_one_is_told_by_all(start, tmp_path):
  # The second finds no data where it looks for them.
  own = ["--config.data.name=imagenet2012"]
  run = start(tmp_path / "run", processes=2, own=own)
  assert run.wait() == [stop.FAILED] * 2, run.err
  assert "imagenet2012" in run.err[1]
  assert "process 1 on" in run.err[0] and "imagenet2012" in run.err[0]
  # A device that is too small: it would be as small after a restart.
  run = start(tmp_path / "b", hit=("update", 3, "MEMORY", 1), processes=2)
  assert run.wait() == [stop.FAILED] * 2, run.err
  for text in run.err:
    assert "RESOURCE_EXHAUSTED: out of memory" in text
  # One that doesn't come isn't waited for long.
  run = start(tmp_path / "c", processes=2)
  run.processes[1].kill()
  assert run.wait()[0] not in (0, stop.PREEMPTED, -9)


@pytest.mark.slow
def test_any_number_of_processes_make_the_run_of_one(
  start, tmp_path, undisturbed_run
):
  one = undisturbed_run(1)  # First: who prepares the data says so.
  run = start(tmp_path / "four", processes=4)
  assert run.wait() == [stop.DONE] * 4, run.err
  # Only the first one speaks, but for a library.
  for out in run.out[1:]:
    assert all(line.startswith("[Gloo]") for line in out.splitlines())
  last, one = test_train.exact(one)[-1], conftest.losses(one)
  for workdir in (undisturbed_run(2), tmp_path / "four"):
    found = conftest.losses(workdir)
    assert found.keys() == one.keys()
    np.testing.assert_allclose([*found.values()], [*one.values()], rtol=1e-4)
    record = test_train.exact(workdir)[-1]
    for name in ("step", "eval/examples"):
      assert record[name] == last[name]


@pytest.mark.slow
def test_other_topologies_go_on(start, tmp_path, undisturbed_run):
  workdir, hit = tmp_path / "run", ("metrics", 6, "SIGTERM")
  for devices, processes in ((4, 1), (2, 2), (2, 1)):
    # Each stops itself after some updates.
    run = start(workdir, hit=hit, processes=processes, devices=devices)
    assert run.wait() == [stop.PREEMPTED] * processes, run.err
  run = start(workdir, processes=4)
  assert run.wait() == [stop.DONE] * 4, run.err
  # One device or several differ in the last bits of sums.
  found = conftest.losses(workdir)
  expected = conftest.losses(undisturbed_run(1))
  assert found.keys() == expected.keys()
  np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-3)
