"""Two hundred preemptions of one run leave nothing behind, change nothing."""

import gc
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
from typing import Any

import pytest


@pytest.mark.slow
def test_two_hundred_preemptions(data_dir, tmp_path):
  from tests import conftest, test_train

  def soak(workdir, stops, updates, total):
    words = [str(workdir), data_dir, str(stops), str(updates), str(total)]
    done = subprocess.run(
      [sys.executable, "-m", "tests.reliability.test_soak", *words],
      cwd=conftest.ROOT,
      env=os.environ | {"XLA_FLAGS": ""},
      capture_output=True,
      text=True,
      timeout=3000,
    )
    assert done.returncode == 0, done.stderr
    return [
      json.loads(line.removeprefix("soak "))
      for line in done.stdout.splitlines()
      if line.startswith("soak ")
    ]

  starts, updates = 200, 3
  total = starts * updates + 10
  rows = soak(tmp_path / "run", starts, updates, total)
  assert [r["ended"] for r in rows] == ["preempted"] * starts + ["done"]
  # In one go: as many updates, no stop.
  soak(tmp_path / "expected", 0, 0, total)
  print(rows[20], rows[-1])
  for name in ("descriptors", "threads"):
    assert max(r[name] for r in rows[20:]) <= rows[20][name] + 2, name
  # TensorBoard has a file for each start; all else stays as many.
  files = [r["files"] - r["start"] for r in rows[20:-1]]
  assert max(files) - min(files) <= 4
  # What Orbax reads of a checkpoint's metadata stays in the process, some 1.4
  # MB a start; a real one starts once. Nothing else adds up.
  growth = (rows[-2]["resident"] - rows[20]["resident"]) / (starts - 20)
  assert growth < 2.5e6
  test_train.assert_same_run(tmp_path / "run", tmp_path / "expected")


def main() -> None:
  """WORKDIR DATA_DIR STOPS UPDATES TOTAL: preempts a run in one process.

  STOPS starts make UPDATES updates and hear a SIGTERM, one more goes to TOTAL.
  """
  import jax

  import train
  from configs import smoke
  from mixer import runtime, stop

  workdir, data_dir = sys.argv[1:3]
  starts, updates, total = map(int, sys.argv[3:])
  runtime.quiet_libraries()
  runtime.start("cpu")
  config = smoke.get_config()
  config.data.data_dir, config.total = data_dir, f"{total} steps"
  config.eval_every, config.log_every = "50 steps", "1 steps"
  config.checkpoint_every = "1000 steps"  # So only where it is stopped.
  config.keep_checkpoints = 2
  made, update = 0, train._Run.update

  def counted(self: Any, local: Any) -> Any:
    nonlocal made
    made += 1
    if made == updates and start < starts:
      os.kill(os.getpid(), signal.SIGTERM)
    return update(self, local)

  train._Run.update = counted
  for start in range(starts + 1):
    made = 0
    try:
      train.train(config, workdir)
      ended = "done"
    except stop.Preempted:
      ended = "preempted"
    # Compiled functions stay with JAX, as in any process that makes many.
    jax.clear_caches()
    gc.collect()
    memory = pathlib.Path("/proc/self/statm").read_text().split()[1]
    row = {
      "start": start,
      "ended": ended,
      "resident": int(memory) * resource.getpagesize(),
      "descriptors": len(os.listdir("/proc/self/fd")),
      "threads": len(os.listdir("/proc/self/task")),
      "files": sum(len(f) for _, _, f in os.walk(workdir)),
    }
    print("soak", json.dumps(row), flush=True)


if __name__ == "__main__":
  main()
