"""Pieces are made whole, in order, few at a time, and their time is told."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mixer import loader
from mixer.errors import UserError
from tests import conftest


class Squares:
  """Example i is an image of the byte i, with label i squared."""

  size = (2, 3)

  def __init__(self, seconds=0.0, bad=None):
    self.seconds, self.bad = seconds, bad
    self.made = []
    self.threads = set()

  def __call__(self, places, images):
    for i, image in zip(places, images, strict=True):
      time.sleep(self.seconds)
      if i == self.bad:
        raise ValueError(f"example {i} is bad")
      self.made.append(i)
      self.threads.add(threading.current_thread().name)
      image[...] = i % 256
      yield i * i, i % 3 > 0


@pytest.mark.parametrize("threads", [1, 2, 5, 64])
@pytest.mark.parametrize("length", [1, 7, 200])
def test_a_piece_has_its_examples_in_order(threads, length):
  examples = Squares()
  pieces = loader.Pieces(examples, length, threads, masked=True)
  batches = loader.Loader(pieces, range(1, 8, 3), prefetch=2)
  for number, batch in zip([1, 4, 7], batches, strict=True):
    places = np.arange(number * length, (number + 1) * length)
    assert batch.keys() == {"image", "label", "mask"}
    assert batch["image"].shape == (length, 2, 3, 3)
    np.testing.assert_array_equal(batch["image"][:, 1, 2, 0], places % 256)
    np.testing.assert_array_equal(batch["label"], places**2)
    np.testing.assert_array_equal(batch["mask"], places % 3 > 0)
  # None twice, none beyond.
  assert sorted(examples.made) == [
    i for n in (1, 4, 7) for i in range(n * length, (n + 1) * length)
  ]


def test_threads_share_a_piece():
  examples = Squares(seconds=0.01)
  next(loader.Loader(loader.Pieces(examples, 64, 4, False), range(1), 1))
  assert len(examples.threads) == 4


@pytest.mark.parametrize("prefetch", [1, 3])
def test_no_more_pieces_are_made_ahead_than_asked_for(prefetch):
  examples = Squares()
  batches = loader.Loader(
    loader.Pieces(examples, 10, 2, False), range(1000), prefetch
  )
  for taken in range(1, 4):
    next(batches)
    time.sleep(0.3)  # It would go on if it could.
    assert len(examples.made) <= 10 * (taken + prefetch)
  assert len(examples.made) >= 10 * (3 + prefetch - 1)


def test_an_error_comes_out_of_next():
  examples = Squares(bad=25)
  batches = loader.Loader(loader.Pieces(examples, 10, 2, False), range(1000), 2)
  next(batches)
  next(batches)
  with pytest.raises(ValueError, match="example 25 is bad"):
    next(batches)


def test_processes_make_the_same_in_memory_without_a_name():
  pieces = loader.Pieces(Squares(), 7, 2, masked=True)
  batches = loader.Loader(pieces, range(3, 22, 3), prefetch=2, workers=2)
  expected = loader.Loader(pieces, range(3, 22, 3), prefetch=2)
  made = 0
  for one, two in zip(batches, expected, strict=True):
    assert one.keys() == two.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], two[name])
      assert one[name].dtype == two[name].dtype
    if hasattr(os, "memfd_create"):
      # What has a name stays when all who know it are killed.
      maps = pathlib.Path("/proc/self/maps").read_text()
      assert "/memfd:mixer-batch (deleted)" in maps
    made += 1
  assert made == 7


def test_an_error_of_a_process_comes_out_of_next():
  pieces = loader.Pieces(Squares(bad=25), 10, 2, False)
  batches = loader.Loader(pieces, range(1000), 2, workers=2)
  next(batches)
  next(batches)
  with pytest.raises(RuntimeError, match="example 25 is bad"):
    next(batches)


_KILLED = """
import os, signal
from mixer import loader
from tests import test_loader

pieces = loader.Pieces(test_loader.Squares(), 10, 2, False)
batches = loader.Loader(pieces, range(10**6), 2, workers=2)
next(batches), next(batches)
print(*(p.pid for p in batches._iterator.processes), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_with_their_parent():
  done = subprocess.run(
    [sys.executable, "-c", _KILLED],
    cwd=conftest.ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert done.returncode == -signal.SIGKILL
  workers = done.stdout.split()
  assert len(workers) == 2
  deadline = time.monotonic() + 60
  while any(os.path.exists(f"/proc/{pid}/fd/0") for pid in workers):
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_a_killed_process_is_told():
  pieces = loader.Pieces(Squares(), 10, 2, False)
  batches = loader.Loader(pieces, range(10**6), 2, workers=1)
  next(batches)
  for process in batches._iterator.processes:
    process.kill()
  with pytest.raises(UserError, match=r"data\.workers was killed"):
    for _ in range(100):
      next(batches)


def test_timing_tells_a_slow_loader_from_a_slow_consumer():
  examples = Squares(seconds=0.01)
  batches = loader.Loader(loader.Pieces(examples, 10, 1, False), range(100), 1)
  for _ in range(4):
    assert "seconds" not in next(batches)
  slow = batches.timing()
  assert 0 < slow.images_per_second <= 100  # 10 ms each, or a little more.
  assert slow.waited >= 0.3  # 40 examples, all waited for.
  for _ in range(4):
    time.sleep(0.3)
    next(batches)
  fast = batches.timing()
  assert fast.images_per_second <= 100  # Its own rate: room isn't its matter.
  assert fast.waited < slow.waited
