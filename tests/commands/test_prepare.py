"""The command that prepares data sets, as a user gives it."""

import collections
import csv
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from mixer import cli, preprocess
from mixer.commands import prepare
from mixer.datasets import catalog, locate
from mixer.datasets import split as split_lib
from tests.conftest import ROOT
from tests.datasets import (
  prepared,
  test_imagenet2012,
  test_mnist,
  test_vtab,
  tfds_writer,
)
from tests.datasets.preparation import tfrecords


def image(number: int, kind: str = "JPEG") -> bytes:
  pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, kind)
  return out.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
  """Forty images in two classes, and what comes along."""
  root = tmp_path_factory.mktemp("photos")
  for k in range(40):
    path = root / ("cat", "dog")[k % 2] / f"{k}.jpg"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(image(k))
  (root / "cat" / "empty.jpg").touch()
  (root / "cat" / "cut.jpg").write_bytes(image(1)[:200])
  (root / "dog" / "png.jpg").write_bytes(image(99, "PNG"))
  (root / "dog" / "notes.txt").write_text("no image")
  return root


def tar(path: pathlib.Path, files: dict[str, bytes]) -> bytes:
  content = io.BytesIO()
  mode = "w:gz" if path.suffix == ".gz" else "w"
  with tarfile.open(fileobj=content, mode=mode) as archive:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return content.getvalue()


@pytest.fixture
def run(capfd, tmp_path):
  """Runs the command in this process; its files go to tmp_path/data."""

  def run(*args: str, code: int = 0) -> tuple[str, str]:
    assert (
      cli.main(["prepare", *args, f"--data_dir={tmp_path / 'data'}"]) == code
    )
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    if code:
      assert err.splitlines()[-1].startswith("error: ")
    return out, err

  return run


def next_commands(out: str) -> list[list[str]]:
  lines = re.findall("^  python train.py (.*)", out, re.M)
  return [shlex.split(line, comments=True) for line in lines]


def next_words(out: str) -> list[str]:
  return next_commands(out)[0]


def test_photos_of_a_user(run, photos, tmp_path):
  out, err = run(
    *("folder", "--name=pets", f"--source={photos}", "--workers=0"),
    "--hold_out=validation=8,test=5",
  )
  here = tmp_path / "data" / "pets" / "1.0.0"
  assert err.startswith(f"preparing data set pets in {tmp_path}/data from ")
  assert f"data set pets is ready in {here}\n" in out
  assert re.search("^  train +28 examples$", out, re.M)
  assert re.search("^  validation +8 examples$", out, re.M)
  assert "  2 classes: cat, dog\n" in out
  left, listed = out.splitlines()[0].split("; listed in ")
  assert set(left.split("; ")) == {
    "left out: 1 damaged, 1 empty",
    "1 of another format than named, kept",
  }
  assert "cat/cut.jpg" in pathlib.Path(listed).read_text()
  source, classes, _ = prepared.open_source(
    "pets", "validation", str(tmp_path / "data")
  )
  assert len(source) == 8 and classes == ("cat", "dog")

  # Once more it says what is there, without the source.
  again, err = run("folder", "--name=pets")
  assert "was prepared before, from " in again and str(photos) in again
  assert again.splitlines()[2:] == out.splitlines()[1:]
  assert err == ""


def files_of(root: pathlib.Path, per_class: dict[str, int]) -> pathlib.Path:
  """A folder of different images."""
  for c, (name, count) in enumerate(per_class.items()):
    for k in range(count):
      path = root / name / f"{k}.jpg"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(image(100 * c + k))
  return root


def labels(tmp_path: pathlib.Path, name: str, split: str) -> dict[int, int]:
  """Label -> images in a split."""
  source, _, _ = prepared.open_source(name, split, str(tmp_path / "data"))
  found = [source[i]["label"] for i in range(len(source))]
  return dict(sorted(collections.Counter(found).items()))


def test_a_small_folder_is_divided_by_class(run, tmp_path):
  """No chance in it: the paper's tenth of 3 classes of 20 images."""
  root = files_of(tmp_path / "in", {"a": 20, "b": 20, "c": 20, "d": 1, "e": 2})
  flags = ["folder", f"--source={root}", "--workers=0"]
  out, err = run(*flags, "--name=pets")
  assert "warning" not in err
  assert re.search("^  validation +7 examples$", out, re.M)
  assert labels(tmp_path, "pets", "validation") == {0: 2, 1: 2, 2: 2, 4: 1}
  assert labels(tmp_path, "pets", "train") == {0: 18, 1: 18, 2: 18, 3: 1, 4: 1}
  run(*flags, "--name=counted", "--hold_out=validation=4,test=2")
  found = labels(tmp_path, "counted", "validation")
  assert found == {0: 2, 1: 1, 2: 1}
  assert sum(labels(tmp_path, "counted", "test").values()) == 2
  _, err = run(*flags, "--name=x", "--hold_out=test=59", code=1)
  assert "asks for 59 images as test, and 58 can be spared: each cl" in err
  assert "as in --hold_out=test=29." in err
  # The same files elsewhere give the same draw, another seed another one.
  shutil.copytree(root, tmp_path / "moved")
  run("folder", f"--source={tmp_path / 'moved'}", "--workers=0", "--name=moved")
  run(*flags, "--name=again", "--seed=1")
  drawn = [
    prepared.open_source(name, "validation", str(tmp_path / "data"))[0]
    for name in ("pets", "moved", "again")
  ]
  first, same, other = ([s[i]["image"] for i in range(len(s))] for s in drawn)
  assert first == same
  assert len(first) == len(other) and set(first) != set(other)


def test_classes_of_one_image_all_train(run, tmp_path):
  root = files_of(tmp_path / "in", dict.fromkeys("abcdefgh", 1))
  out, err = run("folder", "--name=x", f"--source={root}", "--workers=0")
  assert "warning: no image is held out as validation, as no class has" in err
  assert labels(tmp_path, "x", "train") == dict.fromkeys(range(8), 1)
  assert "validation " not in out


def test_equal_images_are_told(run, tmp_path):
  root = files_of(tmp_path / "in", {"train/a": 4, "train/b": 3, "val/a": 2})
  (root / "train/b/9.jpg").write_bytes((root / "train/a/0.jpg").read_bytes())
  (root / "val/a/9.jpg").write_bytes((root / "train/a/1.jpg").read_bytes())
  out, _ = run("folder", "--name=x", f"--source={root}", "--workers=0")
  told, path = out.splitlines()[0].split("; listed in ")
  assert sorted(told.removeprefix("equal images: ").split(", ")) == [
    "1 in two classes", "1 in two splits"
  ]  # fmt: skip
  rows = [r.split("\t") for r in pathlib.Path(path).read_text().splitlines()]
  (row,) = [r for r in rows if r[0] == "in two classes"]
  assert {row[1], row[2][-1]} in (
    {"train/a/0.jpg", "b"},
    {"train/b/9.jpg", "a"},
  )
  (row,) = [r for r in rows if r[0] == "in two splits"]
  assert row[1] in ("train/a/1.jpg", "val/a/9.jpg")
  # What has splits is not divided once more.
  _, err = run(
    *("folder", "--name=y", f"--source={root}", "--hold_out=10%"), code=1
  )
  assert "the source names the split of every image; leave it out." in err


def test_a_damaged_set_is_not_prepared_before(run, tmp_path):
  root = files_of(tmp_path / "in", {"a": 10, "b": 10})
  flags = ["folder", "--name=x", f"--source={root}", "--workers=0"]
  run(*flags)
  folder = tmp_path / "data" / "x" / "1.0.0"
  names = folder / "label.labels.txt"
  names.write_text("a\nc\n")
  _, err = run(*flags, code=1)
  assert "is not as it was prepared: label.labels.txt has changed" in err
  assert err.endswith("--restart prepares it anew.\n")
  info = folder / "dataset_info.json"
  whole = json.loads(info.read_text())
  (folder / "manifest.json").unlink()
  for content in ("{", json.dumps(whole | {"citation": 5})):
    info.write_text(content)
    _, err = run(*flags, code=1)
    assert err.startswith("error: ") and "prepare" in err
  info.write_text(json.dumps(whole))
  names.write_text("a\nb\n")
  (folder / "preparation.json").write_text("[]")
  _, err = run(*flags, code=1)
  assert "preparation.json holds no JSON object" in err
  run(*flags, "--restart")
  run(*flags)


def test_what_differs_from_what_is_there_is_told(run, tmp_path):
  root = files_of(tmp_path / "in", {"a": 10, "b": 10})
  flags = ["folder", "--name=x", f"--source={root}", "--workers=0"]
  run(*flags)
  before = labels(tmp_path, "x", "validation")
  assert before == {0: 1, 1: 1}
  out, _ = run(*flags)
  assert "x was prepared before, from folders of images (" in out
  _, err = run(*flags, "--hold_out=20%", "--resize=4", code=1)
  assert (
    "differs in hold_out (validation=10% then, validation=20% now), " in err
  )
  assert "short_side (0 then, 4 now)" in err and "--restart prepares it" in err
  # The options of which no source tells.
  _, err = run("folder", "--name=x", "--hold_out=20%", code=1)
  assert (
    "differs in hold_out (validation=10% then, validation=20% now). " in err
  )
  assert "x is ready" in run("folder", "--name=x")[0]
  (root / "a" / "99.jpg").write_bytes(image(999))
  _, err = run(*flags, code=1)
  assert "differs in the source (its place, or its files' number, sizes " in err
  # Where the source is gone there is nothing to compare with.
  moved = root.rename(tmp_path / "moved")
  out, _ = run(*flags)
  assert f"not compared with its source now: the source {root} does not" in out
  assert labels(tmp_path, "x", "validation") == before
  # An attempt that fails leaves it as it is.
  _, err = run(*flags, "--restart", code=1)
  assert f"the source {root} does not exist" in err
  assert labels(tmp_path, "x", "validation") == before

  flags = ["folder", "--name=x", f"--source={moved}", "--workers=0"]
  (moved / "c").mkdir()
  (moved / "c" / "1.jpg").write_bytes(image(1000))
  out, _ = run(*flags, "--restart", "--hold_out=20%")
  assert f"data set x is ready in {tmp_path / 'data/x/1.0.0'}\n" in out
  assert "  3 classes: a, b, c\n" in out
  assert labels(tmp_path, "x", "validation") == {0: 2, 1: 2}
  assert "x was prepared before" in run(*flags, "--hold_out=20%")[0]
  left = {p.name for p in (tmp_path / "data").rglob("*preparing*")}
  assert left == {".preparing-1.0.0.lock"}


def test_a_shard_or_record_of_a_stopped_one_that_is_damaged(run, tmp_path):
  root = files_of(tmp_path / "in", {"a": 30, "b": 30})
  for k in range(20):  # Ends it, after all that is good was committed.
    (root / "a" / f"bad{k}.jpg").write_bytes(b"x")
  flags = ["folder", "--name=x", f"--source={root}", "--workers=0"]
  run(*flags, code=1)
  work = tmp_path / "data/x/.preparing-1.0.0"
  for name in ("identity.json", "00000.json", "shards/00000.hashes"):
    path = work / name
    content = path.read_bytes()
    for damaged in (
      content[:-40],
      content.replace(b"1", b"2", 1),
      b"[]",
      b"\xff\xfe",
      b"",
      b"[" * 100_000,
    ):
      if damaged != content:
        path.write_bytes(damaged)
        _, err = run(*flags, "--max_bad=1", code=1)
        assert f"{name.rpartition('/')[2]} " in err and "--restart" in err
    path.write_bytes(content)
  run(*flags, "--max_bad=1")
  preparation = tmp_path / "data/x/1.0.0/preparation.json"
  preparation.write_text("{")
  _, err = run(*flags, code=1)
  assert "preparation.json is no JSON" in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_stdout_has_no_letters_for(tmp_path, monkeypatch, encoding):
  """What is said at the end doesn't undo the work."""
  root = files_of(tmp_path / "in", {"\u732b": 3, "\u00fcber": 3})
  out = io.TextIOWrapper(io.BytesIO(), encoding)
  monkeypatch.setattr(sys, "stdout", out)
  flags = ["folder", "--name=x", f"--source={root}", "--workers=0"]
  assert cli.main(["prepare", *flags, f"--data_dir={tmp_path / 'data'}"]) == 0
  out.flush()
  said = out.buffer.getvalue()
  assert rb"\u732b" in said and b"train.py --config" in said
  assert labels(tmp_path, "x", "validation") == {0: 1, 1: 1}


def test_odd_files_cost_themselves(run, photos, tmp_path, monkeypatch):
  """An EPS by a JPEG's name, a huge file, a black and a clear image."""
  source = shutil.copytree(photos, tmp_path / "source") / "cat"
  square = Image.fromarray(np.full((20, 20), 99, np.uint8))
  eps = io.BytesIO()
  square.save(eps, "EPS")
  (source / "eps.jpg").write_bytes(eps.getvalue())
  with open(source / "huge.jpg", "wb") as f:
    f.truncate(20 << 30)
  Image.fromarray(np.full((20, 20), 99, np.uint16)).save(source / "dark.png")
  square.putalpha(0)
  square.save(source / "clear.png")
  monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)
  out, _ = run(
    *("folder", "--name=odd", f"--source={source.parent}", "--workers=0"),
    "--hold_out=none",
  )
  assert "1 black, as their values leave the upper 8 bits empty" in out
  here = tmp_path / "data" / "odd" / "1.0.0"
  rows = csv.reader((here / "report.tsv").read_text().splitlines(), "excel-tab")
  told = {name: (kind, what) for kind, name, what in rows}
  assert told["cat/eps.jpg"][0] == "not an image"
  assert told["cat/huge.jpg"][0] == "unreadable"
  assert "21,474,836,480 bytes" in told["cat/huge.jpg"][1]
  assert told["cat/dark.png"][0] == "dark"
  examples = split_lib.open_split("odd", "train", str(tmp_path / "data"))
  assert len(examples) == 43
  pictures = [preprocess.decode(r["image"]) for r in examples.read(range(43))]
  small = sorted(p.mean() for p in pictures if p.shape == (20, 20, 3))
  assert small == [0, 255]


def test_the_next_command_is_one(run, photos, tmp_path):
  out, _ = run(
    *("folder", "--name=pets", f"--source={photos}", "--workers=0"),
    "--hold_out=none",
  )
  tuned, scratch = next_commands(out)
  assert tuned[0] == (
    "--config=configs/finetune.py:model=imagenet21k/Mixer-B_16,dataset=pets"
  )
  assert scratch[0] == "--config=configs/scratch.py:dataset=pets"
  assert tuned[-1] == "--workdir=runs/pets" != scratch[-1]
  # `pets` behind the colon is the Oxford one.
  for words, named in ((tuned, ["--config.data.name=pets"]), (scratch, [])):
    assert words[1:-1] == [
      *named,
      f"--config.data.data_dir={tmp_path / 'data'}",
      "--config.data.train_split=train[:-1]",
      "--config.data.eval_split=train[-1:]",
    ]
    parts = [word.partition("split=")[2] for word in words[-3:-1]]
    data_dir = str(tmp_path / "data")
    sizes = [len(prepared.open_source("pets", p, data_dir)[0]) for p in parts]
    assert sizes == [40, 1]


def test_imagenet21k_from_its_tar(run, tmp_path):
  files = {}
  for c in ("n01440764", "n01443537"):
    inner = {f"{c}_{k}.JPEG": image(k) for k in range(4)}
    files[f"{c}.tar"] = tar(pathlib.Path("x.tar"), inner)
  path = tmp_path / "winter21_whole.tar.gz"
  path.write_bytes(tar(path, files))
  flags_ = [f"--source={path}", "--hold_out=validation=2", "--workers=0"]
  out, err = run("imagenet21k", *flags_)
  assert "warning: the source has 2 classes, and the release winter21" in err
  assert "data set imagenet21k is ready in " in out
  words = next_words(out)
  assert words[:2] == [
    "--config=configs/mixer_b16_i21k.py",
    f"--config.data.data_dir={tmp_path / 'data'}",
  ]
  # By its short name, as it is the only release there.
  data_dir = str(tmp_path / "data")
  assert len(prepared.open_source("imagenet21k", "train", data_dir)[0]) == 6
  _, err = run("imagenet21k/nosuch", *flags_, code=1)
  assert "it has imagenet21k/winter21 and imagenet21k/fall11." in err
  _, err = run("imagenet21k:7.0.0", code=1)
  assert "leave :7.0.0 out." in err


def test_mnist_from_its_files(run, tmp_path):
  source = test_mnist.write(tmp_path / "in")
  flags = ["mnist", f"--source={source}", "--workers=0"]
  out, err = run(*flags)
  assert "warning: the split test has 7 images, and mnist 10,000." in err
  assert "  10 classes: 0, 1, 2, ..., 9\n" in out
  words = next_commands(out)[1]
  assert words[0] == "--config=configs/scratch.py:dataset=mnist,size=28x28"
  again, _ = run(*flags)
  assert again.startswith("data set mnist was prepared before, from idx files")


def test_what_tfds_has_made_of_a_set_of_ours_is_converted(run, tmp_path):
  tfrecords.make(tmp_path / "data", name="mnist")
  out, _ = run("mnist")
  assert out.startswith("converting data set mnist from TFRecord (")
  out, _ = run("mnist")
  assert out.startswith("data set mnist was prepared before; nothing is to be")


def test_without_a_source_tfds_is_asked(run, monkeypatch):
  monkeypatch.setattr(catalog, "missing", lambda needs: list(needs))
  _, err = run("mnist", code=1)
  assert "TFDS's builder of mnist needs TensorFlow, for preparing only" in err
  assert "Without it: `python -m mixer prepare mnist --source=PATH` prep" in err


def test_what_was_put_where_tfds_wants_it(run, tmp_path):
  test_imagenet2012.write(tmp_path / "data" / "downloads" / "manual")
  out, _ = run("imagenet2012", "--workers=0")
  assert re.search("^  validation +5 examples$", out, re.M)
  assert next_words(out)[0] == "--config=configs/mixer_b16_i1k.py"


def test_the_real_labels(run, tmp_path):
  source = test_imagenet2012.write(tmp_path / "in")
  test_imagenet2012.real_json(source / "real.json")
  out, _ = run("imagenet2012_real", f"--source={source}", "--workers=0")
  assert "  1,000 classes: n01440764, n01443537, n01484850, ..., " in out
  assert "it has no split `train`: for evaluation only" in out


def test_a_task_of_vtab_is_its_data_set(run, tmp_path):
  scene = test_vtab.example("clevr", 0)
  tfds_writer.write(tmp_path / "data", "clevr", [scene], {"train": 3})
  out, _ = run("vtab/clevr_count")
  assert out.startswith("vtab/clevr_count is made of the data set clevr\n")
  assert "VTAB-1k makes of it vtab/clevr_count and vtab/clevr_distance\n" in out
  assert "sets with `image` and `label`, or --config.data.name=vtab/clev" in out


def test_a_tfrecord_set_from_elsewhere(run, tmp_path):
  tfrecords.make(tmp_path / "old")
  out, err = run("others", f"--source={tmp_path / 'old'}")
  assert out.startswith("converting data set others from TFRecord (")
  assert re.search("^  train +12 examples$", out, re.M)
  out, _ = run("others", f"--source={tmp_path / 'old'}")
  assert out.startswith(
    "data set others was prepared before; nothing is to be done, and --source "
    "is not looked at\n"
  )
  assert err == ""


def test_a_tfrecord_set_in_its_place(run, tmp_path):
  folder = tfrecords.make(tmp_path / "data")
  out, _ = run("others")
  (command,) = re.findall("needs them: rm (.*)", out)
  assert command == f"{folder}/*.tfrecord-*"
  subprocess.run(f"rm {command}", shell=True, check=True)
  source, _, _ = prepared.open_source("others", "test", str(tmp_path / "data"))
  assert len(source) == 4


def test_a_tfrecord_set_twice(run, tmp_path):
  for config in ("a", "b"):
    tfrecords.make(tmp_path / "old", config=config)
  _, err = run("others", f"--source={tmp_path / 'old'}", code=1)
  assert "holds the data set others more than once: " in err
  out, _ = run("others/b", f"--source={tmp_path / 'old'}")
  assert "data set others/b is ready in " in out


def test_a_set_without_labels_of_its_own(run, tmp_path):
  folder = tfrecords.make(tmp_path / "data")
  text = (folder / "features.json").read_text()
  (folder / "features.json").write_text(text.replace('"label"', '"target"'))
  (folder / "label.labels.txt").rename(folder / "target.labels.txt")
  out, _ = run("others")
  assert "its features are image, target; training here takes sets" in out
  assert "train.py" not in out


def test_a_shipped_set(run, tmp_path):
  out, _ = run("digits")
  assert out.startswith(f"preparing data set digits in {tmp_path}/data (once)")
  assert "  10 classes: 0, 1, 2, ..., 9\n" in out
  assert next_words(out)[0] == "--config=configs/smoke.py"
  _, err = run("digits:3.0.0", code=1)
  assert "comes in one form; name it digits." in err


def test_the_list(capsys):
  assert cli.main(["prepare", "--list"]) == 0
  out = capsys.readouterr().out
  for entry in catalog.ENTRIES.values():
    assert re.search(f"^{entry.name} +{re.escape(entry.what)}$", out, re.M)
  assert "is downloaded, 0.17 GB; needs TensorFlow\n" in out
  assert "--source=a folder with ILSVRC2012_img_train.tar and" in out


@pytest.mark.parametrize(
  ("args", "what"),
  [
    (["nosuch"], "There is no data set 'nosuch'. TFDS has no builder"),
    (["cifar_10"], "Did you mean cifar10 or "),
    (["foldr", "--name=x", "--source=."], "Did you mean folder? "),
    (["digits", "--source=."], "digits is made here, of no files; leave --sou"),
    (
      ["folder", "--name=x", "--source=~nobody-such/a"],
      "such/a does not exist",
    ),
    (
      ["folder", "--name=x", f"--source={'a' * 300}"],
      "can't be looked at: Fil",
    ),
    (
      ["folder", "--name=x", "--source=.", "--hold_out=test=5,validation=10%"],
      "--hold_out=test=5,validation=10% is none: give each split a number of",
    ),
    (["imagenet2012", "--hold_out=60%,test=60%"], "leaves nothing for train;"),
    (["folder"], "give it a name, as in `python -m mixer prepare folder "),
    (["folder", "--name=x"], "name them with --source."),
    (["folder", "--name=Big Name", "--source=."], "can't be called 'Big Name'"),
    (["folder", "--name=x", "--source=/nosuch"], "/nosuch does not exist"),
    (["imagenet21k", "--name=x"], "--name=x is for the builder `folder`"),
    (["imagenet21k"], "--source. `python -m mixer prepare imagenet21k --sour"),
    (
      ["cifar10", "--resize=64", "--bad=fail"],
      "--resize, --bad: only for what is prepared from files of yours (imag",
    ),
    (["mnist", "--resize=64"], "--resize: only for what is prepared from file"),
    (["kmnist", "--source=a", "--source=b"], "--source is given 2 times; put"),
    (["mnist", "--source=/nosuch"], "the source /nosuch does not exist."),
    (["imagenet2012"], "mixer prepare imagenet2012 --source=PATH"),
    (["vtab/pet"], "VTAB-1k has no task 'vtab/pet'; did you mean vtab/pets?"),
    (["mnist", "--source=a", "--source=b"], "--source is given 2 times; put"),
  ],
)
def test_what_it_refuses(run, args, what):
  out, err = run(*args, code=1)
  assert what in err and out == ""
  assert err.count("\n") == 1


@pytest.mark.parametrize(
  "args",
  [
    ["folder", "--bad=maybe"],
    ["folder", "--resize=-1"],
    ["folder", "--hold_out=0"],
    ["folder", "--hold_out=a=1,a=2"],
    ["folder", "--hold_out=ten%"],
    ["folder", "--nosuch=1"],
  ],
)
def test_wrong_flags(args, capsys):
  with pytest.raises(SystemExit) as caught:
    cli.main(["prepare", *args])
  assert caught.value.code == 1
  assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
  ("text", "parts"),
  [
    ("10%", {"validation": 0.1}),
    ("5000", {"validation": 5000}),
    ("test=10%,validation=2.5%", {"test": 0.1, "validation": 0.025}),
    ("none", {}),
  ],
)
def test_hold_out(text, parts):
  assert prepare.hold_out(text) == parts


def start(*args: str) -> subprocess.Popen:
  """As a user does, in a process of its own."""
  return subprocess.Popen(
    [sys.executable, "-m", "mixer", "prepare", *args],
    cwd=ROOT,
    env=dict(os.environ) | {"XLA_FLAGS": ""},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_stopped_and_gone_on_with(tmp_path):
  """Ctrl-C while another one waits for the lock; then the same command."""
  for k in range(6000):
    path = tmp_path / "photos" / f"c{k % 3}" / f"{k}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image(k % 50, "PNG") + bytes([k % 256, k // 256]))
  command = [
    *("folder", "--name=pets", f"--source={tmp_path / 'photos'}"),
    *("--workers=1", f"--data_dir={tmp_path / 'data'}"),
  ]
  first = start(*command)
  deadline = time.monotonic() + 60
  while not list(tmp_path.glob("data/pets/.preparing-1.0.0/shards/*")):
    assert time.monotonic() < deadline and first.poll() is None
    time.sleep(0.02)
  first.send_signal(signal.SIGINT)
  out, err = first.communicate(timeout=60)
  assert first.returncode == 42
  assert err.splitlines()[-1] == (
    "SIGINT: stopped; the same command goes on with it"
  )
  assert out == "" and "Traceback" not in err
  assert not locate.versions(tmp_path / "data", "pets")

  second = start(*command)
  out, err = second.communicate(timeout=120)
  assert second.returncode == 0, err
  assert "data set pets is ready in" in out


def test_two_at_once(run, tmp_path):
  tfrecords.make(tmp_path / "data")
  with locate.lock("others", tmp_path / "data"):
    _, err = run("others", code=1)
  assert "is being prepared in " in err and "another process" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_conversion_is_stopped(tmp_path, number):
  tfrecords.make(tmp_path / "old", shards=(2,) * 300, test=1)
  command = [
    "others",
    f"--source={tmp_path / 'old'}",
    f"--data_dir={tmp_path / 'data'}",
  ]
  first = start(*command)
  deadline = time.monotonic() + 60
  while not list(tmp_path.glob("data/others/incomplete.*/*-00003-of-00300")):
    assert time.monotonic() < deadline and first.poll() is None
    time.sleep(0.005)
  first.send_signal(number)
  _, err = first.communicate(timeout=60)
  assert (first.returncode, err) == (
    42,
    f"{number.name}: stopped; the same command goes on with it\n",
  )
  second = start(*command)
  out, err = second.communicate(timeout=120)
  assert second.returncode == 0, err
  assert re.search("^  train +600 examples$", out, re.M)
