import csv

import numpy as np
from PIL import Image

from mixer import evaluation_files, tally


def test_names_that_are_no_text(tmp_path):
  names = ["$\\frac\x1b", "a\n\udcff", "\ud800"]
  files = evaluation_files.write(tmp_path, counted(3, _PAIRS), names, names)
  assert (tmp_path / "confusion.png") in files
  with open(
    tmp_path / "per_class.csv", encoding="utf-8", errors="surrogateescape"
  ) as f:
    rows = list(csv.DictReader(f))
  assert [row["name"] for row in rows] == [*names[:2], "?"]


def counted(k: int, pairs):
  """A tally of (label, predicted)."""
  t = tally.Tally(k)
  label, first = np.array(pairs, np.int32).T
  t.add(
    {"label": label, "classes": first[:, None], "loss": np.ones(len(label))}
  )
  return t


_PAIRS = [(0, 0), (0, 2), (0, 2), (0, 1), (2, 2), (2, 0)]
_IDS = ("n1", "n2", "n3")
_NAMES = ("crane (bird)", 'a "quoted", name', "Käse")


def read(path):
  with open(path, newline="", encoding="utf-8") as f:
    return list(csv.reader(f))


def test_files(tmp_path):
  files = evaluation_files.write(tmp_path, counted(3, _PAIRS), _IDS, _NAMES)
  assert {f.name for f in files} == {
    "per_class.csv",
    "confusion.csv",
    "confusion.npy",
    "confusion.png",
  }
  expected = np.array([[1, 1, 2], [0, 0, 0], [1, 0, 1]])
  matrix = np.load(tmp_path / "confusion.npy")
  assert matrix.dtype == np.int64
  np.testing.assert_array_equal(matrix, expected)
  header, *pairs = read(tmp_path / "confusion.csv")
  assert header == "true predicted count true_name predicted_name".split()
  assert pairs == [
    [_IDS[t], _IDS[p], str(expected[t, p]), _NAMES[t], _NAMES[p]]
    for t, p in zip(*np.nonzero(expected), strict=True)
  ]
  header, *table = read(tmp_path / "per_class.csv")
  assert header[:5] == "class name examples correct accuracy".split()
  assert table == [
    ["n1", _NAMES[0], "4", "1", "0.250000", "n3", _NAMES[2], "2"],
    ["n2", _NAMES[1], "0", "0", "", "", "", "0"],
    ["n3", _NAMES[2], "2", "1", "0.500000", "n1", _NAMES[0], "1"],
  ]


def test_many_classes_are_written_as_pairs_alone(tmp_path):
  k = 21_843
  ids = [f"n{i:08d}" for i in range(k)]
  files = evaluation_files.write(
    tmp_path, counted(k, [(5, 5), (5, 21_842)]), ids, ids
  )
  assert {f.name for f in files} == {"per_class.csv", "confusion.csv"}
  assert read(tmp_path / "confusion.csv")[1:] == [
    ["n00000005", "n00000005", "1", "n00000005", "n00000005"],
    ["n00000005", "n00021842", "1", "n00000005", "n00021842"],
  ]
  assert len(read(tmp_path / "per_class.csv")) == 1 + k


def test_the_drawing_is_dark_where_examples_are(tmp_path):
  k = 4
  wrong = [(i, (i + 1) % k) for i in range(k)]
  ids = list("abcd")
  evaluation_files.write(tmp_path, counted(k, wrong), ids, ids)
  with Image.open(tmp_path / "confusion.png") as image:
    grey = np.asarray(image.convert("L")).astype(int)
  # A quarter of the square, which is about half of the drawing; far more than
  # axes and letters have.
  assert (grey < 40).sum() > 0.08 * grey.size


def test_describe_prints_what_there_is():
  text = evaluation_files.describe(
    {
      "accuracy": 0.7644,
      "accuracy_top5": 0.93,
      "examples": 50_000,
      "real_accuracy": 0.8236,
      "real_examples": 46_837,
      "fewshot/5shot": 0.5,
      "fewshot/5shot_draws": [0.4, 0.6],
    },
    "softmax",
  )
  assert text.splitlines() == [
    "top-1         76.44%",
    "top-5         93.00%",
    "ReaL          82.36%",
    "              of 46,837 examples with valid labels",
    "examples      50,000",
    "5shot         50.00% (40.00% to 60.00% over 2 draws)",
  ]
