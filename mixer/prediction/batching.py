"""Batches of images, made by threads ahead of the device, in their order.

However many images there are, few batches of them are in memory: one that is
being consumed and `_AHEAD` that are being made.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_AHEAD = 2
# Images that a thread makes at a time, at most.
_GROUP = 8


@dataclasses.dataclass(frozen=True)
class Batch:
  """Images of one size, and what became of those that can't be used.

  Attributes:
    sources: what to call each of the N images, N <= B.
    problems: why it can't be used, or "".
    images: uint8 [B, H, W, 3]; black where there is none.
  """

  sources: list[str]
  problems: list[str]
  images: np.ndarray


def sizes(many: int, devices: int) -> tuple[int, int]:
  """Sizes of a batch for calls of few and of many images.

  Each is compiled for once. A single image doesn't pay for many, and a device
  has the same number of images in each batch.

  Args:
    many: images at a time, wished for.
    devices: over which a batch is split.
  """
  return devices, -(-many // devices) * devices


def batches(
  images: Iterator[tuple[str, Any]],
  size: int,
  shape: tuple[int, int],
  make: Callable[[Any], np.ndarray],
  threads: int,
) -> Iterator[Batch]:
  """Makes batches; all but the last one are full.

  Args:
    images: what to call each, and what `make` takes. It is iterated over by
      whoever iterates over this, a few batches ahead.
    size: B.
    shape: (height, width) of an image.
    make: called by threads, gives uint8 [H, W, 3]; a ValueError of it is kept
      as the image's problem.
    threads: how many.
  """
  group = min(_GROUP, -(-size // (4 * threads)))
  waiting: collections.deque[tuple[Batch, list]] = collections.deque()
  pool = concurrent.futures.ThreadPoolExecutor(threads, "images")

  def work(batch: Batch, items: list[Any], first: int) -> None:
    for place, item in enumerate(items, first):
      try:
        batch.images[place] = make(item)
      except ValueError as e:
        batch.problems[place] = str(e)

  def start(some: list[tuple[str, Any]]) -> None:
    batch = Batch(
      [name for name, _ in some],
      [""] * len(some),
      np.zeros((size, *shape, 3), np.uint8),
    )
    items = [item for _, item in some]
    firsts = range(0, len(items), group)
    waiting.append(
      (
        batch,
        [pool.submit(work, batch, items[k : k + group], k) for k in firsts],
      )
    )

  def finish() -> Batch:
    batch, tasks = waiting.popleft()
    for task in tasks:
      task.result()
    return batch

  try:
    while some := list(itertools.islice(images, size)):
      start(some)
      if len(waiting) > _AHEAD:
        yield finish()
    while waiting:
      yield finish()
  finally:
    pool.shutdown(cancel_futures=True)
