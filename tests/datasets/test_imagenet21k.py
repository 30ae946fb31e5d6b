"""Tests of `mixer.datasets.imagenet21k`."""

import gzip
from typing import Any

import pytest

from mixer.datasets import imagenet21k, locate, stored, wordnet
from mixer.datasets.preparation import build
from mixer.errors import UserError
from tests.datasets import prepared
from tests.datasets.sources import image_archives


def _make(source, tmp_path, config, **options) -> Any:
  kwargs: Any = {
    "hold_out": {"test": 2, "validation": 1},
    "workers": 0,
  } | options
  return imagenet21k.Imagenet21k(
    source=source,
    config=config,
    options=build.Options(**kwargs),
    data_dir=str(tmp_path / "data"),
  )


def _records(name, split, data_dir):
  source, names, _ = prepared.open_source(name, split, str(data_dir))
  return {
    (names[source[i]["label"]], source[i]["image"]) for i in range(len(source))
  }


def test_winter21_from_a_tar_of_tars(tmp_path):
  files = image_archives.images()
  path = tmp_path / "winter21_whole.tar.gz"
  whole = image_archives.tar(image_archives.class_tars(files))
  path.write_bytes(gzip.compress(whole))
  source = imagenet21k.open_source([path])
  builder = _make(source, tmp_path, "winter21")
  report = builder.prepare()
  assert report.splits == {"train": 6, "test": 2, "validation": 1}
  assert builder.info.full_name == "imagenet21k/winter21/1.0.0"
  assert builder.info.features["label"].names == sorted(image_archives.CLASSES)
  assert source.warnings == [
    "the source has 3 classes, and the release winter21 has 19,167"
  ]
  parts = [
    _records("imagenet21k/winter21", split, tmp_path / "data")
    for split in report.splits
  ]
  assert set.union(*parts) == {(n.split("/")[0], d) for n, d in files.items()}
  # Without its source, too.
  again: Any = imagenet21k.Imagenet21k(
    config="winter21", data_dir=str(tmp_path / "data")
  )
  assert again.prepare().already
  assert again.info.features["label"].names == sorted(image_archives.CLASSES)
  found = stored.read(locate.find("imagenet21k", tmp_path / "data"))
  assert found.sizes["train"] == 6


def test_fall11_has_the_known_classes(tmp_path):
  files = image_archives.images()  # One class of them isn't in fall11.
  root = image_archives.write(tmp_path / "in", files)
  source = imagenet21k.open_source([root], "fall11")
  assert source.class_names() == wordnet.classes("fall11")
  builder = _make(source, tmp_path, "fall11", max_bad=1.0)
  report = builder.prepare()
  assert sum(report.splits.values()) == 6
  assert report.problems == {"unreadable": 3}
  assert source.warnings == [
    "21,839 of the 21,841 classes have no image in the source, such as "
    "n00004475"
  ]
  assert builder.info.features["label"].num_classes == 21_841


def test_class_file(tmp_path):
  root = image_archives.write(tmp_path / "in", image_archives.images())
  listed = tmp_path / "classes.txt"
  listed.write_text("\n".join(image_archives.CLASSES))
  source = imagenet21k.open_source([root], class_file=listed)
  assert source.class_names() == image_archives.CLASSES
  builder = _make(source, tmp_path, "winter21")
  assert builder.info.features["label"].names == list(image_archives.CLASSES)
  listed.write_text("cat\n")
  with pytest.raises(UserError, match="WordNet id"):
    imagenet21k.open_source([root], class_file=listed)


def test_count_warning():
  fall11 = wordnet.classes("fall11")
  assert imagenet21k.count_warning("fall11", fall11) == ""
  assert imagenet21k.count_warning("winter21", fall11) == (
    "the source has 21,841 classes, and the release winter21 has 19,167; "
    "fall11 has as many: is it imagenet21k/fall11?"
  )


def test_description(tmp_path):
  builder: Any = imagenet21k.Imagenet21k(data_dir=str(tmp_path))
  assert builder.builder_config.name == "winter21"
  assert list(builder.builder_configs) == ["winter21", "fall11"]
  assert builder.options.hold_out == {"test": 25_600, "validation": 25_600}
  info = builder.info
  assert info.description and info.homepage and "deng2009" in info.citation
  with pytest.raises(UserError, match="--source"):
    builder.prepare()


def test_truncated(tmp_path):
  files = image_archives.images()
  whole = image_archives.tar(image_archives.class_tars(files))
  packed = gzip.compress(whole, compresslevel=0)
  path = tmp_path / "winter21_whole.tar.gz"
  path.write_bytes(packed[: packed.index(list(files.values())[-1]) + 9])
  with pytest.raises(UserError, match="--accept_truncated"):
    _make(imagenet21k.open_source([path]), tmp_path, "winter21").prepare()
  source = imagenet21k.open_source([path], accept_truncated=True)
  report = _make(source, tmp_path, "winter21").prepare()
  assert sum(report.splits.values()) == 8
  assert any("cut off" in warning for warning in source.warnings)
