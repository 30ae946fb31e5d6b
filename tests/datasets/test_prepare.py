"""Preparing data sets from images that the user has, by the command."""

import contextlib
import csv
import hashlib
import io
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from mixer import cli
from mixer.datasets import split, wordnet
from mixer.datasets.prepare import idx
from tests.datasets import forms


class Run:
  """The command, as a user gives it; its data sets go to `data`."""

  def __init__(self, data: pathlib.Path):
    self.data, self.said = data, ""

  def __call__(self, *words: str, code: int = 0) -> str:
    """What it says on stdout; `said` has stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      got = cli.main(["prepare", *words, f"--data_dir={self.data}"])
    self.said = err.getvalue()
    assert got == code, self.said
    assert not code or self.said.splitlines()[-1].startswith("error: ")
    return out.getvalue()

  def read(self, name: str, part: str) -> list[dict[str, Any]]:
    """The records of a part, in order, as training reads them."""
    opened = split.open_split(name, part, str(self.data))
    return opened.read(range(len(opened)))

  def names(self, name: str, part: str) -> list[str]:
    return [record["file_name"] for record in self.read(name, part)]

  def problems(self, name: str) -> dict[str, str]:
    """File -> kind of problem, in the report."""
    (path,) = self.data.glob(f"{name}/**/report.tsv")
    rows = list(csv.reader(path.read_text().splitlines(), "excel-tab"))
    assert rows[0] == ["kind", "file", "what"] and all(map(all, rows))
    return {file: kind for kind, file, _ in rows[1:]}


@pytest.fixture
def run(tmp_path) -> Run:
  return Run(tmp_path / "data")


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> pathlib.Path:
  """All forms of all sets."""
  root = tmp_path_factory.mktemp("given")
  forms.imagenet21k(root / "i21k")
  forms.imagenet21k_p(root / "i21k_p")
  forms.ilsvrc(root / "ilsvrc")
  forms.imagenet_v2(root / "v2")
  forms.mnist(root / "mnist")
  forms.photos(root / "photos")
  forms.photos(root / "splits", splits=True)
  return root


# What the first version of this code made of the same files: command -> split
# -> records and the beginning of their SHA-256.
SHARES = "--hold_out=validation=10%,test=15%"
WHOLE = {
  "test": (5, "e2e1154ea595"),
  "train": (49, "434e04f1ac8f"),
  "validation": (6, "672612e559c4"),
}
V2 = {"test": (15, "272fbb46315a")}
PROCESSED = {
  "train": (18, "322822242f8e"),
  "validation": (6, "c35dd8039856"),
}
MADE: list[tuple[str, str, dict[str, tuple[int, str]]]] = [
  (f"imagenet21k {SHARES}", "i21k/winter21_whole.tar.gz", WHOLE),
  (
    f"imagenet21k/fall11 {SHARES} --max_bad=1 --seed=5",
    "i21k/folders",
    {
      "test": (3, "b855ed20f0c6"),
      "train": (33, "2fe02d431c0d"),
      "validation": (4, "73157582c650"),
    },
  ),
  ("imagenet21k_p", "i21k_p/imagenet21k_resized.tar.gz", PROCESSED),
  ("imagenet2012_real", "ilsvrc", {"validation": (5, "73b9003a1b75")}),
  ("imagenet_v2", "v2/imagenetv2-matched-frequency.tar.gz", V2),
  (
    "folder --name=x --seed=3",
    "photos",
    {
      "train": (70, "99ada4ac2541"),
      "validation": (8, "d05ede0a3c88"),
    },
  ),
  (
    "folder --name=x --hold_out=validation=7,test=5",
    "photos",
    {
      "test": (5, "d8d6dec74fdd"),
      "train": (66, "88fc5eadd212"),
      "validation": (7, "2a1bcef89b37"),
    },
  ),
  (
    "folder --name=x",
    "splits",
    {
      "train": (51, "0946c4c70ed8"),
      "validation": (27, "683e2f38118e"),
    },
  ),
]


def digests(folder: pathlib.Path) -> dict[str, tuple[int, str]]:
  found = {}
  for path in sorted(folder.glob("**/*.array_record-*")):
    reader = array_record_module.ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    digest = hashlib.sha256(b"".join(records)).hexdigest()[:12]
    found[re.findall(r"(\w+)\.array", path.name)[0]] = len(records), digest
  return found


@pytest.mark.parametrize(("command", "source", "made"), MADE)
def test_the_records_are_those_of_the_first_version(
  run, given, command, source, made
):
  run(*command.split(), f"--source={given / source}")
  assert digests(run.data) == made


def test_every_form_of_a_set_is_the_same_set(run, given):
  """In its splits: the order in `train` is the source's."""
  want = None
  for source in ("winter21_whole.tar.gz", "folders.tar", "tars", "folders"):
    run.data = run.data.with_name(source)
    run("imagenet21k", f"--source={given / 'i21k' / source}", SHARES)
    found = {
      part: run.names("imagenet21k", part)
      for part in ("train", "validation", "test")
    }
    found["train"] = sorted(found["train"])
    want = want or found
    assert found == want
  tars = [f"--source={p}" for p in (given / "i21k" / "tars").iterdir()]
  run.data = run.data.with_name("some")
  run("imagenet21k", *tars, SHARES)
  assert run.names("imagenet21k", "test") == want["test"]
  for source, made, name in (
    ("i21k_p/folders", PROCESSED, "imagenet21k_p"),
    (f"v2/{forms.V2_TOP}", V2, "imagenet_v2"),
  ):
    run(name, f"--source={given / source}")
    counts = {k: n for k, (n, _) in digests(run.data / name).items()}
    assert counts == {k: n for k, (n, _) in made.items()}


def test_imagenet_is_shuffled_and_known_to_tfds(run, given):
  flags = ("--hold_out=minival=50%", "--seed=1")
  run("imagenet2012", f"--source={given / 'ilsvrc'}", *flags)
  assert digests(run.data) == {
    "minival": (3, "aef5fbaa5918"),
    "train": (6, "27638f947e7a"),
    "validation": (5, "f149c0b168cc"),
  }
  theirs = tfds.builder("imagenet2012", data_dir=str(run.data))
  names = theirs.info.features["label"].names
  assert names == list(wordnet.classes("imagenet1k"))
  # TFDS deals out its list in the order of the files' names.
  labels = tfds.core.tfds_path(
    "datasets/imagenet2012/validation_labels.txt"
  ).read_text()
  found = split.open_split("imagenet2012", "validation", str(run.data))
  want = [labels.split()[n - 1] for n in forms.NUMBERS]
  assert [names[k] for k in found.labels] == want
  run("imagenet2012_real", f"--source={given / 'ilsvrc'}")
  theirs = tfds.builder("imagenet2012_real", data_dir=str(run.data))
  real = json.loads((given / "ilsvrc" / "real.json").read_text())
  source = theirs.as_data_source(
    "validation", decoders={"image": tfds.decode.SkipDecoding()}
  )
  for record, number in zip(source, forms.NUMBERS, strict=True):
    assert [*record["real_label"]] == real[number - 1]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_files_of_mnist(run, given, name):
  out = run(name, f"--source={given / 'mnist'}")
  assert f"has 23 images, and {name} 60,000." in run.said
  assert f"=configs/scratch.py:dataset={name},size=28x28" in out
  theirs = tfds.builder(name, data_dir=str(run.data))
  assert theirs.info.features["label"].names == list(idx.CLASSES[name])
  source = idx.IdxFiles(given / "mnist", name)
  for part, begin in (("train", 0), ("test", 23)):
    for record, (member, _) in zip(
      theirs.as_data_source(part), source.members(begin), strict=False
    ):
      np.testing.assert_array_equal(
        record["image"], tfds_image(member.data), strict=True
      )
      assert member.class_name == idx.CLASSES[name][record["label"]]


def tfds_image(png: bytes) -> np.ndarray:
  from PIL import Image

  return np.asarray(Image.open(io.BytesIO(png)))[..., None]
