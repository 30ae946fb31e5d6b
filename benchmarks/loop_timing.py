"""Seconds a step: of the training loop whole, and of the jitted step alone."""

import contextlib
import copy
import io
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax

import input_pipeline
import train
from mixer import config as config_lib
from mixer import durations, loader, metrics, sharding
from mixer import step as step_lib

# Steps that don't count: one compiles, in one the loader is still ahead.
FIRST = 2
_READY = 4  # Batches, one after the other and from the start again.


class Clock:
  """Wall time and this thread's processor time at the start of each step."""

  def __init__(self):
    self._wall: list[float] = []
    self._thread: list[float] = []

  def tick(self) -> None:
    """A step begins, or the last one has ended."""
    self._wall.append(time.perf_counter())
    self._thread.append(time.thread_time())

  def each(self) -> tuple[float, float]:
    """(wall, thread) seconds a step, without the first ones."""
    wall, thread = self._wall[FIRST:], self._thread[FIRST:]
    n = len(wall) - 1
    return (wall[-1] - wall[0]) / n, (thread[-1] - thread[0]) / n


class Batches(Iterator[loader.Batch]):
  """Stands in for a loader: tells when it is asked, which is once a step."""

  def __init__(self, source: Iterator[loader.Batch], clock: Clock):
    self._source, self._clock = source, clock
    self.waited = 0.0
    self._asked = 0

  def __next__(self) -> loader.Batch:
    self._clock.tick()
    start = time.perf_counter()
    # A dict of its own, as of a loader.
    batch = dict(next(self._source))
    self._asked += 1
    if self._asked > FIRST:
      self.waited += time.perf_counter() - start
    return batch

  def timing(self) -> loader.Timing:
    """Of the loader behind it, if it is one."""
    if isinstance(self._source, loader.Loader):
      return self._source.timing()
    return loader.Timing(0.0, 0.0)


def loop(
  config: config_lib.Config, ready: Sequence[loader.Batch] | None
) -> dict[str, float]:
  """Seconds a step of `train.train`.

  Args:
    config: of the run.
    ready: batches to be handed out in turn; None: the loader makes them.

  Returns:
    `wall`, `thread`, and `waited` for batches, a step.
  """
  clock = Clock()
  found: list[Batches] = []
  make = input_pipeline.train_batches

  def batches(*args: Any) -> Batches:
    source = make(*args) if ready is None else itertools.cycle(ready)
    found.append(Batches(source, clock))
    return found[0]

  # The last step has no successor whose start would be its end.
  config = copy.deepcopy(config)
  steps = int(config.total.split()[0])
  config.total = f"{steps + 1} steps"
  with (
    tempfile.TemporaryDirectory() as folder,
    contextlib.redirect_stdout(io.StringIO()),
    mock.patch.object(input_pipeline, "train_batches", batches),
  ):
    train.train(config, folder)
    assert len(metrics.read(folder)) > steps
  wall, thread = clock.each()
  waited = found[0].waited / (steps - FIRST + 1)
  return {"wall": wall, "thread": thread, "waited": waited}


class Bare:
  """The jitted step of a config, and a batch on the device.

  Attributes:
    ready: batches that the loader has made.
  """

  def __init__(self, config: config_lib.Config):
    split, _ = input_pipeline.open_splits(config)
    mesh = sharding.make_mesh()
    plan = durations.plan(config, len(split))
    self._trainer = step_lib.Trainer(config, plan, len(split.class_names), mesh)
    batches = input_pipeline.train_batches(split, config)
    self.ready = list(itertools.islice(batches, _READY))
    self._batch = sharding.put_batch(mesh, self.ready[0])
    self._state = self._trainer.init()
    self.seconds(1)  # Compiles.

  def seconds(self, steps: int) -> dict[str, float]:
    """`wall` and `thread` seconds a step."""
    wall, thread = time.perf_counter(), time.thread_time()
    for _ in range(steps):
      self._state, _ = self._trainer.train_step(self._state, self._batch)
    jax.block_until_ready(self._state)
    return {
      "wall": (time.perf_counter() - wall) / steps,
      "thread": (time.thread_time() - thread) / steps,
    }
