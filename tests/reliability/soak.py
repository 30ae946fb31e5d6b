"""Preempts one run again and again, in one process; prints what that costs.

  python -m tests.reliability.soak WORKDIR DATA_DIR STOPS UPDATES TOTAL

STOPS starts make UPDATES updates and hear a SIGTERM, one more goes to TOTAL. As
all happen in one process, whatever a start leaves behind adds up.
"""

import gc
import json
import os
import pathlib
import resource
import signal
import sys
from typing import Any

import jax

import train
from configs import smoke
from mixer import loader, runtime, stop


def config(data_dir: str, total: int) -> Any:
  c = smoke.get_config()
  c.data.data_dir = data_dir
  c.total = f"{total} steps"
  c.eval_every = "50 steps"
  c.checkpoint_every = "1000 steps"  # So only where it is stopped.
  c.log_every = "1 steps"
  c.keep_checkpoints = 2
  return c


def main() -> None:
  workdir, data_dir = sys.argv[1:3]
  starts, updates, total = map(int, sys.argv[3:])
  runtime.quiet_libraries()
  runtime.start("cpu")
  made, goal = 0, updates
  following = loader.Loader.__next__

  def next_batch(self: Any) -> Any:
    nonlocal made
    made += self._length == 32  # Those of training, not of evaluation.
    if made == goal:
      os.kill(os.getpid(), signal.SIGTERM)
    return following(self)

  loader.Loader.__next__ = next_batch  # pyright: ignore
  for start in range(starts + 1):
    made = 0
    goal = updates if start < starts else -1
    try:
      train.train(config(data_dir, total), workdir)
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
