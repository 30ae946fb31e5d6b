"""Parts of data sets: subsets by class, labels, sub-splits."""

import collections
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.datasets import digits, split
from mixer.errors import UserError

_NAMES = ("ant", "bee", "cat")


class Source(list):
  def __getitems__(self, indices):
    return [self[i] for i in indices]


def make(labels, **attributes) -> split.Split:
  """A split with those labels; the image of record i is b"i"."""
  source = Source(
    {"image": str(i).encode(), "label": int(label)}
    for i, label in enumerate(labels)
  )
  return split.Split("zoo", "train", source, _NAMES, **attributes)


def places(part: split.Split) -> list[int]:
  """Which records of the source it has, as its records say themselves."""
  return [int(part[i]["image"]) for i in range(len(part))]


def test_records():
  part = make([2, 0, 1])
  assert len(part) == 3
  assert part[1] == {"image": b"1", "label": 0, "index": 1}
  assert type(part[1]["label"]) is int
  np.testing.assert_array_equal(part.labels, [2, 0, 1])
  np.testing.assert_array_equal(part.records, [0, 1, 2])


def test_records_of_a_part():
  part = make([2, 0, 1, 1], indices=np.array([3, 0]))
  assert len(part) == 2
  assert part[0] == {"image": b"3", "label": 1, "index": 3}
  assert [r["index"] for r in (part[0], part[1])] == [3, 0]
  np.testing.assert_array_equal(part.labels, [1, 2])
  np.testing.assert_array_equal(part.records, [3, 0])


def test_it_ends():
  # What iterates over a sequence relies on it.
  with pytest.raises(IndexError):
    make([0, 1])[2]
  assert [r["label"] for r in make([0, 1])] == [0, 1]


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_a_label_out_of_range_is_refused(label):
  part = make([0, 1, label])
  assert part[1]["label"] == 1
  with pytest.raises(UserError) as caught:
    part[2]
  assert str(caught.value) == (
    f"data set zoo, split train, record 2 has label {label}, outside the 3 "
    "classes; take a split with labels, or prepare the data set anew."
  )
  with pytest.raises(UserError, match="record 2 has label"):
    part.per_class(1, 0)


def test_the_record_is_named_by_its_place_in_the_source():
  part = make([0, 1, 9], indices=np.array([2]))
  with pytest.raises(UserError, match="record 2 has label 9"):
    part[0]


def test_decode_error():
  error = make([0]).decode_error(5, ValueError("not an image"))
  assert isinstance(error, UserError)
  assert str(error).startswith(
    "data set zoo, split train, record 5 can't be decoded: not an image. "
  )


_LABELS = st.lists(st.integers(0, 2), min_size=3, max_size=60)


@given(_LABELS, st.integers(0, 2**32 - 1))
def test_per_class_has_exactly_that_many_of_each(labels, seed):
  there = collections.Counter(labels)
  most = min(there[k] for k in range(3))
  for count in {0, 1, most} if most else {0}:
    part = make(labels).per_class(count, seed)
    assert collections.Counter(part.labels.tolist()) == (
      dict.fromkeys(range(3), count) if count else {}
    )
    # Without repetition, and in the source's order.
    assert places(part) == sorted({*places(part)})
    assert [labels[i] for i in places(part)] == part.labels.tolist()
    np.testing.assert_array_equal(part.records, places(part))


@given(_LABELS, st.integers(0, 2**32 - 1), st.data())
def test_a_larger_count_contains_the_smaller(labels, seed, data):
  most = min(labels.count(k) for k in range(3))
  large = data.draw(st.integers(0, most))
  small = data.draw(st.integers(0, large))
  whole = make(labels)
  assert {*places(whole.per_class(small, seed))} <= {
    *places(whole.per_class(large, seed))
  }


def test_per_class_depends_on_the_seed_and_on_nothing_else():
  labels = np.arange(300) % 3
  first = places(make(labels).per_class(10, 0))
  assert places(make(labels).per_class(10, 0)) == first
  others = {tuple(places(make(labels).per_class(10, s))) for s in range(20)}
  assert len(others) == 20


def test_every_record_has_the_same_chance():
  whole = make(np.arange(30) % 3)
  drawn = collections.Counter(
    i for seed in range(400) for i in places(whole.per_class(2, seed))
  )
  # 80 times each is expected, with a standard deviation of 8.
  assert all(40 < drawn[i] < 120 for i in range(30))


def test_classes_are_drawn_apart():
  # Not the same places within each class.
  part = make(np.repeat([0, 1, 2], 100)).per_class(10, 0)
  within = [{i % 100 for i in places(part) if i // 100 == k} for k in range(3)]
  assert len({frozenset(w) for w in within}) == 3


@pytest.mark.parametrize("count", [3, 10])
def test_too_few_of_a_class_are_refused(count):
  with pytest.raises(UserError) as caught:
    make([0, 0, 0, 1, 1, 2, 2, 2]).per_class(count, 0)
  missing = ("ant", 3) if count > 3 else ("bee", 2)
  assert str(caught.value).startswith(
    f"data set zoo, split train has {missing[1]} examples of class "
    f"{missing[0]!r} and {count} are asked for; ask for fewer"
  )
  assert "by --config.data.examples_per_class=N." in str(caught.value)


def test_a_part_of_a_part():
  whole = make(np.arange(90) % 3, indices=np.arange(30, 90))
  part = whole.per_class(5, 0)
  assert all(i >= 30 for i in places(part))
  smaller = part.per_class(2, 1)
  assert {*places(smaller)} < {*places(part)}
  assert collections.Counter(smaller.labels.tolist()) == {0: 2, 1: 2, 2: 2}


def test_a_split_can_be_sent_to_a_worker():
  part = make([0, 1, 2] * 5).per_class(2, 0)
  assert places(pickle.loads(pickle.dumps(part))) == places(part)


def images(name: str, expression: str, data_dir: str) -> list[bytes]:
  part = split.open_split(name, expression, data_dir)
  return [part[i]["image"] for i in range(len(part))]


@pytest.mark.parametrize("cut", ["98%", "1%", "50%", "1000", "-5"])
def test_sub_splits_partition(data_dir, cut):
  whole = images("digits", "train", data_dir)
  first = images("digits", f"train[:{cut}]", data_dir)
  rest = images("digits", f"train[{cut}:]", data_dir)
  assert first and rest
  assert first + rest == whole
  assert len(whole) == digits.TRAIN_SIZE


def test_open_split(data_dir):
  part = split.open_split("digits", "test", data_dir)
  _, labels = digits.load()
  np.testing.assert_array_equal(part.labels, labels[digits.TRAIN_SIZE :])
  assert (part.name, part.expression) == ("digits", "test")
  assert part.class_names == tuple("0123456789")
  few = part.per_class(3, 0)
  assert collections.Counter(few.labels.tolist()) == dict.fromkeys(range(10), 3)


@pytest.mark.parametrize("expression", ["train[:0]", "train[1400:]"])
def test_an_empty_split_is_refused(data_dir, expression):
  with pytest.raises(UserError, match="digits"):
    split.open_split("digits", expression, data_dir)
