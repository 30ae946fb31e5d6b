"""Batches are whole, in order, few at a time, and their time is measured."""

import itertools
import threading
import time

import numpy as np
import pytest

from mixer import loader


class Squares:
  """Item i is an image of the byte i, and i squared."""

  def __init__(self, seconds=0.0, bad=None):
    self.seconds, self.bad = seconds, bad
    self.made, self.threads = [], set()

  def __call__(self, items, images):
    for i, image in zip(items, images, strict=True):
      time.sleep(self.seconds)
      if i == self.bad:
        raise ValueError(f"example {i} is bad")
      self.made.append(i)
      self.threads.add(threading.current_thread().name)
      image[...] = i % 256
    return [i * i for i in items]


def load(make, length, items=None, threads=2, prefetch=2):
  endless = (range(n * length, (n + 1) * length) for n in itertools.count())
  shape = length, 2, 3
  return loader.Loader(
    items or endless, make, lambda *both: both, shape, threads, prefetch
  )


@pytest.mark.parametrize("threads", [1, 5, 64])
@pytest.mark.parametrize("length", [1, 7, 200])
def test_batches_have_their_items_in_order(threads, length):
  make = Squares()
  # The last two are not full: their images are black.
  items = [range(k, k + length) for k in (4, 999, 0)]
  items += [range(5, 5 + length // 2), range(0)]
  batches = load(make, length, iter(items), threads)
  for wanted, (images, rows) in zip(items, batches, strict=True):
    assert images.shape == (length, 2, 3, 3) and images.dtype == np.uint8
    black = [0] * (length - len(wanted))
    assert images[:, 1, 2, 0].tolist() == [i % 256 for i in wanted] + black
    assert rows == [i * i for i in wanted]
  assert sorted(make.made) == sorted(i for some in items for i in some)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_no_more_are_made_ahead_than_asked_for(prefetch):
  make = Squares(seconds=0.001)
  batches = load(make, 64, threads=4, prefetch=prefetch)
  for taken in range(1, 4):
    next(batches)
    time.sleep(0.3)  # It would go on if it could.
    assert len(make.made) == 64 * (taken + prefetch)
  assert len(make.threads) == 4  # They share a batch.


def test_an_error_comes_out_of_next_and_what_waits_is_dropped():
  batches = load(Squares(bad=25), 10)
  next(batches)
  next(batches)
  with pytest.raises(ValueError, match="example 25 is bad"):
    next(batches)
  make = Squares(seconds=0.01)
  batches = load(make, 50, threads=1)
  next(batches)
  del batches
  time.sleep(0.3)
  done = len(make.made)
  time.sleep(0.3)
  assert len(make.made) == done < 100


def test_timing_tells_a_slow_loader_from_a_slow_consumer():
  batches = load(Squares(seconds=0.01), 10, threads=1, prefetch=1)
  for _ in range(4):
    next(batches)
  slow = batches.timing()
  assert 0 < slow.images_per_second <= 100  # 10 ms each, or a little more.
  assert slow.waited >= 0.3  # 40 examples, all waited for.
  for _ in range(4):
    time.sleep(0.3)
    next(batches)
  fast = batches.timing()
  assert fast.images_per_second <= 100  # What it can do without waiting.
  assert fast.waited < slow.waited
