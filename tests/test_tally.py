import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from mixer import tally


def rows_of(labels, classes):
  return {
    "label": np.array(labels, np.int32),
    "classes": np.array(classes, np.int32),
    "loss": np.full(len(labels), 0.25, np.float32),
  }


def counted(k, labels, classes, cuts, valid=None):
  """A tally over the examples, in batches that end at `cuts`."""
  t = tally.Tally(k, valid)
  bounds = [0, *sorted(cuts), len(labels)]
  for start, stop in itertools.pairwise(bounds):
    t.add(rows_of(labels[start:stop], classes[start:stop].reshape(-1, 5)))
  return t


@st.composite
def predicted(draw):
  """Classes, labels, five different predictions of each, and batches."""
  k = draw(st.integers(5, 9))
  n = draw(st.integers(1, 30))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  labels = rng.integers(0, k, n)
  classes = np.array([rng.permutation(k)[:5] for _ in range(n)])
  valid = tuple(
    frozenset(rng.permutation(k)[: rng.integers(0, 4)].tolist())
    for _ in range(n)
  )
  cuts = draw(st.lists(st.integers(0, n), max_size=4))
  return k, labels, classes, valid, cuts


@given(predicted())
def test_equals_scikit_learn_for_any_batches(case):
  k, labels, classes, valid, cuts = case
  t = counted(k, labels, classes, cuts, valid)
  expected = metrics.confusion_matrix(
    labels, classes[:, 0], labels=np.arange(k)
  )
  assert t.confusion.dtype == np.int64
  np.testing.assert_array_equal(t.confusion.toarray(), expected)
  got = t.metrics()
  assert got["accuracy"] == metrics.accuracy_score(labels, classes[:, 0])
  top5 = [label in row for label, row in zip(labels, classes, strict=True)]
  assert got["accuracy_top5"] == np.mean(top5)
  assert got["examples"] == len(labels)
  assert got["loss"] == 0.25
  assert "not_numbers" not in got


@given(predicted())
def test_real_accuracy_is_that_of_the_authors(case):
  k, labels, classes, valid, cuts = case
  got = counted(k, labels, classes, cuts, valid).metrics()
  # As in arXiv 2006.07159: of the images with valid labels, those with a
  # prediction among these.
  right = [
    bool(np.isin(classes[i, 0], list(valid[i])))
    for i in range(len(labels))
    if len(valid[i]) > 0
  ]
  if right:
    assert got["real_accuracy"] == np.mean(right)
    assert got["real_examples"] == len(right)
  else:
    assert "real_accuracy" not in got


@given(predicted())
def test_the_table_sums_up_the_matrix(case):
  k, labels, classes, _, cuts = case
  t = counted(k, labels, classes, cuts)
  matrix = t.confusion.toarray()
  rows = list(t.classes())
  assert [r.label for r in rows] == list(range(k))
  for row in rows:
    wrong = matrix[row.label].copy()
    assert row.examples == wrong.sum() == (labels == row.label).sum()
    assert row.correct == wrong[row.label]
    wrong[row.label] = 0
    assert row.confused == wrong.max()
    # Of equals numpy's argmax takes the first.
    assert row.confused_with == (wrong.argmax() if wrong.any() else None)


def test_not_a_number_is_wrong_and_told():
  t = tally.Tally(6)
  nothing = [-1] * 5
  t.add(rows_of([0, 0, 5], [[0, 1, 2, 3, 4], nothing, nothing]))
  got = t.metrics()
  assert got["accuracy"] == got["accuracy_top5"] == 1 / 3
  assert (got["examples"], got["not_numbers"]) == (3, 2)
  assert t.confusion.sum() == 1
  assert [r.examples for r in t.classes()] == [2, 0, 0, 0, 0, 1]


def test_an_empty_set_of_valid_labels_everywhere():
  t = tally.Tally(5, [frozenset()])
  t.add(rows_of([1], [[1, 0, 2, 3, 4]]))
  assert "real_accuracy" not in t.metrics()


def test_memory_is_flat_at_the_size_of_imagenet_21k():
  k = 21_843
  rng = np.random.default_rng(0)
  t = tally.Tally(k)
  for _ in range(20):
    labels = rng.integers(0, k, 2_500)
    classes = np.stack([labels, *[(labels + i) % k for i in range(1, 5)]], 1)
    wrong = rng.random(2_500) < 0.3
    classes[wrong] = (classes[wrong] + 7) % k
    t.add(rows_of(labels, classes))
  c = t.confusion
  # Dense it would be 3.8 GB.
  assert c.data.nbytes + c.indices.nbytes + c.indptr.nbytes < 2e6
  assert c.sum() == t.metrics()["examples"] == 50_000
  assert t.metrics()["accuracy"] == pytest.approx(0.7, abs=0.01)
