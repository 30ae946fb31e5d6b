"""Opening prepared data sets, and saying what to do where there is none."""

import io
import json
import os
import pathlib
import re
import shlex
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from mixer.datasets import digits, prepared
from mixer.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
  """A folder in which `digits` has been prepared."""
  path = tmp_path_factory.mktemp("data")
  prepared.open_source("digits", "train", str(path))
  return path


@pytest.fixture
def spoiled(root, tmp_path) -> pathlib.Path:
  """A copy of it."""
  shutil.copytree(root / "digits", tmp_path / "digits")
  return tmp_path


def refusal(name: str, split: str, root) -> str:
  with pytest.raises(UserError) as caught:
    prepared.open_source(name, split, str(root))
  message = str(caught.value)
  assert name in message and message.endswith(".")
  return message


def edit_info(folder, **changes) -> None:
  (folder / "1.0.0" / "manifest.json").unlink(missing_ok=True)
  path = folder / "1.0.0" / "dataset_info.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(root, name: str, **changes) -> None:
  """Makes the prepared `digits` a set that we don't ship."""
  (root / "digits").rename(root / name)
  edit_info(root / name, name=name, **changes)
  for path in (root / name / "1.0.0").glob("digits-*"):
    path.rename(path.with_name(path.name.replace("digits", name, 1)))


def test_a_shipped_set_is_prepared_once(tmp_path, capsys):
  where = str(tmp_path / "new" / "folder")
  source, names, _ = prepared.open_source("digits", "test", where)
  line = f"preparing data set digits in {where} (once)\n"
  assert capsys.readouterr().out == line
  again, _, _ = prepared.open_source("digits", "test", where)
  assert capsys.readouterr().out == ""
  assert len(source) == len(again) == digits.TEST_SIZE
  assert names == tuple("0123456789")


def test_records_are_encoded_images_and_labels(root):
  source, _, _ = prepared.open_source("digits", "train", str(root))
  images, labels = digits.load()
  for i in (0, 700, 1399):
    image = np.asarray(Image.open(io.BytesIO(source[i]["image"])))
    np.testing.assert_array_equal(image, images[i])
    assert source[i]["label"] == labels[i]


def test_a_set_of_any_name_can_be_opened(spoiled):
  rename(spoiled, "others")
  for name in ("others", "others:1.0.0"):
    source, names, _ = prepared.open_source(name, "train[:10%]", str(spoiled))
    assert len(source) == 140
    assert names == tuple("0123456789")


@pytest.mark.parametrize(
  ("name", "way"),
  [
    ("imagenet2012", "mixer prepare imagenet2012 --source=PATH --data_dir="),
    ("imagenet2012:5.1.0", "a folder with ILSVRC2012_img_train.tar and"),
    ("imagenet21k", "mixer prepare imagenet21k --source=PATH --data_dir="),
    ("imagenet21k/fall11", "mixer prepare imagenet21k/fall11 --source=PATH "),
    ("cifar10", "`python -m mixer prepare cifar10 --data_dir="),
    ("kmnist", "mixer prepare kmnist --data_dir="),
    ("mnist", "mixer prepare mnist --source=PATH --data_dir="),
    ("nosuchthing", "mixer prepare folder --name=nosuchthing --source=PATH"),
    ("cifar_10", "Did you mean cifar10 or"),
    ("digits:9.9.9", "`python -m mixer prepare digits:9.9.9 "),
    ("nosuch/config", "--name=nosuch --source=PATH"),
    ("No Name!", "--name='No Name!' --source=PATH"),
  ],
)
def test_what_is_not_prepared_says_how_to(root, name, way):
  message = refusal(name, "train", root)
  assert message.startswith(f"data set {name} is not prepared in {root}. ")
  assert way in message
  assert "name the place with --config.data.data_dir=DIR" in message
  assert "Without any preparation: digits, glyphs." in message


def test_a_folder_that_is_not_there_is_none(tmp_path):
  message = refusal("cifar10", "train", tmp_path / "nosuch")
  assert f"not prepared in {tmp_path}/nosuch" in message
  assert not list(tmp_path.iterdir())  # Nothing is made for it.


def test_a_set_without_index_says_how_to_convert(spoiled):
  rename(spoiled, "others", fileFormat="tfrecord")
  message = refusal("others", "train", spoiled)
  assert "is stored as tfrecord, which can't be read by index" in message
  (command,) = re.findall("`(.*?)`", message)
  assert shlex.split(command) == [
    *("python", "-m", "mixer", "prepare"),
    *("others", f"--data_dir={spoiled}"),
  ]


def test_a_shipped_set_in_another_format_says_what_to_do(spoiled):
  edit_info(spoiled / "digits", fileFormat="tfrecord")
  message = refusal("digits", "train", spoiled)
  assert f"Remove {spoiled}/digits: it is then prepared anew." in message
  shutil.rmtree(spoiled / "digits")
  assert len(prepared.open_source("digits", "train", str(spoiled))[0]) == 1400


@pytest.mark.parametrize(
  "split",
  ["validation", "Train", "", "train[", "train[:200%]", "train[5000:]"],
)
def test_a_wrong_split_names_those_there_are(root, split):
  message = refusal("digits", split, root)
  assert f"data set digits has no split {split!r}; it has train (" in message
  assert "train (1,400 examples), test (397 examples)" in message
  assert 'parts of these as in "train[:98%]"' in message


def test_a_half_written_folder_is_refused(spoiled):
  here = spoiled / "digits" / "1.0.0"
  (here / "dataset_info.json").unlink()
  message = refusal("digits", "train", spoiled)
  assert f"the folder {here} is there" in message
  assert "has no dataset_info.json" in message and "remove it" in message
  shutil.rmtree(here)  # As it says.
  assert len(prepared.open_source("digits", "train", str(spoiled))[0]) == 1400


def test_a_half_written_set_of_another_name_is_not_prepared(spoiled):
  rename(spoiled, "others")
  (spoiled / "others" / "1.0.0" / "dataset_info.json").unlink()
  message = refusal("others", "train", spoiled)
  assert f"is not prepared in {spoiled} (" in message
  assert f"{spoiled}/others/1.0.0/dataset_info.json)" in message


def test_what_killed_preparations_left_goes_when_it_is_old(tmp_path):
  parent = tmp_path / "digits"
  old, young = parent / "incomplete.OLD_1.0.0", parent / "incomplete.NEW_1.0.0"
  for path in (old, young):
    path.mkdir(parents=True)
    (path / "digits-train.array_record").write_text("half")
  hours_ago = time.time() - 2 * 3600
  os.utime(old, (hours_ago, hours_ago))
  prepared.open_source("digits", "train", str(tmp_path))
  assert sorted(p.name for p in parent.iterdir()) == ["1.0.0", young.name]


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
  # The tests may run as root, who may write anywhere but into a file.
  (tmp_path / "file").write_text("in the way")
  message = refusal("digits", "train", tmp_path / "file" / "data")
  assert f"can't be prepared in {tmp_path}/file/data: " in message
  assert "--config.data.data_dir=DIR" in message


def test_what_is_not_for_classification_is_refused(spoiled):
  rename(spoiled, "others")
  path = spoiled / "others" / "1.0.0" / "features.json"
  features = json.loads(path.read_text())
  fields = features["featuresDict"]["features"]
  fields["target"] = fields.pop("label")
  path.write_text(json.dumps(features))
  (path.parent / "label.labels.txt").rename(path.parent / "target.labels.txt")
  message = refusal("others", "train", spoiled)
  assert "has no features `image` and `label`" in message
