"""Sizes of known data sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.datasets import catalog, digits, glyphs, sizes, split
from mixer.errors import UserError


def test_names_are_those_of_the_catalog():
  assert {*sizes.SIZES} - {"jft_300m"} <= {*catalog.ENTRIES}


def test_shipped_sets_have_these_sizes(data_dir):
  assert digits.Digits is not None
  classes, splits = sizes.SIZES["digits"]
  for name, count in splits.items():
    found = split.open_split("digits", name, data_dir)
    assert (len(found), len(found.class_names)) == (count, classes)
  classes, splits = sizes.SIZES["glyphs"]
  assert classes == len(glyphs.CLASSES)
  assert splits == {
    "train": classes * glyphs.TRAIN_PER_CLASS,
    "test": classes * glyphs.TEST_PER_CLASS,
  }


@pytest.mark.parametrize(
  "expression",
  ["train", "train[:98%]", "train[98%:]", "train[:100]", "train[-50:]"],
)
def test_parts_are_those_of_tfds(data_dir, expression):
  found = split.open_split("digits", expression, data_dir)
  assert sizes.find("digits", expression) == (len(found), 10)


@given(st.integers(0, 100))
def test_two_parts_make_the_whole(percent):
  first = sizes.find("imagenet2012", f"train[:{percent}%]")
  second = sizes.find("imagenet2012", f"train[{percent}%:]")
  assert first and second and first[0] + second[0] == 1_281_167


def test_what_is_not_known():
  assert sizes.find("mine", "train") is None
  for expression in ("tests", "train[:5%]+test"):
    with pytest.raises(UserError, match="--examples=N"):
      sizes.find("cifar10", expression)
