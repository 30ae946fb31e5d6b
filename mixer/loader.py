"""Batches of images made by threads, ahead of whoever consumes them."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

Batch = dict[str, np.ndarray]
_Made = TypeVar("_Made")


class Timing(NamedTuple):
  """Loader throughput since the last reading."""

  waited: float  # Seconds, by the consumer.
  images_per_second: float  # That the threads make while there is room.


@functools.cache
def _pool(threads: int) -> futures.ThreadPoolExecutor:
  """One for all loaders of a process: they share its cores as well."""
  return futures.ThreadPoolExecutor(threads, "loader")


def _timed(make: Any, items: Any, images: np.ndarray) -> tuple[Any, float]:
  start = time.perf_counter()
  return make(items, images), time.perf_counter() - start


def fill(
  split: Any,
  places: Sequence[int],
  images: np.ndarray,
  prepare: Callable[[int, Any, np.ndarray], object],
) -> list[int]:
  """Makes the images of some examples of a split; returns their labels.

  `prepare` gets a number among `places`, the image (encoded, or its pixels) and
  where its pixels belong. UserError if a record can't be read or decoded.
  """
  records = split.decoded(places)
  for k, (record, out) in enumerate(zip(records, images, strict=True)):
    try:
      prepare(k, record["image"], out)
    except ValueError as e:
      raise split.decode_error(record["index"], e) from e
  return [record["label"] for record in records]


class Loader(Iterator[_Made], Generic[_Made]):
  """Batches in the order of their items.

  All threads make one batch together: host memory is `prefetch` batches and the
  one that is being consumed. What a thread raises comes out of `next`.
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
    """Takes the items of each batch, B or fewer of `shape` (B, H, W).

    `make`, called by threads, gets some items and uint8 [N, H, W, 3] for their
    images, and returns what else is known of each; `finish` makes a batch of
    all images, black without an item, and all of that.
    """
    self._items, self._make, self._finish = iter(items), make, finish
    self._shape, self._threads, self._prefetch = shape, threads, prefetch
    self._pending: list[tuple[np.ndarray, list[futures.Future[Any]]]] = []
    self._waited, self._busy, self._made = 0.0, 0.0, 0

  def __next__(self) -> _Made:
    start = time.perf_counter()
    self._start()
    if not self._pending:
      raise StopIteration
    images, tasks = self._pending.pop(0)
    self._start()  # So that no thread is idle at the end of this one.
    done = [task.result() for task in tasks]
    rows = [row for made, _ in done for row in made]
    self._busy += sum(seconds for _, seconds in done)
    self._made += len(rows)
    self._waited += time.perf_counter() - start
    return self._finish(images, rows)

  def _start(self) -> None:
    """Starts batches, so that `prefetch` are under way."""
    # Records are read together, but no thread is to idle at the end.
    group = min(16, -(-self._shape[0] // (4 * self._threads)))
    while len(self._pending) < self._prefetch:
      items = next(self._items, None)
      if items is None:
        return
      images = np.empty((*self._shape, 3), np.uint8)
      images[len(items) :] = 0
      submit, used = _pool(self._threads).submit, images[: len(items)]
      tasks = [
        submit(_timed, self._make, items[k : k + group], used[k : k + group])
        for k in range(0, len(items), group)
      ]
      self._pending.append((images, tasks))

  def timing(self) -> Timing:
    """Throughput since the last call."""
    rate = self._threads * self._made / max(self._busy, 1e-9)
    waited = self._waited
    self._waited, self._busy, self._made = 0.0, 0.0, 0
    return Timing(waited, rate)

  def __del__(self) -> None:  # Else the end of a process would wait.
    for _, tasks in self._pending:
      for task in tasks:
        task.cancel()
