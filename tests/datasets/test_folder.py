"""Tests of `mixer.datasets.folder`."""

import io
from typing import Any

import pytest
from PIL import Image

from mixer.datasets import folder
from mixer.datasets.preparation import build
from mixer.errors import UserError
from tests.datasets import prepared
from tests.datasets.sources import image_archives


def _set(root, places):
  files = {place: image_archives.image(k) for k, place in enumerate(places)}
  return image_archives.write(root, files)


def test_prepares_under_the_users_name(tmp_path):
  root = _set(
    tmp_path / "in", [f"{c}/{k}.jpg" for c in "ab" for k in range(20)]
  )
  source = folder.open_source([root])
  builder = folder.Folder(
    name="my_set", source=source, data_dir=str(tmp_path / "data")
  )
  assert builder.options.hold_out == {"validation": 0.1}
  assert builder.options.upright
  assert builder.name == builder.info.name == "my_set"
  assert folder.Folder.name == "folder"
  report = builder.prepare()
  assert report.data_dir == str(tmp_path / "data/my_set/1.0.0")
  assert set(report.splits) == {"train", "validation"}
  assert sum(report.splits.values()) == 40
  train, names, _ = prepared.open_source(
    "my_set", "train", str(tmp_path / "data")
  )
  assert names == ("a", "b")
  assert len(train) == report.splits["train"]
  again: Any = folder.Folder(name="my_set", data_dir=str(tmp_path / "data"))
  assert again.prepare().already
  assert again.info.features["label"].names == ["a", "b"]
  # A class more in the source is one for another data set.
  image_archives.write(root, {"c/1.jpg": b"1"})
  source = folder.open_source([root])
  late: Any = folder.Folder(
    name="my_set", source=source, data_dir=str(tmp_path / "data")
  )
  assert late.info.features["label"].names == ["a", "b"]
  assert late.prepare().already


def test_splits_of_the_folders(tmp_path):
  root = _set(
    tmp_path / "in", ["train/ä/1", "train/b/1", "val/ä/1", "test/c/1"]
  )
  source = folder.open_source([root])
  assert folder.hold_out(source) == {}
  builder = folder.Folder(
    name="x", source=source, data_dir=str(tmp_path / "data")
  )
  report = builder.prepare()
  assert report.splits == {"train": 2, "validation": 1, "test": 1}
  _, names, _ = prepared.open_source("x", "test", str(tmp_path / "data"))
  assert names == ("b", "c", "ä")


def test_upright(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  for name in "ab":
    (tmp_path / "in" / name).mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(tmp_path / f"in/{name}/1.jpg", exif=exif)
  source = folder.open_source([tmp_path / "in"])
  folder.Folder(
    name="x",
    source=source,
    options=build.Options(upright=True, workers=0),
    data_dir=str(tmp_path / "data"),
  ).prepare()
  train, _, _ = prepared.open_source("x", "train", str(tmp_path / "data"))
  assert Image.open(io.BytesIO(train[0]["image"])).size == (20, 30)


def test_class_file(tmp_path):
  root = _set(tmp_path / "in", ["a/1", "b/1"])
  listed = tmp_path / "classes.txt"
  listed.write_text("b\nb b\na\n")
  source = folder.open_source([root], class_file=listed)
  assert source.class_names() == ("b", "b b", "a")


@pytest.mark.parametrize("name", ["My Set", "9", "", "a/b", "a-b"])
def test_names_that_cannot_be(tmp_path, name):
  with pytest.raises(UserError, match="can't be called"):
    folder.Folder(name=name, data_dir=str(tmp_path))
