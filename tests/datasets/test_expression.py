"""Split expressions, held against TFDS's own reading of them."""

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_datasets.core import naming, splits

from mixer.datasets import expression

_BOUND = st.one_of(
  st.just(""),
  st.integers(-60, 60).map(str),
  st.integers(-110, 110).map("{}%".format),
  st.floats(-101, 101).map("{:.2f}%".format),
  st.integers(-5, 5).map("{}shard".format),
  st.sampled_from(["x", "1.5", "--1", "5 %", "1_0", "_", "1e1"]),
)
_SLICE = st.one_of(
  st.just(""),
  st.tuples(_BOUND, _BOUND).map("[{0[0]}:{0[1]}]".format),
  _BOUND.map("[{}]".format),
  st.just("[1:2:3]"),
)
_PART = st.tuples(
  st.sampled_from(["train", "te-st", "all", "Train", ""]), _SLICE
)
_SPLITS = st.fixed_dictionaries(
  {
    "train": st.lists(st.integers(1, 20), min_size=1, max_size=4),
    "te-st": st.lists(st.integers(1, 9), min_size=1, max_size=3),
  }
)


def by_tfds(text, lengths):
  """What is taken, by name of split and number of example."""
  infos = [
    splits.SplitInfo(
      name=name,
      shard_lengths=counts,
      num_bytes=0,
      filename_template=naming.ShardedFileTemplate(
        data_dir=pathlib.Path("/d"),  # pyright: ignore[reportArgumentType]
        dataset_name="set",
        filetype_suffix="array_record",
      ),
    )
    for name, counts in lengths.items()
  ]
  found = []
  for one in splits.SplitDict(infos)[text].file_instructions:
    name, number = one.basename().split("set-")[1].split(".array_record-")
    before = sum(lengths[name][: int(number.split("-of-")[0])])
    start = before + one.skip
    found += [(name, i) for i in range(start, start + one.take)]
  return found


@given(st.lists(_PART, min_size=1, max_size=3), _SPLITS)
def test_it_takes_what_tfds_takes(parts, lengths):
  text = " + ".join(name + bounds for name, bounds in parts)
  try:
    expected = by_tfds(text, lengths)
  except (ValueError, KeyError, NotImplementedError, TypeError):
    with pytest.raises(ValueError, match=r"[^.]$"):
      expression.parts(text, lengths)
    return
  found = [
    (name, i)
    for name, start, stop in expression.parts(text, lengths)
    for i in range(start, stop)
  ]
  assert found == expected


@pytest.mark.parametrize(
  ("text", "why"),
  [
    ("tests", "there is no 'tests'"),
    ("train[:5000]", r"\[:5000\] is beyond its 30 examples"),
    ("train[:101%]", "is more than 100 %"),
    ("train[5]", r"names no end, as \[5:\] does"),
    ("train[", "written as a name, or a name and a"),
    ("all[:5]", "takes no slice"),
  ],
)
def test_what_is_wrong_is_said(text, why):
  with pytest.raises(ValueError, match=why):
    expression.parts(text, {"train": [20, 10]})
