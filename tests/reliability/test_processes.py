"""Several processes: they meet, stop, fail and go on together."""

import re
import signal
import time

import numpy as np
import pytest

from mixer import metrics, stop
from tests import test_train
from tests.reliability import at, several

HEARTBEAT = 10


@pytest.mark.slow
@pytest.mark.parametrize(
  ("moment", "nth", "process"),
  [
    ("gate", 1, 1),
    (at.COMPILE, 1, 0),
    (at.COMPILE, 12, 1),
    ("metrics", 12, 0),
    ("evaluation", 2, 1),
    ("save", 2, 0),
    ("saving", 2, 1),
  ],
)
def test_two_processes_stop_together(
  data_dir, tmp_path, undisturbed_run, moment, nth, process
):
  """SIGTERM to one of two: both stop at one step; then they go on."""
  workdir = tmp_path / "run"
  run = several.hit(
    data_dir, workdir, moment, nth, "SIGTERM", process, processes=2
  )
  assert run.wait() == [stop.PREEMPTED] * 2, (run.out, run.err)
  assert f"at {moment}" in run.out[process]
  for text in run.err:
    assert "SIGTERM on " in text and "Traceback" not in text
  steps = [r["step"] for r in metrics.read(workdir)]
  assert several.newest(workdir) == max(steps, default=0)
  several.finish(data_dir, workdir, undisturbed_run(2), 2)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_of_two_is_lost(
  data_dir, tmp_path, undisturbed_run, process, number
):
  """The other ends, and both can go on."""
  workdir = tmp_path / "run"
  run = several.Run(data_dir, workdir, processes=2)
  run.wait_for_update(workdir, 3)
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
  several.finish(data_dir, workdir, undisturbed_run(2), 2)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_all_end_when_one_of_two_hangs(data_dir, tmp_path, process):
  args = ["--config.hang_seconds=20"]
  run = several.hit(
    data_dir, tmp_path, at.COMPILE, 12, "HANG", process, args, processes=2
  )
  codes = run.wait()
  assert not {*codes} & {stop.DONE, stop.PREEMPTED, -signal.SIGKILL}, codes


def test_processes_that_differ_do_not_start(data_dir, tmp_path):
  own = ["--config.optimizer.learning_rate=0.5"]
  run = several.Run(data_dir, tmp_path / "run", processes=2, own=own)
  assert run.wait() == [stop.FAILED] * 2
  for text in run.err:
    assert re.search(
      r"process 1 on \S+: config optimizer.learning_rate: 0.5, where process "
      r"0 on \S+ has ",
      text,
    ), text
    assert "Traceback" not in text
  assert not several.losses(tmp_path / "run")


@pytest.mark.slow
def test_what_fails_on_one_is_told_by_all(data_dir, tmp_path):
  # The second finds no data where it looks for them.
  own = ["--config.data.name=imagenet2012"]
  run = several.Run(data_dir, tmp_path / "run", processes=2, own=own)
  assert run.wait() == [stop.FAILED] * 2, run.err
  assert "imagenet2012" in run.err[1]
  assert "process 1 on" in run.err[0] and "imagenet2012" in run.err[0]


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_device_that_is_too_small_is_no_loss(data_dir, tmp_path, process):
  # It would be as small after a restart, which 75 asks for.
  run = several.hit(
    data_dir, tmp_path, at.COMPILE, 3, "MEMORY", process, processes=2
  )
  assert run.wait() == [stop.FAILED] * 2, run.err
  for text in run.err:
    assert "RESOURCE_EXHAUSTED: out of memory" in text


@pytest.mark.slow
def test_processes_that_do_not_come_are_not_waited_for_long(data_dir, tmp_path):
  run = several.Run(data_dir, tmp_path / "run", processes=2)
  run.processes[1].kill()
  assert run.wait()[0] not in (0, stop.PREEMPTED, -9)


@pytest.mark.slow
def test_any_number_of_processes_make_the_run_of_one(
  data_dir, tmp_path, undisturbed_run
):
  run = several.Run(data_dir, tmp_path / "four", processes=4)
  assert run.wait() == [stop.DONE] * 4, run.err
  # Only the first one speaks, but for a library.
  for out in run.out[1:]:
    assert all(line.startswith("[Gloo]") for line in out.splitlines())
  one = several.losses(undisturbed_run(1))
  last = test_train.exact(undisturbed_run(1))[-1]
  for workdir in (undisturbed_run(2), tmp_path / "four"):
    found = several.losses(workdir)
    assert found.keys() == one.keys()
    np.testing.assert_allclose([*found.values()], [*one.values()], rtol=1e-4)
    record = test_train.exact(workdir)[-1]
    for name in ("step", "eval/examples"):
      assert record[name] == last[name]


@pytest.mark.slow
def test_other_topologies_go_on(data_dir, tmp_path, undisturbed_run):
  workdir = tmp_path / "run"
  for devices, processes in ((4, 1), (2, 2), (2, 1)):
    # Each stops itself after some updates.
    topology = {"processes": processes, "devices": devices}
    run = several.hit(data_dir, workdir, at.COMPILE, 6, "SIGTERM", **topology)
    assert run.wait() == [stop.PREEMPTED] * processes, run.err
  run = several.Run(data_dir, workdir, processes=4)
  assert run.wait() == [stop.DONE] * 4, run.err
  # One device or several differ in the last bits of sums.
  found, expected = several.losses(workdir), several.losses(undisturbed_run(1))
  assert found.keys() == expected.keys()
  np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-3)
