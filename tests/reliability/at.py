"""Runs train.py and disturbs it at a named moment.

  python -m tests.reliability.at MOMENT NTH SIGNAL PROCESS -- FLAGS
  python -m tests.reliability.at poison 12,13 train|replay 0 -- FLAGS

The NTH time that the process with that number comes to MOMENT, it sends itself
SIGNAL; or it goes no further (HANG), its device's memory is full (MEMORY), or
the clock jumps to and fro by a year from then on (CLOCK). So a test says
exactly where a run is hit, whatever the machine's speed. The batches of
poisoned updates become white, and a white image has a NaN for its loss: it
comes from within the jitted update.
"""

import functools
import inspect
import os
import signal
import sys
import threading
import time
from typing import Any

from mixer import stop

if __name__ == "__main__":
  stop.listen()  # As train.py does before all else.

import jax
import jax.numpy as jnp
import numpy as np
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
  "update": (sharding, "put_batch", False),
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


def wrap(function: Any, act: Any, before: bool) -> Any:
  """The function, with something done before or after each call."""

  @functools.wraps(function)
  def wrapped(*args: Any, **kwargs: Any) -> Any:
    if before:
      act()
    found = function(*args, **kwargs)
    if not before:
      act()
    return found

  @functools.wraps(function)
  async def awaited(*args: Any, **kwargs: Any) -> Any:
    if before:
      act()
    found = await function(*args, **kwargs)
    if not before:
      act()
    return found

  return awaited if inspect.iscoroutinefunction(function) else wrapped


def hit(moment: str, nth: int, name: str, process: int) -> None:
  """Makes that happen in this process."""
  count, shift = 0, 0.0

  def clock(real: Any = time.time) -> float:
    nonlocal shift
    shift = -86400 * 365.0 - shift + 1e5
    return real() + shift

  def act() -> None:
    nonlocal count
    # Asked of the flags where JAX must not start yet.
    own = [w for w in sys.argv if w.startswith("--process_id=")] or ["=0"]
    started = moment not in ("start", "data")
    mine = jax.process_index() if started else int(own[0].partition("=")[2])
    count += mine == process
    if mine != process or count != nth:
      return
    print(f"at {moment}", flush=True)
    if name == "HANG":
      threading.Event().wait()
    elif name == "MEMORY":
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    elif name == "CLOCK":
      time.time = clock
    else:
      os.kill(os.getpid(), getattr(signal, name))

  where, what, before = MOMENTS[moment]
  setattr(where, what, wrap(getattr(where, what), act, before))


def poison(updates: set[int]) -> None:
  """Gives these updates a NaN."""
  batches, inputs = input_pipeline.train_batches, train_step.training_inputs

  class Poisoned:
    def __init__(self, split: Any, config: Any, step: int = 0):
      self._batches, self._step = batches(split, config, step), step

    def __next__(self) -> Any:
      self._step += 1
      batch = next(self._batches)
      if self._step in updates:
        batch["image"] = np.full_like(batch["image"], 255)
      return batch

    def __getattr__(self, name: str) -> Any:
      return getattr(self._batches, name)

  def poisoned(batch: Any, *args: Any) -> Any:
    images, targets = inputs(batch, *args)
    white = (batch["image"] == 255).all(axis=(1, 2, 3), keepdims=True)
    return jnp.where(white, jnp.nan, images), targets

  input_pipeline.train_batches = Poisoned
  train_step.training_inputs = poisoned


if __name__ == "__main__":
  moment, nth, name, process, _, *flags = sys.argv[1:]
  if moment == "poison":
    poison({int(n) for n in nth.split(",")})
  else:
    hit(moment, int(nth), name, int(process))
  if name == "replay":
    sys.exit(cli.main(["replay", *flags]))
  sys.argv = ["train.py", *flags]
  sys.exit(train.main(cli.parser("train.py").read(flags)))
