"""Makes batches of examples, ahead of the training that waits for them.

A piece (one host's part of a batch) is made by all threads together, so that
few are under way at a time: host memory is `prefetch_batches` of them, and one
more that is being consumed, times the number of worker processes if there are
any. Grain starts pieces ahead, and the worker processes.
"""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

Batch = dict[str, np.ndarray]
# Examples that a thread makes at a time, at most: records read together.
_GROUP = 16
# The key of the seconds that threads gave to a piece; taken out again.
_SECONDS = "seconds"


class Examples(Protocol):
  """Where examples come from; picklable.

  Attributes:
    size: (height, width) of the images.
  """

  @property
  def size(self) -> tuple[int, int]: ...

  def __call__(
    self, places: Sequence[int], images: np.ndarray
  ) -> Iterator[tuple[int, bool]]:
    """Labels and masks of some places of a sequence, in their order.

    Args:
      places: which.
      images: where to write their images, uint8 [len(places), H, W, 3].
    """
    ...


@dataclasses.dataclass(frozen=True)
class Pieces:
  """The number of a piece -> its arrays; picklable, for worker processes.

  Attributes:
    examples: where they come from.
    length: examples a piece.
    threads: that share out the making of one.
    masked: whether pieces have a `mask`.
  """

  examples: Examples
  length: int
  threads: int
  masked: bool

  def __call__(self, number: int) -> Batch:
    image = np.empty((self.length, *self.examples.size, 3), np.uint8)
    label = np.empty(self.length, np.int32)
    mask = np.empty(self.length, np.bool_)

    # Not so many that the last ones leave the other threads idle for long.
    group = min(_GROUP, -(-self.length // (4 * self.threads)))

    def make(first: int) -> float:
      start = time.perf_counter()
      places = range(first, min(first + group, self.length))
      at = [number * self.length + i for i in places]
      images = image[places.start : places.stop]
      for i, told in zip(places, self.examples(at, images), strict=True):
        label[i], mask[i] = told
      return time.perf_counter() - start

    groups = range(0, self.length, group)
    seconds = sum(_pool(self.threads).map(make, groups))
    batch = {"image": image, "label": label}
    if self.masked:
      batch["mask"] = mask
    return batch | {_SECONDS: np.array([seconds])}


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
  """One for all loaders of a process: they share its cores as well."""
  return concurrent.futures.ThreadPoolExecutor(threads, "loader")


@dataclasses.dataclass(frozen=True)
class Timing:
  """How a loader fared.

  Attributes:
    waited: seconds in which its consumer waited for it.
    images_per_second: what this host's loader makes while it isn't waiting for
      room: its own rate.
  """

  waited: float
  images_per_second: float


class Loader(Iterator[Batch]):
  """Batches in the order of their numbers, made ahead; see the module."""

  def __init__(
    self, pieces: Pieces, numbers: range, prefetch: int, workers: int = 0
  ):
    """Starts making the first.

    Args:
      pieces: makes one.
      numbers: of the pieces wanted.
      prefetch: made ahead, by each worker process if there are any.
      workers: processes; 0: threads of this one.
    """
    dataset: Any = (
      grain.MapDataset.range(numbers.start, numbers.stop, numbers.step)
      .map(pieces)
      # Each is the work of all threads; the next one is begun for those that
      # find nothing more to do in the first.
      .to_iter_dataset(
        grain.ReadOptions(
          num_threads=min(2, prefetch), prefetch_buffer_size=prefetch
        )
      )
    )
    if workers:
      # Grain asks absl for flags of its own, parsed only where a program is
      # absl's: defaults do elsewhere.
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
      dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers)
      )
    self._iterator = iter(dataset)
    self._length = pieces.length
    self._makers = max(1, workers) * pieces.threads
    self._waited = self._busy = 0.0
    self._made = 0

  def __next__(self) -> Batch:
    start = time.perf_counter()
    batch = next(self._iterator)
    self._waited += time.perf_counter() - start
    self._busy += batch.pop(_SECONDS).item()
    self._made += self._length
    return batch

  def timing(self) -> Timing:
    """Since the last call."""
    rate = self._makers * self._made / max(self._busy, 1e-9)
    timing = Timing(self._waited, rate)
    self._waited = self._busy = 0.0
    self._made = 0
    return timing
