"""Batches of images made by threads, ahead of whoever consumes them."""

import collections
import concurrent.futures
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

Batch = dict[str, np.ndarray]
# Items that a thread makes at a time, at most: records read together.
_GROUP = 16
_Made = TypeVar("_Made")


class Timing(NamedTuple):
  """Loader throughput since the last reading."""

  waited: float  # Seconds, by the consumer.
  images_per_second: float  # That the threads make while there is room.


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
  """One for all loaders of a process: they share its cores as well."""
  return concurrent.futures.ThreadPoolExecutor(threads, "loader")


def _timed(
  make: Callable[[Any, np.ndarray], list[Any]],
  items: Sequence[Any],
  images: np.ndarray,
) -> tuple[list[Any], float]:
  start = time.perf_counter()
  return make(items, images), time.perf_counter() - start


class Loader(Iterator[_Made], Generic[_Made]):
  """Batches in the order of their items.

  All threads make one batch together, so that few are under way: host memory
  is `prefetch` batches and the one that is being consumed. What a thread raises
  comes out of `next`.
  """

  def __init__(
    self,
    items: Iterable[Sequence[Any]],
    make: Callable[[Any, np.ndarray], list[Any]],
    finish: Callable[[np.ndarray, list[Any]], _Made],
    shape: tuple[int, int, int],
    threads: int,
    prefetch: int,
  ):
    """Begins with the first `next`.

    `items` are those of each batch, B or fewer of `shape` (B, H, W); images
    without an item are black. `make`, called by threads, gets some items and
    uint8 [N, H, W, 3] for their images, and says what else is known of each;
    `finish` makes a batch of the images and all of that.
    """
    self._items, self._make, self._finish = iter(items), make, finish
    self._shape, self._threads, self._prefetch = shape, threads, prefetch
    # Small enough not to leave the other threads idle at the end.
    self._group = min(_GROUP, -(-shape[0] // (4 * threads)))
    self._pending: collections.deque[
      tuple[np.ndarray, list[concurrent.futures.Future[Any]]]
    ] = collections.deque()
    self._waited = self._busy = 0.0
    self._made = 0

  def __next__(self) -> _Made:
    start = time.perf_counter()
    self._start()
    if not self._pending:
      raise StopIteration
    images, tasks = self._pending.popleft()
    self._start()  # So that no thread is idle at the end of this one.
    rows: list[Any] = []
    for task in tasks:
      some, seconds = task.result()
      rows += some
      self._busy += seconds
    self._made += len(rows)
    self._waited += time.perf_counter() - start
    return self._finish(images, rows)

  def _start(self) -> None:
    """Starts batches, so that `prefetch` are under way."""
    while len(self._pending) < self._prefetch:
      items = next(self._items, None)
      if items is None:
        return
      images = np.empty((*self._shape, 3), np.uint8)
      images[len(items) :] = 0
      parts = [
        slice(k, min(k + self._group, len(items)))
        for k in range(0, len(items), self._group)
      ]
      tasks = [
        _pool(self._threads).submit(
          _timed, self._make, items[part], images[part]
        )
        for part in parts
      ]
      self._pending.append((images, tasks))

  def timing(self) -> Timing:
    """Throughput since the last call."""
    rate = self._threads * self._made / max(self._busy, 1e-9)
    timing = Timing(self._waited, rate)
    self._waited, self._busy, self._made = 0.0, 0.0, 0
    return timing

  def __del__(self) -> None:  # Else the end of a process would wait.
    for _, tasks in self._pending:
      for task in tasks:
        task.cancel()
