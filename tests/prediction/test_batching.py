"""Batches: every image once, in order, few at a time."""

import threading

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mixer.prediction import batching


def make(value):
  """An image of one value; some can't be made."""
  if value % 7 == 3:
    raise ValueError(f"no {value}")
  return np.full((2, 3, 3), value, np.uint8)


def batches(images, size, threads=2, make=make):
  named = ((str(k), k) for k in images)
  return batching.batches(named, size, (2, 3), make, threads)


@hypothesis.given(st.integers(0, 60), st.integers(1, 17), st.integers(1, 5))
@hypothesis.settings(max_examples=40, deadline=None)
def test_every_image_once_in_order(count, size, threads):
  found = list(batches(range(count), size, threads))
  assert [n for b in found for n in b.sources] == list(map(str, range(count)))
  assert all(len(b.sources) == size for b in found[:-1])
  for batch in found:
    assert batch.images.shape == (size, 2, 3, 3)
    values = [int(n) for n in batch.sources]
    want = [0 if k % 7 == 3 else k for k in values]
    want += [0] * (size - len(values))
    assert batch.images[:, 1, 2, 0].tolist() == want
    assert batch.problems == [f"no {k}" if k % 7 == 3 else "" for k in values]


@hypothesis.given(st.integers(1, 500), st.integers(1, 64))
def test_sizes(many, devices):
  few, large = batching.sizes(many, devices)
  assert few == devices
  assert large % devices == 0 and many <= large < many + devices


def test_they_are_made_ahead_but_not_far():
  read = []

  def endless():
    while True:
      read.append(len(read))
      yield len(read)

  made = batches(endless(), 4)
  for k in range(1, 6):
    next(made)
    assert len(read) == 4 * (k + 2)
  made.close()


def test_threads_share_a_batch():
  both = threading.Barrier(2, timeout=60)

  def together(value):
    both.wait()  # Nobody alone gets by.
    return make(0)

  (one,) = batches(range(2), 2, make=together)
  assert one.problems == ["", ""]


def test_other_errors_are_passed_on_and_threads_end():
  def broken(value):
    raise RuntimeError("a defect")

  before = threading.active_count()
  with pytest.raises(RuntimeError, match="a defect"):
    list(batches(range(9), 2, make=broken))
  some = batches(range(100), 2)
  next(some)
  some.close()
  assert threading.active_count() == before
