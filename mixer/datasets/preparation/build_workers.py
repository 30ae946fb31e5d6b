"""Inspects images in worker processes, results in order, memory bounded."""

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import process
from typing import NamedTuple

from mixer.datasets.preparation import build_draw, inspection
from mixer.datasets.preparation.build_options import Options
from mixer.datasets.sources.member import Member
from mixer.errors import UserError

# Of images handed to the workers, until their results are taken.
IN_FLIGHT_BYTES = 256 << 20
# A task: large enough that handing it over costs nothing beside decoding
# (20 images of ImageNet take a core 80 ms), small enough that those in flight
# feed a hundred cores.
TASK_IMAGES = 32
TASK_BYTES = 2 << 20


class Batch(NamedTuple):
  """Some consecutive members of one chunk.

  Attributes:
    members: perhaps none, if it only ends the chunk.
    bytes_done: of the source, after the last.
    ends_chunk: whether work is to be committed after it.
  """

  members: list[Member]
  bytes_done: int
  ends_chunk: bool


class Outcome(NamedTuple):
  """What the inspection of one image found.

  Attributes:
    digest: of the image as it was found.
    data: to be stored; None for the bytes as found, which needn't travel.
    problem: a sentence, "" for none.
    kind: of the problem.
  """

  digest: bytes
  data: bytes | None
  problem: str
  kind: str


def batches(
  members: Iterator[tuple[Member, int]], options: Options
) -> Iterator[Batch]:
  """Cuts a source into chunks and those into tasks.

  The chunks depend on the members from the first one on, and on the options;
  `members` has to start where a chunk does.
  """
  batch: list[Member] = []
  batch_bytes = chunk_images = chunk_bytes = done = 0
  for member, done in members:
    batch.append(member)
    batch_bytes += len(member.data)
    chunk_images += 1
    chunk_bytes += len(member.data)
    ends = (
      chunk_images >= options.chunk_images or chunk_bytes >= options.chunk_bytes
    )
    if ends or len(batch) >= TASK_IMAGES or batch_bytes >= TASK_BYTES:
      yield Batch(batch, done, ends)
      batch, batch_bytes = [], 0
    if ends:
      chunk_images = chunk_bytes = 0
  if chunk_images:
    yield Batch(batch, done, True)


def inspect(
  images: Sequence[tuple[str, bytes]], options: Options
) -> list[Outcome]:
  """A task: inspects images, given as name and bytes."""
  outcomes = []
  for name, data in images:
    found = inspection.inspect(data, name, options)
    outcomes.append(
      Outcome(
        build_draw.digest(data, options.seed),
        None if found.data == data else found.data,
        found.problem,
        found.kind,
      )
    )
  return outcomes


def inspected(
  todo: Iterator[Batch], options: Options
) -> Generator[tuple[Batch, list[Outcome]]]:
  """Inspects batches, with as many workers as the options say.

  Members with an error of the source aren't inspected and have no outcome.

  Raises:
    UserError: a worker was killed.
  """
  workers = options.workers
  if workers is None:
    workers = len(os.sched_getaffinity(0))
  if not workers:
    for batch in todo:
      yield batch, inspect(_images(batch), options)
    return
  pool = concurrent.futures.ProcessPoolExecutor(
    workers,
    # A fork of a process with JAX's or ArrayRecord's threads may hang.
    multiprocessing.get_context("spawn"),
    initializer=_start_worker,
  )
  waiting: collections.deque = collections.deque()
  in_flight = 0
  try:
    for batch in todo:
      size = _size(batch)
      while waiting and in_flight + size > IN_FLIGHT_BYTES:
        first, future = waiting.popleft()
        yield first, _result(first, future)
        in_flight -= _size(first)
      waiting.append((batch, _submit(pool, batch, options)))
      in_flight += size
      while waiting and waiting[0][1].done():
        first, future = waiting.popleft()
        yield first, _result(first, future)
        in_flight -= _size(first)
    while waiting:
      first, future = waiting.popleft()
      yield first, _result(first, future)
  finally:
    waiting.clear()
    pool.shutdown(cancel_futures=True)


def _images(batch: Batch) -> list[tuple[str, bytes]]:
  return [(m.name, m.data) for m in batch.members if not m.error]


def _size(batch: Batch) -> int:
  # Objects take room too: a source may hold a million empty files.
  return sum(len(m.data) + 1000 for m in batch.members)


def _submit(
  pool: process.ProcessPoolExecutor, batch: Batch, options: Options
) -> concurrent.futures.Future[list[Outcome]]:
  try:
    return pool.submit(inspect, _images(batch), options)
  except process.BrokenProcessPool as e:
    raise _died(batch) from e


def _result(
  batch: Batch, future: concurrent.futures.Future[list[Outcome]]
) -> list[Outcome]:
  try:
    return future.result()
  except process.BrokenProcessPool as e:
    raise _died(batch) from e


def _died(batch: Batch) -> UserError:
  where = f" at or after {batch.members[0].name}" if batch.members else ""
  return UserError(
    f"A worker process was killed while it inspected images{where}, most "
    "likely as memory ran out (`dmesg` tells). Use fewer workers, and give the "
    "same command again: it goes on after the last images that were committed."
  )


def _start_worker() -> None:
  # Ctrl-C, and its end, reach every process of a terminal; the parent ends the
  # workers.
  for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  # A killed parent can't: without this its workers would wait forever.
  parent = multiprocessing.parent_process()
  assert parent is not None

  def follow() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()
