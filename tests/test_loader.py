"""Pieces are made whole, in order, few at a time, and their time is told."""

import threading
import time

import numpy as np
import pytest

from mixer import loader


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
