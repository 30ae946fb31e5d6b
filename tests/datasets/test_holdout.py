"""Which images are held out: `mixer.datasets.prepare.build`."""

import collections
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.datasets.prepare import build
from mixer.errors import UserError

HOLD_OUTS = st.sampled_from(
  [{"a": 0.1}, {"a": 0.5}, {"b": 0.2, "a": 0.3}, {"a": 3}, {"b": 2, "a": 4}]
)
# Class and content of each file; content 0 is a file that doesn't decode.
FILES = st.lists(
  st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=60
)


def draw(files, hold_out):
  """Each good file's split."""
  sizes = collections.Counter({str(k): 0 for k in range(5)})
  sizes.update(str(label) for label, _ in files)
  labels = {name: k for k, name in enumerate(sizes)}
  place, out = build.by_class(hold_out, sizes, labels), []
  for label, content in files:
    if content:
      split, odd = place(bytes([content]), label, "")
      out.append((label, content, split, odd))
  return out


@given(FILES, HOLD_OUTS)
def test_laws_of_folders(files, hold_out):
  try:
    out = draw(files, hold_out)
  except UserError:  # More than the classes can spare.
    sizes = collections.Counter(label for label, _ in files)
    assert sum(hold_out.values()) > sum(n - 1 for n in sizes.values())
    return
  sides = collections.defaultdict(set)
  classes = collections.defaultdict(set)
  images = collections.defaultdict(list)
  for label, content, split, _ in out:
    sides[content].add(split)
    classes[content].add(label)
    images[label].append((content, split))
  # Equal images are on one side, and told if they are of two classes.
  assert all(len(of_content) == 1 for of_content in sides.values())
  told = {content for _, content, _, odd in out if odd}
  assert told == {c for c, labels in classes.items() if len(labels) > 1}
  for of_class in images.values():
    alone = {c for c, _ in of_class if len(classes[c]) == 1}
    splits = {split for _, split in of_class}
    # An image of another class, too, may have gone where that needed it.
    assert "train" in splits or not alone
    if len(alone) >= 2 and isinstance(next(iter(hold_out.values())), float):
      assert splits > {"train"}


@given(
  st.lists(st.integers(1, 40), min_size=1, max_size=5),
  st.sampled_from([{"a": 0.1}, {"a": 0.25, "b": 0.1}, {"a": 5, "b": 2}]),
)
def test_of_different_images_it_is_exact(sizes, hold_out):
  files = [(label, 1) for label, n in enumerate(sizes) for _ in range(n)]
  files = [(label, k % 250 + 1) for k, (label, _) in enumerate(files)]
  files = [files[k] for k in np.random.default_rng(0).permutation(len(files))]
  try:
    out = draw(files, hold_out)
  except UserError:
    assert sum(hold_out.values()) > sum(n - 1 for n in sizes)
    return
  got = collections.Counter((label, split) for label, _, split, _ in out)
  for label, n in enumerate(sizes):
    assert got[label, "train"] >= 1
    if isinstance(hold_out["a"], float):
      want = min(n - 1, max(1, round(hold_out["a"] * n)))
      assert got[label, "a"] == want
  if isinstance(hold_out["a"], int):
    total = collections.Counter(split for *_, split, _ in out)
    assert {split: total[split] for split in hold_out} == hold_out


def test_numbers_are_in_proportion():
  shares = build.shares({"a": 30, "b": 10, "c": 1}, {"v": 4})
  assert shares == {"v": {"a": 3, "b": 1, "c": 0}}


def test_of_archives_the_number_is_met_to_within_chance():
  images, wanted = 100_000, {"test": 2_000, "validation": 0.03}
  drawn = build.by_hash(wanted, images)
  got = collections.Counter()
  first = {}
  for k in range(images):
    key = build.digest(b"%d" % k, 0)
    first[k], odd = drawn(key, 0, "")
    got[first[k]] += 1
    assert not odd
  for split, number in (("test", 2_000), ("validation", 3_000)):
    assert abs(got[split] - number) < 4 * math.sqrt(number)
  # With more held out nothing changes sides, and another seed draws others.
  more = build.by_hash(wanted | {"c": 0.5}, images)
  other = 0
  for k in range(1000):
    split, _ = more(build.digest(b"%d" % k, 0), 0, "")
    assert split in (first[k], "c")
    other += drawn(build.digest(b"%d" % k, 1), 0, "")[0] != first[k]
  assert other > 50
  assert drawn(b"", 0, "own") == ("own", [])
  with pytest.raises(UserError, match="the source has one of its own"):
    drawn(b"", 0, "test")
