"""A signal at every named moment of a run, on one process and on two."""

import pathlib
import shutil

import pytest

from mixer import checkpoints, metrics, stop
from tests import test_train
from tests.reliability import at, several

# 24 updates, an evaluation and a checkpoint after every eighth.
ARGS = (
  "--config.total=24 steps",
  "--config.schedule.warmup=4 steps",
  "--config.eval_every=8 steps",
  "--config.checkpoint_every=8 steps",
  "--config.log_every=1 steps",
  "--config.keep_checkpoints=2",
)
# Moment, and which time: in the middle of the run where there are several.
SINGLE = [
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
# Before the others know of a process it can only end; then it has to wait.
EARLY = ("start", "data")


def start(data_dir, workdir, moment, nth, signal, process=0, more=(), **kwargs):
  """A run that is hit at a moment; see `at`."""
  program = (
    "-m",
    "tests.reliability.at",
    moment,
    str(nth),
    signal,
    str(process),
    "--",
  )
  args = (*ARGS, *more)
  return several.Run(data_dir, workdir, args, program=program, **kwargs)


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
  """`undisturbed(processes)` -> the workdir of a run that nothing hit."""
  found: dict[int, pathlib.Path] = {}

  def make(processes: int) -> pathlib.Path:
    if processes not in found:
      workdir = tmp_path_factory.mktemp("undisturbed") / "run"
      run = several.Run(data_dir, workdir, ARGS, processes)
      assert run.wait() == [stop.DONE] * processes, run.err
      found[processes] = workdir
    return found[processes]

  return make


def finish(data_dir, workdir, expected, processes=1):
  """The same command line again, to the end and to the same bits."""
  run = several.Run(data_dir, workdir, ARGS, processes)
  assert run.wait() == [stop.DONE] * processes, run.err
  test_train.assert_same_run(workdir, expected)
  assert test_train.page(workdir)["runs"][0]["predictions"]["step"] == 24
  # And nothing is left lying about; the one that was gone on from may stay.
  left = {p.name for p in (workdir / "checkpoints").iterdir()}
  assert "24" in left and all(name.isdigit() for name in left)
  assert 2 <= len(left) <= 3


def newest(workdir):
  return max(checkpoints.committed(workdir), default=0)


def check(data_dir, tmp_path, undisturbed, moment, nth, signal):
  workdir = tmp_path / "run"
  run = start(data_dir, workdir, moment, nth, signal)
  (code,) = run.wait()
  assert f"at {moment}" in run.out[0], run.err
  if signal == "SIGKILL":
    assert code == -9
  else:
    if (moment, nth) == ("committed", 3):  # The last evaluation may be on.
      assert code in (stop.DONE, stop.PREEMPTED), run.err
    else:
      done = moment in ("account", "end", "report")
      assert code == (stop.DONE if done else stop.PREEMPTED), run.err
    assert "Traceback" not in run.err[0]
    # No update is lost: the metrics end where the newest checkpoint is.
    steps = [r["step"] for r in metrics.read(workdir)]
    assert newest(workdir) == max(steps, default=0)
  finish(data_dir, workdir, undisturbed(1))


# For `make test` there are also those of tests/test_train.py.
FAST = ("commit", 2, "SIGKILL")
ALL = [(*where, name) for where in SINGLE for name in ("SIGKILL", "SIGTERM")]


def test_killed_at_a_commit(data_dir, tmp_path, undisturbed):
  check(data_dir, tmp_path, undisturbed, *FAST)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("moment", "nth", "signal"), [hit for hit in ALL if hit != FAST]
)
def test_a_signal_at_any_moment(
  data_dir, tmp_path, undisturbed, moment, nth, signal
):
  check(data_dir, tmp_path, undisturbed, moment, nth, signal)


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_signal_while_restoring(data_dir, tmp_path, undisturbed, signal):
  workdir = tmp_path / "run"
  shutil.copytree(undisturbed(1), workdir)
  shutil.rmtree(workdir / "checkpoints" / "24")
  run = start(data_dir, workdir, "restore", 1, signal)
  assert run.wait() == [-9 if signal == "SIGKILL" else stop.PREEMPTED]
  finish(data_dir, workdir, undisturbed(1))
