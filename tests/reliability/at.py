"""Runs train.py with a signal to itself at a named moment.

  python -m tests.reliability.at MOMENT NTH SIGNAL PROCESS -- FLAGS

The NTH time that the process with that number comes to MOMENT, it sends itself
SIGNAL; or it goes no further, if that is HANG, or its device's memory is full,
if that is MEMORY. So a test says exactly where a
run is hit, whatever the machine's speed.
"""

import functools
import inspect
import os
import signal
import sys
import threading
from typing import Any

from mixer import initial, stop, train_step

if __name__ == "__main__":
  stop.listen()  # As train.py does before all else.

import jax
from orbax.checkpoint._src.path import atomicity

import input_pipeline
import train
from mixer import checkpoints, cli, loader, reporter, runtime, sharding
from mixer import workdir as workdir_lib
from mixer.cluster import gate
from mixer.report import making

# Moment: (where, name of the function, before or after it).
MOMENTS: dict[str, tuple[Any, str, bool]] = {
  "start": (runtime, "start", True),
  "data": (input_pipeline, "open_splits", True),
  "claim": (workdir_lib, "claim", False),
  "gate": (gate, "pass_together", True),
  "init": (initial.Origin, "place", True),
  "restore": (checkpoints.Checkpoints, "restore", True),
  "batch": (loader.Loader, "__next__", True),
  "put": (sharding, "put_batch", True),
  "metrics": (reporter.Reporter, "update", True),
  "evaluation": (train._Run, "_evaluated", True),
  "evaluated": (train._Run, "_evaluated", False),
  "save": (checkpoints.Checkpoints, "save", True),
  "saving": (checkpoints.Checkpoints, "save", False),
  "commit": (atomicity.AtomicRenameTemporaryPath, "finalize", True),
  "committed": (atomicity.AtomicRenameTemporaryPath, "finalize", False),
  "examine": (making, "gather", True),
  "account": (reporter.Reporter, "account", True),
  "end": (reporter.Reporter, "close", False),
  "report": (making, "finish", True),
}
# The first call of the jitted update, which compiles it.
COMPILE = "compile"


def wrap(function: Any, act: Any, before: bool) -> Any:
  """The function, with something done before or after each call."""
  if inspect.iscoroutinefunction(function):

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
      if before:
        act()
      result = await function(*args, **kwargs)
      if not before:
        act()
      return result

  else:

    def wrapped(*args: Any, **kwargs: Any) -> Any:
      if before:
        act()
      result = function(*args, **kwargs)
      if not before:
        act()
      return result

  return functools.wraps(function)(wrapped)


def main() -> None:
  moment, nth, name, process = sys.argv[1:5]
  assert sys.argv[5] == "--"
  count = 0

  def act() -> None:
    nonlocal count
    # Asked of the flags where JAX must not start yet.
    started = moment not in ("start", "data")
    mine = jax.process_index() if started else own_process()
    if mine != int(process):
      return
    count += 1
    if count == int(nth):
      print(f"at {moment}", flush=True)
      if name == "HANG":
        threading.Event().wait()
      if name == "MEMORY":
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
      os.kill(os.getpid(), getattr(signal, name))

  if moment == COMPILE:
    make = train_step.Trainer.__init__

    def init(self: Any, *args: Any) -> None:
      make(self, *args)
      self.train_step = wrap(self.train_step, act, True)

    train_step.Trainer.__init__ = init
  else:
    where, what, before = MOMENTS[moment]
    setattr(where, what, wrap(getattr(where, what), act, before))
  sys.argv = ["train.py", *sys.argv[6:]]
  sys.exit(train.main(cli.parser("train.py").read(sys.argv[1:])))


def own_process() -> int:
  """From the flags."""
  for word in sys.argv:
    if word.startswith("--process_id="):
      return int(word.partition("=")[2])
  return 0


if __name__ == "__main__":
  main()
