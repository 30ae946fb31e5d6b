"""Preparing data sets from images that the user has, by the command."""

import contextlib
import csv
import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import read_only_builder, registered

from mixer import cli
from mixer.datasets import split, stored, wordnet
from mixer.datasets.prepare import journal, sets, small
from mixer.datasets.prepare import request as request_lib
from mixer.errors import UserError
from tests.conftest import ROOT
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


# What the first version of this code made of the same files: command and source
# -> of each split the records and the beginning of their SHA-256.
SHARES = "--hold_out=validation=10%,test=15%"
PROCESSED = "train 18 322822242f8e validation 6 c35dd8039856"
V2 = "test 15 272fbb46315a"
MADE = {
  f"imagenet21k {SHARES} --source=i21k/winter21_whole.tar.gz": (
    "test 5 e2e1154ea595 train 49 434e04f1ac8f validation 6 672612e559c4"
  ),
  f"imagenet21k/fall11 {SHARES} --max_bad=1 --seed=5 --source=i21k/folders": (
    "test 3 b855ed20f0c6 train 33 2fe02d431c0d validation 4 73157582c650"
  ),
  "imagenet21k_p --source=i21k_p/imagenet21k_resized.tar.gz": PROCESSED,
  "imagenet2012 --hold_out=minival=50% --seed=1 --source=ilsvrc": (
    "minival 3 aef5fbaa5918 train 6 27638f947e7a validation 5 f149c0b168cc"
  ),
  "imagenet2012_real --source=ilsvrc": "validation 5 73b9003a1b75",
  "imagenet_v2 --source=v2/imagenetv2-matched-frequency.tar.gz": V2,
  "folder --name=x --seed=3 --source=photos": (
    "train 70 99ada4ac2541 validation 8 d05ede0a3c88"
  ),
  "folder --name=x --hold_out=validation=7,test=5 --source=photos": (
    "test 5 d8d6dec74fdd train 66 88fc5eadd212 validation 7 2a1bcef89b37"
  ),
  "folder --name=x --source=splits": (
    "train 51 0946c4c70ed8 validation 27 683e2f38118e"
  ),
}


def digests(folder: pathlib.Path) -> str:
  found = []
  for path in sorted(folder.glob("**/*.array_record-*")):
    reader = array_record_module.ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    digest = hashlib.sha256(b"".join(records)).hexdigest()[:12]
    found += [path.name.split(".")[0].split("-")[1], str(len(records)), digest]
  return " ".join(found)


@pytest.mark.parametrize("command", MADE)
def test_the_records_are_those_of_the_first_version(
  run, given, monkeypatch, command
):
  monkeypatch.chdir(given)
  run(*command.split())
  assert digests(run.data) == MADE[command]


def test_every_form_of_a_set_is_the_same_set(run, given):
  """In its splits: the order in `train` is the source's."""
  tars = given / "i21k" / "tars"
  each = [f"--source={path}" for path in sorted(tars.iterdir(), reverse=True)]
  want = None
  for words in (
    [f"--source={given}/i21k/winter21_whole.tar.gz"],
    [f"--source={given}/i21k/folders.tar"],
    [f"--source={given}/i21k/folders"],
    [f"--source={tars}"],
    each,
  ):
    run.data = run.data.with_name(run.data.name + "x")
    run("imagenet21k", *words, SHARES)
    parts = ("train", "validation", "test")
    found = {part: sorted(run.names("imagenet21k", part)) for part in parts}
    want = want or found
    assert found == want
  for source, made, name in (
    ("i21k_p/folders", PROCESSED, "imagenet21k_p"),
    ("i21k_p/folders/imagenet21k_resized", PROCESSED, "imagenet21k_p"),
    (f"v2/{forms.V2_TOP}", V2, "imagenet_v2"),
  ):
    run(name, f"--source={given / source}", "--restart")
    counts = digests(run.data / name).split()[1::3]
    assert counts == made.split()[1::3]


def test_imagenet_is_known_to_tfds(run, given):
  run("imagenet2012", f"--source={given / 'ilsvrc'}")
  theirs = tfds.builder("imagenet2012", data_dir=str(run.data))
  names = theirs.info.features["label"].names
  assert names == list(wordnet.classes("imagenet1k"))
  # TFDS deals out its list in the order of the files' names.
  path = "datasets/imagenet2012/validation_labels.txt"
  labels = tfds.core.tfds_path(path).read_text().split()
  found = split.open_split("imagenet2012", "validation", str(run.data))
  want = [labels[n - 1] for n in forms.NUMBERS]
  assert [names[k] for k in found.labels] == want
  run("imagenet2012_real", f"--source={given / 'ilsvrc'}")
  theirs = tfds.builder("imagenet2012_real", data_dir=str(run.data))
  real = json.loads((given / "ilsvrc" / "real.json").read_text())
  source = theirs.as_data_source(
    "validation", decoders={"image": tfds.decode.SkipDecoding()}
  )
  for record, number in zip(source, forms.NUMBERS, strict=True):
    assert [*record["real_label"]] == real[number - 1]


def test_the_files_of_mnist(run, given, tmp_path):
  packed = given / "mnist" / "train-images-idx3-ubyte.gz"
  pixels = gzip.decompress(packed.read_bytes())[16:]
  for name in ("mnist", "fashion_mnist"):
    out = run(name, f"--source={given / 'mnist'}")
    assert f"--config=configs/scratch.py:dataset={name},size=28x28" in out
    theirs = tfds.builder(name, data_dir=str(run.data))
    want = list(small.CLASSES[name])
    assert theirs.info.features["label"].names == want
    found = [record["image"] for record in theirs.as_data_source("train")]
    assert np.stack(found).tobytes() == pixels
  root = forms.mnist(tmp_path / "in", "{}-{}.idx{}-ubyte")
  labels = np.array([9, 0, 0, 3, 0, 2, 7, 2, 5, 5, *range(10), 1, 2, 3], "u1")
  for content, says in (
    (forms.idx(labels), "holds the files of another set. For mnist"),
    (forms.idx(labels[::-1][:20]), "holds the files of another set. For mnist"),
    (forms.idx(labels)[:-1], "is no idx file of 1 axes, or damaged"),
  ):
    forms.write(root, {"train-labels.idx1-ubyte": content})
    run("mnist", f"--source={root}", "--restart", code=1)
    assert says in run.said


def test_what_a_user_is_told_of_photos(run, given):
  source = given / "photos"
  out = run("folder", "--name=pets", f"--source={source}", "--hold_out=8")
  here = run.data / "pets" / "1.0.0"
  assert out.splitlines()[:5] == [
    "3 files are left out; with problems: 1 damaged, 1 empty, 1 in two "
    f"classes, 1 mislabelled, 1 not an image; listed in {here}/report.tsv",
    f"data set pets is ready in {here}",
    "  train                 70 examples",
    "  validation             8 examples",
    "  3 classes: cat, d\u00f6g, eel",
  ]
  told = run.problems("pets")
  copy = told.pop("eel/copy.ppm", None) or told.pop("cat/3.ppm")
  assert copy == "in two classes"
  assert told == {
    "cat/mislabelled.jpg": "mislabelled",
    "cat/empty.ppm": "empty",
    "cat/cut.ppm": "damaged",
    "eel/page.jpg": "not an image",
  }
  assert run.said.splitlines() == [
    f"preparing pets in {run.data} from folders of images ({source})",
    "warning: 1 images are in no folder of a class and are left out: 1.ppm.",
    "warning: 1 kinds of files are left out, no images by their names: "
    ".mp4 (1).",
  ]
  (command,) = re.findall("^  python train.py (.*)", out, re.M)
  assert command == (
    "--config=configs/finetune.py:model=imagenet21k/Mixer-B_16,dataset=pets "
    f"--config.data.data_dir={run.data} --workdir=runs/pets"
  )
  # TFDS reads it, and without the source it says what is there.
  theirs = read_only_builder.builder_from_files("pets", data_dir=str(run.data))
  assert theirs.info.splits["train"].num_examples == 70
  again = run("folder", "--name=pets")
  assert again.startswith("data set pets was prepared before; --restart")
  assert again.splitlines()[1:] == out.splitlines()[1:] and run.said == ""
  out = run("folder", "--name=x", f"--source={source}", "--hold_out=none")
  assert "'--config.data.eval_split=train[-1:]'" in out
  assert len(run.read("x", "train[:-1]")) == 77


def folder_of(root: pathlib.Path, sizes: dict[str, int]) -> pathlib.Path:
  return forms.write(
    root,
    {
      f"{name}/{k}.ppm": forms.image(100 * c + k)
      for c, (name, size) in enumerate(sizes.items())
      for k in range(size)
    },
  )


def labels(run: Run, name: str, part: str) -> list[int]:
  found = [record["label"] for record in run.read(name, part)]
  return [found.count(k) for k in range(max(found) + 1)]


def test_a_folder_is_divided_by_class(run, tmp_path):
  root = folder_of(tmp_path / "in", dict(a=20, b=20, c=20, d=1, e=2))
  flags = ["folder", f"--source={root}"]
  run(*flags, "--name=x")
  assert labels(run, "x", "validation") == [2, 2, 2, 0, 1]
  assert labels(run, "x", "train") == [18, 18, 18, 1, 1]
  run(*flags, "--name=y", "--hold_out=validation=4,test=2")
  assert labels(run, "y", "validation") == [2, 1, 1]
  assert len(run.read("y", "test")) == 2
  run(*flags, "--name=z", "--hold_out=test=59", code=1)
  assert "59 images as test, and 58 can be spared: each class keeps" in run.said
  # The same files elsewhere give the same draw, another seed another one.
  moved = shutil.copytree(root, tmp_path / "moved")
  run("folder", f"--source={moved}", "--name=moved")
  run(*flags, "--name=other", "--seed=1")
  drawn = [run.names(n, "validation") for n in ("x", "moved", "other")]
  assert drawn[0] == drawn[1] and {*drawn[0]} != {*drawn[2]}
  alone = folder_of(tmp_path / "alone", dict(a=1, b=1))
  run("folder", "--name=alone", f"--source={alone}")
  assert "warning: 1 splits have no image, of so few: validation" in run.said
  assert labels(run, "alone", "train") == [1, 1]


def test_equal_images_in_two_splits_are_listed(run, tmp_path):
  root = folder_of(tmp_path, {"train/a": 4, "train/b": 3, "val/b": 2})
  shutil.copy(root / "train/a/0.ppm", root / "val/b/9.ppm")
  (root / "val/c").mkdir()
  shutil.copy(root / "train/b/0.ppm", root / "val/c/9.ppm")
  flags = ("folder", "--name=x", f"--source={root}")
  out = run(*flags)
  assert "0 files are left out; with problems: 2 in two classes, 2 in tw" in out
  assert "warning: 1 classes have images, but none in train: c." in run.said
  run(*flags[:1], "--name=y", flags[2], "--hold_out=7", code=1)
  assert "as validation, and 0 can be spared" in run.said


def test_bad_and_mislabelled_files(run, given, tmp_path):
  flags = ["folder", "--name=x", f"--source={given / 'photos'}"]
  run(*flags, "--bad=fail", code=1)
  assert "files can't be used, such as " in run.said
  run(*flags, "--mislabelled=fail", "--restart", code=1)
  assert "cat/mislabelled.jpg (mislabelled: a PPM by its cont" in run.said
  out = run(*flags, "--mislabelled=skip", "--restart")
  assert out.startswith("4 files") and "train                 69" in out
  for k in range(30):
    forms.write(tmp_path / "bad", {f"a/{k}.ppm": b"x" if k % 4 else b""})
  flags = ["folder", "--name=y", f"--source={tmp_path / 'bad'}"]
  run(*flags, code=1)
  assert "30 of 30 files can't be used, such as a/" in run.said
  forms.write(tmp_path / "bad", {"a/good.ppm": forms.image(1)})
  run(*flags, "--restart", code=1)
  assert "train                  1" in run(*flags, "--restart", "--max_bad=1")


def test_what_is_there_is_left_as_it_is(run, tmp_path):
  root = folder_of(tmp_path / "in", dict(a=10, b=10))
  flags = ["folder", "--name=x", f"--source={root}"]
  run(*flags)
  run(*flags, "--hold_out=20%", "--resize=4", code=1)
  assert "prepared before, and differs in short_side, hold_out; it" in run.said
  moved = root.rename(tmp_path / "moved")
  assert "prepared before; --restart prepares it anew" in run(*flags)
  run(*flags, "--restart", code=1)
  assert labels(run, "x", "validation") == [1, 1]
  flags = ["folder", "--name=x", f"--source={moved}"]
  forms.write(moved, {"c/1.ppm": forms.image(1000)})
  out = run(*flags, "--restart", "--hold_out=20%")
  assert "  3 classes: a, b, c\n" in out
  assert labels(run, "x", "validation") == [2, 2]
  assert [p.name for p in (run.data / "x").iterdir()] == ["1.0.0"]
  names = run.data / "x" / "1.0.0" / "label.labels.txt"
  names.write_text("a\nc\nb\n")
  run(*flags, "--hold_out=20%", code=1)
  assert "is not as it was prepared: label.labels.txt has changed" in run.said
  run(*flags, "--restart")


@pytest.mark.parametrize(
  ("words", "says"),
  [
    ("", "name a data set, or --list."),
    ("foldr --name=x --source=.", "Did you mean folder? "),
    ("digits --source=.", "digits is prepared as it comes"),
    ("cifar10 --resize=64 --bad=fail", "needs TensorFlow, for preparing only"),
    ("digits --resize=64", "for images that you have: imagenet21k"),
    ("mnist", "Without it: `python -m mixer prepare mnist --source=PATH`"),
    ("vtab/pet", "has no task 'vtab/pet'; take vtab/pets"),
    ("folder --name=x", "have with --source. `python -m mixer prepare folder"),
    ("folder --name=Big --source=.", "can't be called 'Big'; give it a --n"),
    ("folder --name=x --source=/nosuch", "/nosuch does not exist"),
    ("folder --name=x --source=LONG", "can't be looked at: File name too l"),
    ("folder --name=x --source=v2 --source=i21k", "--source is given 2 times"),
    ("folder --name=x --source=i21k/fall11_whole.tar", "is no folder; unpack"),
    ("imagenet21k --name=x", "--name is not for imagenet21k; leave it out."),
    (
      "imagenet21k:7.0.0",
      "name imagenet21k/winter21 or imagenet21k/fall11, in",
    ),
    ("imagenet21k --source=i21k_p/folders", "24 of 24 files can't be used, s"),
    (
      "imagenet21k_p --source=i21k/fall11_whole.tar",
      ".tar (unreadable: its class '' is",
    ),
    ("imagenet21k --source=ilsvrc/real.json", "is no whole tar archive: behi"),
    (
      "imagenet21k --source=i21k",
      "has 3 archives: fall11_whole.tar, folders.t",
    ),
    ("imagenet2012 --source=i21k/folders.tar", "such as top/n12345678/"),
    ("imagenet2012_real --source=i21k", "--source is not a single .json that"),
    ("mnist --source=photos", "photos has no train-images-idx3-ubyte. For mn"),
    ("imagenet21k --source=i21k/tars --hold_out=99999999", "of 13,153,500 (0:"),
    (
      "imagenet21k_p --source=i21k_p/folders --hold_out=validation=1%",
      "--hold_out draws a split validation, and the source has one",
    ),
  ],
)
def test_what_it_refuses(run, given, monkeypatch, words, says):
  monkeypatch.chdir(given)
  out = run(*words.replace("LONG", "a" * 300).split(), code=1)
  assert says in run.said, run.said
  assert out == "" and "Traceback" not in run.said


@pytest.mark.parametrize(
  "flag",
  [
    *("--bad=maybe", "--resize=-1", "--hold_out=0", "--hold_out=a=1,a=2"),
    *("--hold_out=ten%", "--hold_out=train=5", "--hold_out=a=5,b=10%"),
    "--hold_out=60%,b=60%",
  ],
)
def test_wrong_flags(run, flag):
  with pytest.raises(SystemExit):
    run("folder", "--name=x", "--source=.", flag)


def test_the_list(run):
  out = run("--list")
  assert "cifar-10-binary.tar.gz; or downloaded, 0.17 GB; needs Ten" in out
  assert "--source=a folder with ILSVRC2012_img_train.tar and" in out


def test_lists_of_classes(run, given, tmp_path):
  listed = tmp_path / "classes.txt"
  listed.write_text("# Mine.\nn12345678 seal\n\nn01440764,tench\n")
  flags = [f"--source={given / 'i21k/tars'}", f"--classes={listed}", SHARES]
  out = run("imagenet21k", *flags, "--max_bad=1")
  assert "  2 classes: n12345678, n01440764\n" in out
  assert {*run.problems("imagenet21k").values()} == {"unreadable"}
  for text in ("n12345678\nn12345678", "cat", "\n", "\xff"):
    listed.write_text(text, "latin-1")
    run("imagenet21k", *flags, "--restart", code=1)
    assert f"the list of classes {listed} " in run.said
  run("imagenet21k", *flags[:1], "--restart")
  assert "1 splits have no image, of so few: test." in run.said


# Stopping.
SIZES = dict(a=9, b=9, c=9)


def small_chunks(monkeypatch, images=8):
  monkeypatch.setattr(journal, "CHUNK_IMAGES", images)


def files_of(root: pathlib.Path) -> dict[str, str]:
  """Digests of all files of a data set."""
  return {
    path.relative_to(root).as_posix(): stored.file_digest(path)
    for path in sorted(root.rglob("*"))
    if path.is_file() and not path.name.endswith(".lock")
  }


class Killed(BaseException):
  """What nobody catches."""


@pytest.mark.parametrize(
  ("name", "source", "flags"),
  [
    ("folder", "photos", ["--name=x", "--hold_out=test=20%,validation=10%"]),
    pytest.param(
      *("imagenet2012", "ilsvrc", ["--hold_out=minival=50%", "--seed=1"]),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_stopped_at_every_fsync_and_rename(
  tmp_path, given, monkeypatch, name, source, flags
):
  """A kill there leaves what these calls have done."""
  small_chunks(monkeypatch, {"photos": 40}.get(source, 5))
  words = [name, f"--source={given / source}", *flags]
  whole = Run(tmp_path / "whole")
  whole(*words)
  count = stop = 0

  def stopping(function):
    def call(*args, **kwargs):
      nonlocal count
      count += 1
      if count == stop:
        raise Killed
      function(*args, **kwargs)

    return call

  for function in ("fsync", "rename", "replace"):
    monkeypatch.setattr(os, function, stopping(getattr(os, function)))
  while True:
    stop += 1
    count = 0
    run = Run(tmp_path / str(stop))
    try:
      run(*words)
      break
    except Killed:
      pass
    for path in run.data.glob(f"{name if name != 'folder' else 'x'}/[0-9]*"):
      assert (path / "dataset_info.json").exists()  # Whole or not there.
    count = -10_000
    run(*words)
    assert files_of(run.data) == files_of(whole.data)
    shutil.rmtree(run.data)
  assert stop > 25


def test_what_is_unfinished_is_no_data_set(run, given, monkeypatch):
  small_chunks(monkeypatch)
  real = os.rename

  def killed(old, new):
    if os.path.basename(new) == "1.0.0":
      raise Killed
    real(old, new)

  flags = ["folder", "--name=x", f"--source={given / 'photos'}"]
  with monkeypatch.context() as patch:
    patch.setattr(os, "rename", killed)
    with pytest.raises(Killed):
      run(*flags)
  for name in ("x", "x:1.0.0", "x:1.*.*"):
    with pytest.raises(registered.DatasetNotFoundError):
      read_only_builder.builder_from_files(name, data_dir=str(run.data))
  with pytest.raises(UserError, match="data set x is not prepared in"):
    split.open_split("x", "train", str(run.data))
  # With other options it doesn't go on.
  run(*flags, "--seed=1", code=1)
  assert "-1.0.0 differs in seed. Give its source and" in run.said
  work = run.data / "x" / ".preparing-1.0.0"
  content = (work / "00000.json").read_bytes()
  (work / "00000.json").write_bytes(content[:-9])
  run(*flags, code=1)
  assert "00000.json " in run.said and "begin anew with --restart" in run.said
  (work / "00000.json").write_bytes(content)
  run(*flags)
  assert not work.exists()


def test_a_source_goes_on_where_it_was_stopped(given):
  """Read anew are only the members that aren't committed, however read."""
  for name, source in (
    ("imagenet21k", "i21k/winter21_whole.tar.gz"),
    ("imagenet21k", "i21k/tars"),
    ("imagenet21k", "i21k/folders"),
    ("folder", "splits"),
    ("mnist", "mnist"),
    ("imagenet2012", "ilsvrc"),
  ):
    request = request_lib.Request(name, "", [given / source])
    opened = sets.open_source(request)
    opened.find_classes(lambda done: None)
    members = list(opened.members())
    done = [d for _, d in members]
    assert done == sorted(done) and done[-1] <= (opened.total or 99)
    for start in (0, 1, len(members) // 2, len(members) - 1, len(members)):
      assert list(opened.members(start)) == members[start:]
  # Of another content, it isn't the same.
  for source, inner in (("folders", "n01440764"), ("tars", "n01440764.tar")):
    request = sets.Request("imagenet21k", "", [given / "i21k" / source])
    before = sets.open_source(request).fingerprint
    os.utime(given / "i21k" / source / inner, (0, 0))
    assert sets.open_source(request).fingerprint != before


def test_a_full_disk(run, given, monkeypatch):
  small_chunks(monkeypatch)
  real, left = journal.array_record_module.ArrayRecordWriter, 20

  class Full(real):
    def write(self, record):
      nonlocal left
      left -= 1
      if left < 0:
        raise RuntimeError("write() failed: No space left on device; writing x")
      super().write(record)

  flags = ["folder", "--name=x", f"--source={given / 'photos'}"]
  with monkeypatch.context() as patch:
    patch.setattr(journal.array_record_module, "ArrayRecordWriter", Full)
    run(*flags, code=1)
  assert "No space left on device; writing x. Mend that or mak" in run.said
  usage = shutil.disk_usage(given)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage", lambda p: usage._replace(free=900))
    run(*flags, code=1)
    assert "has 0.000 GB free, and the data set takes up to" in run.said
  run(*flags)
  (run.data.parent / "file").touch()
  run.data = run.data.parent / "file" / "data"
  run(*flags, code=1)
  assert "can't be prepared in " in run.said and "Not a directory" in run.said


def test_two_at_once(run, given):
  with stored.lock("x", run.data):
    run("folder", "--name=x", f"--source={given / 'photos'}", code=1)
  assert "another process on this machine" in run.said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_and_gone_on_with(tmp_path, number):
  files = {f"c{k % 3}/{k}.ppm": forms.image(k, 40, 40) for k in range(9000)}
  forms.write(tmp_path / "photos", files)
  command = [
    *(sys.executable, "-m", "mixer", "prepare", "folder", "--name=pets"),
    *(f"--source={tmp_path / 'photos'}", f"--data_dir={tmp_path / 'data'}"),
  ]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  first = subprocess.Popen(command, cwd=ROOT, **pipes)
  deadline = time.monotonic() + 60
  while not list(tmp_path.glob("data/pets/.preparing-1.0.0/shards/*")):
    assert time.monotonic() < deadline and first.poll() is None
    time.sleep(0.01)
  first.send_signal(number)
  out, err = first.communicate(timeout=60)
  said = f"{number.name}: stopped; the same command goes on with it"
  assert (first.returncode, err.splitlines()[-1], out) == (42, said, "")
  second = subprocess.run(command, cwd=ROOT, check=True, **pipes)
  assert "data set pets is ready in" in second.stdout
