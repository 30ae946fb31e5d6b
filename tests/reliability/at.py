"""Runs train.py with a signal to itself at a named moment.

  python -m tests.reliability.at MOMENT NTH SIGNAL PROCESS -- FLAGS

The NTH time that the process with that number comes to MOMENT, it sends itself
SIGNAL; or it goes no further, if that is HANG, or its device's memory is full,
if that is MEMORY. So a test says exactly where a run is hit, whatever the
machine's speed.
"""

import contextlib
import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from mixer import stop

if __name__ == "__main__":
  stop.listen()  # As train.py does before all else.

import jax
from orbax.checkpoint._src.path import atomicity

import input_pipeline
import train
from mixer import (
  cli,
  distributed,
  initial,
  loader,
  reporter,
  saving,
  sharding,
  train_step,
)
from mixer import workdir as workdir_lib
from mixer.report import collect, predictions

# Moment: (where, name of the function, before or after it).
MOMENTS: dict[str, tuple[Any, str, bool]] = {
  "start": (distributed, "start", True),
  "data": (input_pipeline, "open_splits", True),
  "check": (workdir_lib, "check", False),
  "gate": (distributed, "check_same", True),
  "init": (initial.Origin, "place", True),
  "restore": (saving.Checkpoints, "restore", True),
  "batch": (loader.Loader, "__next__", True),
  "put": (sharding, "put_batch", True),
  "metrics": (reporter.Reporter, "update", True),
  "evaluation": (train._Run, "evaluate", True),
  "evaluated": (train._Run, "evaluate", False),
  "save": (saving.Checkpoints, "save", True),
  "saving": (saving.Checkpoints, "save", False),
  "commit": (atomicity.AtomicRenameTemporaryPath, "finalize", True),
  "committed": (atomicity.AtomicRenameTemporaryPath, "finalize", False),
  "examine": (predictions, "gather", True),
  "account": (reporter.Reporter, "account", True),
  "end": (reporter.Reporter, "close", False),
  "report": (collect, "finish", True),
}
# The first call of the jitted update, which compiles it.
COMPILE = "compile"


def wrap(function: Any, act: Any, before: bool) -> Any:
  """The function, with something done before or after each call."""

  @contextlib.contextmanager
  def acting() -> Iterator[None]:
    if before:
      act()
    yield
    if not before:
      act()

  @functools.wraps(function)
  def wrapped(*args: Any, **kwargs: Any) -> Any:
    with acting():
      return function(*args, **kwargs)

  @functools.wraps(function)
  async def awaited(*args: Any, **kwargs: Any) -> Any:
    with acting():
      return await function(*args, **kwargs)

  return awaited if inspect.iscoroutinefunction(function) else wrapped


def main() -> None:
  moment, nth, name, process = sys.argv[1:5]
  assert sys.argv[5] == "--"
  count = 0

  def act() -> None:
    nonlocal count
    # Asked of the flags where JAX must not start yet.
    own = [w for w in sys.argv if w.startswith("--process_id=")] or ["=0"]
    started = moment not in ("start", "data")
    mine = jax.process_index() if started else int(own[0].partition("=")[2])
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


if __name__ == "__main__":
  main()
