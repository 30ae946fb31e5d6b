"""kill -9 at random moments changes no bit of what comes out."""

import json
import random
import signal
import time

import pytest

from tests import test_train


def start_up_seconds(command, workdir):
  """How long it takes until a run makes steps."""
  start = time.monotonic()
  process = command.start(workdir)
  test_train.wait_for(process, workdir, 1)
  seconds = time.monotonic() - start
  process.kill()
  process.communicate()
  return seconds


def newest_step(workdir):
  """Of the metrics; 0 without any."""
  path = workdir / "metrics.jsonl"
  try:
    return json.loads(path.read_text().splitlines()[-1])["step"]
  except (OSError, IndexError, ValueError):  # The last line may be half there.
    return 0


def kill_in_start_up(process, workdir, rng, start_up):
  """At any time before its first step, by the clock."""
  time.sleep(rng.uniform(0, start_up))


def kill_in_training(process, workdir, rng, start_up):
  """Some steps on, by what it says itself: no machine is too fast for it."""
  goal = newest_step(workdir) + rng.randrange(10, 50)
  while newest_step(workdir) < goal and process.poll() is None:
    time.sleep(0.005)
  time.sleep(rng.uniform(0, 0.05))


def check(command, tmp_path, phases, steps, seed):
  """Kills a run once in each phase, then lets it end."""
  args = (
    f"--config.total={steps} steps",
    "--config.checkpoint_every=10 steps",
    "--config.log_every=1 steps",
  )
  expected = tmp_path / "expected"
  assert command(expected, *args).returncode == 0
  start_up = 0.0
  if kill_in_start_up in phases:
    start_up = start_up_seconds(command, tmp_path / "start_up")
  rng = random.Random(seed)
  workdir = tmp_path / "killed"
  for wait in phases:
    process = command.start(workdir, *args)
    wait(process, workdir, rng, start_up)
    process.kill()
    _, err = process.communicate()
    # It may have come to its end, if this test was held up for long.
    assert process.returncode in (-signal.SIGKILL, 0), err
  done = command(workdir, *args)
  assert done.returncode == 0, done.stderr
  test_train.assert_same_run(workdir, expected)


def test_killed_once(train_command, tmp_path):
  check(train_command, tmp_path, (kill_in_training,), steps=80, seed=0)


@pytest.mark.slow
def test_killed_twenty_times(train_command, tmp_path):
  phases = (kill_in_training, kill_in_start_up) * 10
  check(train_command, tmp_path, phases, steps=1500, seed=1)
