"""Makes batches of examples, ahead of the training that waits for them.

A piece (one host's part of a batch) is made by all threads together, so that
few are under way at a time: host memory is `prefetch_batches` of them, and one
more that is being consumed. Grain starts pieces ahead. Each worker process, if
there are any, has as many under way, and one that waits for its turn.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing import connection, reduction
from typing import Any, Protocol

import grain
import numpy as np

from mixer.errors import UserError

Batch = dict[str, np.ndarray]
# Examples that a thread makes at a time, at most: records read together.
_GROUP = 16
# The key of the seconds that threads gave to a piece; taken out again.
_SECONDS = "seconds"
# Bytes at whose multiples arrays begin.
_ALIGNED = 64


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
    self._iterator = (
      _Processes(pieces, numbers, prefetch, workers)
      if workers
      else _by_threads(pieces, numbers, prefetch)
    )
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


def _by_threads(
  pieces: Pieces, numbers: range, prefetch: int
) -> Iterator[Batch]:
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
  return iter(dataset)


class _Processes(Iterator[Batch]):
  """Pieces made by processes, every n-th by one of n.

  Their arrays come in memory without a name: it ends with the processes that
  hold it, however those end. A worker ends when its parent has.
  """

  def __init__(
    self, pieces: Pieces, numbers: range, prefetch: int, workers: int
  ):
    self.processes: list[subprocess.Popen[bytes]] = []
    self._pipes: list[connection.Connection] = []
    for _ in range(workers):
      ours, theirs = socket.socketpair()
      with theirs:
        self.processes.append(
          subprocess.Popen(
            [sys.executable, "-c", "from mixer import loader; loader.work()"],
            stdin=theirs.fileno(),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
          )
        )
      self._pipes.append(connection.Connection(ours.detach()))
    self._turns = itertools.cycle(self._pipes)
    weakref.finalize(self, _end, self.processes, self._pipes)
    for i, pipe in enumerate(self._pipes):  # They import meanwhile.
      pipe.send((pieces, numbers[i::workers], prefetch))

  def __next__(self) -> Batch:
    pipe = next(self._turns)
    try:
      found = pipe.recv()
      if found is None:
        raise StopIteration
      if isinstance(found, Exception):
        raise found
      batch = _received(pipe, *found)
      pipe.send(None)
    except (EOFError, OSError) as e:
      raise UserError(
        "a process of data.workers was killed, most likely as memory ran out "
        "(`dmesg` tells). Use fewer, or a smaller data.prefetch_batches; the "
        "same command goes on from what is saved."
      ) from e
    return batch


def _end(
  processes: Sequence[subprocess.Popen[bytes]],
  pipes: Sequence[connection.Connection],
) -> None:
  for process, pipe in zip(processes, pipes, strict=True):
    pipe.close()
    process.kill()
    process.wait()


def work() -> None:
  """Makes pieces for the parent, at the other end of stdin, until it ends."""
  # Signals to all processes are the parent's affair.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  pipe = connection.Connection(os.dup(0))
  try:
    try:
      for batch in _by_threads(*pipe.recv()):
        _send(pipe, batch)
        pipe.recv()
      pipe.send(None)
    except UserError as e:
      pipe.send(e)
    except (EOFError, OSError):
      raise
    except Exception:
      pipe.send(RuntimeError(traceback.format_exc()))
  except (EOFError, OSError):  # The parent is gone.
    pass
  finally:  # Without the threads, which are at the next piece.
    os._exit(0)


def _send(pipe: connection.Connection, batch: Batch) -> None:
  buffers: list[pickle.PickleBuffer] = []
  data = pickle.dumps(batch, 5, buffer_callback=buffers.append)
  parts = [b.raw() for b in buffers]
  with _nameless() as file:
    for part in parts:
      file.write(part)
      file.write(bytes(-part.nbytes % _ALIGNED))
    file.flush()
    pipe.send((data, [part.nbytes for part in parts]))
    reduction.send_handle(pipe, file.fileno(), os.getppid())


def _received(
  pipe: connection.Connection, data: bytes, sizes: Sequence[int]
) -> Batch:
  file = reduction.recv_handle(pipe)
  try:
    memory = memoryview(mmap.mmap(file, 0))
  finally:
    os.close(file)
  parts = []
  for size in sizes:
    parts.append(memory[:size])
    memory = memory[size + -size % _ALIGNED :]
  return pickle.loads(data, buffers=parts)


def _nameless() -> Any:
  """Opens a file in memory; on the disk where that can't be."""
  if hasattr(os, "memfd_create"):
    return open(os.memfd_create("mixer-batch"), "r+b")
  return tempfile.TemporaryFile()
