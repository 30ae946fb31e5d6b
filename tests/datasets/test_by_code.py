"""A data set by code, as docs/data.md shows it and with every mistake."""

import csv
import json
import re
import sys

import numpy as np
import pytest

import input_pipeline
from mixer import cli, preprocess
from mixer.datasets import split as split_lib
from mixer.errors import UserError
from tests import test_images, trained_files
from tests.conftest import ROOT


@pytest.fixture
def module(tmp_path, monkeypatch):
  """Makes a module importable."""
  monkeypatch.syspath_prepend(tmp_path)

  def write(name, text):
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.delitem(sys.modules, name, raising=False)

  return write


@pytest.fixture
def flowers(module, tmp_path):
  """The module of the docs, and a folder for it."""
  (text,) = re.findall(
    r"(?s)```python\n(import csv\n.*?)```", (ROOT / "docs/data.md").read_text()
  )
  module("flowers", text)
  folder = tmp_path / "photos"
  folder.mkdir()
  with open(folder / "flowers.csv", "w") as f:
    table = csv.writer(f)
    table.writerow(["file", "flower", "split"])
    for i in range(40):
      image = test_images.encode(test_images.picture(30, 40, i), "jpeg")
      (folder / f"{i}.jpg").write_bytes(image)
      name = ["daisy", "rose", "tulip"][i % 3]
      table.writerow([f"{i}.jpg", name, "train" if i < 32 else "test"])
  return folder


def test_the_example_of_the_docs_is_trained_and_evaluated_on(
  flowers, smoke_config, tmp_path, capsys
):
  smoke_config.data.name = "flowers:load"
  smoke_config.data.data_dir = str(flowers)
  smoke_config.data.train_split = "train[:75%]"
  smoke_config.data.eval_split = "auto"
  smoke_config.batch_size = 8
  inputs = input_pipeline.open_inputs(smoke_config)
  train, evaluation = inputs.train_split, inputs.eval_split
  assert (len(train), len(evaluation)) == (24, 8)
  assert evaluation.expression == "test"
  assert train.class_names == ("daisy", "rose", "tulip")
  assert inputs.identity["examples"] == {"train": 32}
  wanted = [
    preprocess.evaluation((flowers / f"{i}.jpg").read_bytes(), 16, 16)
    for i in range(32, 40)
  ]
  (batch,) = input_pipeline.eval_batches(evaluation, smoke_config)
  np.testing.assert_array_equal(batch["image"], wanted)
  assert batch["label"].tolist() == [i % 3 for i in range(32, 40)]
  # Other photographs are another data set.
  (flowers / "0.jpg").write_bytes((flowers / "1.jpg").read_bytes())
  expression = "train[:2]+train[9:11]"
  other = split_lib.open_split("flowers:load", expression, str(flowers))
  assert other.records.tolist() == [0, 1, 9, 10]
  assert other.identity["fingerprint"] != inputs.identity["fingerprint"]
  trained_files.npz(tmp_path / "w.npz", 3)
  words = [f"--checkpoint={tmp_path}/w.npz", "--data=flowers:load"]
  words += ["--split=test", f"--data_dir={flowers}", "--same_classes"]
  assert cli.main(["evaluate", *words, f"--output={tmp_path}/out"]) == 0
  found = json.loads((tmp_path / "out" / "results.json").read_text())
  assert found["metrics"]["examples"] == 8
  assert "data set      flowers:load, test: 8 ex" in capsys.readouterr().out


def test_arrays_are_images(module):
  module(
    "arrays",
    "import numpy as np\n"
    "grey = np.arange(120, dtype=np.uint8).reshape(10, 12)\n"
    "colour = np.stack([grey, grey // 2, 255 - grey], -1)\n"
    "def make(split, data_dir):\n"
    "  return [dict(image=grey, label=np.int64(1), file_name='g'),\n"
    "          dict(image=colour, label=0)], ['a', 'b']\n",
  )
  split = split_lib.open_split("arrays:make", "any", "")
  grey, colour = split.read([0, 1])
  assert (grey["label"], grey["file_name"], colour["index"]) == (1, "g", 1)
  pixels = preprocess.evaluation(grey["image"], 8, 10)
  assert pixels.shape == (8, 8, 3) and (pixels == pixels[..., :1]).all()
  want = preprocess.evaluation(test_images.encode(colour["image"]), 8, 10)
  got = preprocess.evaluation(colour["image"], 8, 10)
  np.testing.assert_array_equal(got, want)


_GOOD = "[{'image': b'x', 'label': 0}]"


def test_mistakes_of_the_function(module, smoke_config):
  for body, sentence in (
    ("return 1 / 0", r"split train: ZeroDivisionError: .*wrong.py, line 2\)"),
    ("raise ValueError('no such')", "split train: ValueError: no such"),
    ("return 7", r"TypeError: .*int.*by_code.py, line"),
    ("import nosuch", "No module named 'nosuch' .*; put its folder into PYTH"),
    (f"return {_GOOD}, ['a', 'a']", r"\('a', 'a'\) are no names of classes"),
    ("return [], ['a']", "no split 'train', or it is empty; it has train .0 e"),
    ("return [{'image': 'a.jpg', 'label': 0}], ['a']", "0: .*neither bytes n"),
    ("return [{'image': b'', 'label': 'a'}], ['a']", "0: TypeError: 'str'"),
    ("return {1: 2}, ['a']", "example 0: KeyError: 0"),
  ):
    module("wrong", f"def load(split, data_dir):\n  {body}\n")
    with pytest.raises(UserError, match=f"data set wrong:load.*{sentence}"):
      split_lib.open_split("wrong:load", "train", "")
  for name, sentence in (
    ("wrong:nosuch", "has no attribute 'nosuch'"),
    # Called by keywords alone, so nothing that others have made.
    ("os:system", "split true: TypeError: "),
  ):
    with pytest.raises(UserError, match=sentence):
      split_lib.open_split(name, "true", "")
  module("two", f"def load(split, data_dir):\n  return {_GOOD}, [split, 'b']\n")
  smoke_config.data.name = "two:load"
  with pytest.raises(UserError, match="other classes in train than in test"):
    input_pipeline.open_splits(smoke_config)
