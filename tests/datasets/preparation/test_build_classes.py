"""The draw of held-out images by class: exact, fair to each, in one pass."""

import collections
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.datasets.preparation import build_classes
from mixer.errors import UserError

HOLD_OUTS = st.sampled_from(
  [{"a": 0.1}, {"a": 0.5}, {"b": 0.2, "a": 0.3}, {"a": 3}, {"b": 2, "a": 4}]
)
# Class and content of each file; content 0 is a file that doesn't decode.
FILES = st.lists(
  st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=60
)


def draw(files, hold_out, chunk=7, stop_after=()):
  """Each good file's split; begins anew after some of the chunks."""
  labels = {str(k): k for k in range(5)}
  sizes = collections.Counter(str(label) for label, _ in files)

  def fresh():
    return build_classes.Places(labels, [""], sizes, hold_out)

  places, committed, out = fresh(), [], []
  for n, start in enumerate(range(0, len(files), chunk)):
    part = files[start : start + chunk]
    found = places.find(np.array([c for _, c in part], np.uint64))
    for (label, content), before in zip(part, found, strict=True):
      if content:
        split, odd = places.place(content, int(before), label, "")
        out.append((label, content, split, odd))
    committed.append(places.take_chunk())
    places.commit(committed[-1])
    if n in stop_after:
      places = fresh()
      for rows in committed:
        places.commit(rows)
  return out, places.warnings()


@settings(deadline=None)
@given(FILES, HOLD_OUTS, st.sets(st.integers(0, 8)))
def test_laws(files, hold_out, stop_after):
  try:
    out, warnings = draw(files, hold_out)
  except UserError:  # More than the classes can spare.
    spare = sum(
      n - 1 for n in collections.Counter(c for c, _ in files).values()
    )
    assert sum(hold_out.values()) > spare
    return
  # In chunks of another size, and after restarts, the same.
  assert draw(files, hold_out, chunk=3, stop_after=stop_after)[0] == out
  sides = collections.defaultdict(set)
  classes = collections.defaultdict(set)
  by_class = collections.defaultdict(list)
  for label, content, split, _ in out:
    sides[content].add(split)
    classes[content].add(label)
    by_class[label].append((content, split))
  assert all(len(of_content) == 1 for of_content in sides.values())
  told = {content for _, content, _, odd in out if odd}
  assert told == {c for c, labels in classes.items() if len(labels) > 1}
  untrained = set()
  for label, images in by_class.items():
    own = {content for content, _ in images}
    alone = {c for c in own if len(classes[c]) == 1}
    splits = {split for _, split in images}
    if "train" not in splits:
      untrained.add(label)
    # An image of another class, too, may have gone where that needed it.
    assert "train" in splits or not alone
    if len(alone) >= 2 and isinstance(next(iter(hold_out.values())), float):
      assert splits > {"train"}
  sentence = [w for w in warnings if "none in train" in w]
  assert bool(sentence) == bool(untrained)


@given(
  st.lists(st.integers(0, 40), min_size=1, max_size=5),
  st.sampled_from([{"a": 0.1}, {"a": 0.25, "b": 0.1}, {"a": 5, "b": 2}]),
)
def test_of_different_images_it_is_exact(sizes, hold_out):
  files = [(label, 0) for label, n in enumerate(sizes) for _ in range(n)]
  files = [(label, k + 1) for k, (label, _) in enumerate(files)]
  np.random.default_rng(0).shuffle(files)
  files = [(int(label), int(content)) for label, content in files]
  wanted = next(iter(hold_out.values()))
  spare = sum(max(0, n - 1) for n in sizes)
  if isinstance(wanted, int) and sum(hold_out.values()) > spare:
    if files:
      with pytest.raises(UserError, match="can be spared"):
        draw(files, hold_out)
    return
  if not files:
    return
  out, _ = draw(files, hold_out)
  got = collections.Counter((label, split) for label, _, split, _ in out)
  if isinstance(wanted, int):
    total = collections.Counter(split for *_, split, _ in out)
    assert {split: total[split] for split in hold_out} == hold_out
    return
  for label, n in enumerate(sizes):
    assert got[label, "a"] == (
      min(n - 1, max(1, round(wanted * n))) if n else 0
    )
    assert got[label, "train"] >= min(n, 1)


def test_twenty_of_each_class():
  assert build_classes.shares(dict.fromkeys("abc", 20), {"v": 0.1}) == {
    "v": dict.fromkeys("abc", 2)
  }
  assert build_classes.shares({"a": 30, "b": 10, "c": 1}, {"v": 4}) == {
    "v": {"a": 3, "b": 1, "c": 0}
  }


def test_what_is_said_at_the_end():
  _, warnings = draw([(k, k + 1) for k in range(5)], {"a": 0.1})
  assert warnings == [
    "no image is held out as a, as no class has enough different ones; each "
    "keeps one for train"
  ]
  # Class 1 has only what class 0 holds out.
  files = [(0, 1), (0, 2), (1, 2)]
  assert draw(files, {"a": 0.5})[1] == [
    "1 classes have images, but none in train: 1"
  ]
  files = [(0, 1), (0, 1), (0, 1), (0, 2)]
  assert draw(files, {"a": 2})[1] == [
    "a has 1 images where --hold_out asks for 2, as there are bad or equal "
    "files"
  ]


def test_too_many_are_refused_before_anything_is_read():
  with pytest.raises(UserError, match="asks for 9 images as a, and 4 can be s"):
    build_classes.shares({"x": 3, "y": 3}, {"a": 9})
  with pytest.raises(UserError, match="names the split of every image"):
    build_classes.shares({}, {"a": 0.1})


def test_many_images_take_little_memory_and_no_copies():
  places = build_classes.Places({"x": 0}, [], {"x": 10**6}, {"a": 0.1})
  rng = np.random.default_rng(0)
  tracemalloc.start()
  for _ in range(300):
    chunk = np.zeros(1000, build_classes.ROW)
    chunk["hash"] = rng.integers(0, 2**63, 1000)
    places.commit(chunk)
  assert tracemalloc.get_traced_memory()[0] < 300_000 * 12 + 2**16
  tracemalloc.reset_peak()
  before = tracemalloc.get_traced_memory()[0]
  assert list(places.find(chunk["hash"][:32])) == [0] * 32
  assert tracemalloc.get_traced_memory()[1] < before + 2**16
  tracemalloc.stop()
