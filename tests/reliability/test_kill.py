"""kill -9 at random moments changes no bit of what comes out."""

import random
import subprocess
import time

import pytest

from tests import test_train


def kill_until_done(command, workdir, args, delays):
  """Starts and kills a run once for each delay (seconds), then lets it end.

  Returns:
    How often it was killed while at work.
  """
  killed = 0
  for delay in delays:
    process = command.start(workdir, *args)
    try:
      process.communicate(timeout=delay)
    except subprocess.TimeoutExpired:
      process.kill()
      process.communicate()
      killed += 1
    else:
      assert process.returncode == 0
  done = command(workdir, *args)
  assert done.returncode == 0, done.stderr
  return killed


def start_up_seconds(command, workdir):
  """How long it takes until a run makes steps."""
  start = time.monotonic()
  process = command.start(workdir)
  test_train.wait_for(process, workdir, 1)
  seconds = time.monotonic() - start
  process.kill()
  process.communicate()
  return seconds


def check(command, tmp_path, kills, steps, seed):
  args = (f"--config.total={steps} steps", "--config.checkpoint_every=10 steps")
  expected = tmp_path / "expected"
  assert command(expected, *args).returncode == 0
  start_up = start_up_seconds(command, tmp_path / "start_up")
  rng = random.Random(seed)
  # All phases, and some of the lives get into training.
  delays = [rng.uniform(0, start_up + 1.5) for _ in range(kills)]
  workdir = tmp_path / "killed"
  assert kill_until_done(command, workdir, args, delays) == kills
  test_train.assert_same_run(workdir, expected)


def test_killed_three_times(train_command, tmp_path):
  check(train_command, tmp_path, kills=3, steps=160, seed=0)


@pytest.mark.slow
def test_killed_twenty_times(train_command, tmp_path):
  check(train_command, tmp_path, kills=20, steps=3000, seed=1)
