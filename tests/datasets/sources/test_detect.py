"""Tests of `mixer.datasets.sources` and `layouts`."""

import bz2
import gzip
import io
import os
import zipfile

import pytest

from mixer.datasets.sources import (
  class_folders,
  detect,
  synset_folders,
  tar_forms,
)
from mixer.errors import UserError
from tests.datasets.sources import image_archives


def test_every_form_of_imagenet21k_is_the_same_set(tmp_path):
  files = image_archives.images()
  tars = image_archives.class_tars(files)
  whole = image_archives.tar(tars)
  forms = {
    "winter21_whole.tar.gz": gzip.compress(whole),
    "fall11_whole.tar": whole,
    "misnamed.tar.gz": whole,
    "whole.tar.bz2": bz2.compress(whole),
    "folders.tar": image_archives.tar(files),
    "prefixed.tar": image_archives.tar(
      {f"./top/{name}": data for name, data in files.items()}
    ),
  }
  paths = [[image_archives.write(tmp_path, forms) / name] for name in forms]
  for name, content in {
    "tars": tars,
    "folders": files,
    "nested": {f"a/b/{name}": data for name, data in tars.items()},
    "one_file": {"winter21_whole.tar.gz": gzip.compress(whole)},
  }.items():
    paths.append([image_archives.write(tmp_path / "dirs" / name, content)])
  paths.append(list((tmp_path / "dirs" / "tars").iterdir()))
  kinds = set()
  for some in paths:
    source = detect.detect(some, "imagenet21k")
    kinds.add(type(source))
    assert source.class_names() == tuple(sorted(image_archives.CLASSES))
    assert image_archives.contents(source) == files
    assert str(some[0].parent) in source.description
    assert isinstance(source.fingerprint, str)
    image_archives.check_start(source)
  assert kinds == {
    tar_forms.TarOfTars,
    tar_forms.TarsOfClasses,
    tar_forms.TarOfFolders,
    synset_folders.SynsetFolders,
  }


def _processed(top, train="imagenet21k_train", val="imagenet21k_val"):
  files = image_archives.images()
  placed = {f"{top}{train}/{name}": data for name, data in files.items()}
  placed[f"{top}{val}/n01440764/n01440764_v.JPEG"] = b"v"
  placed[f"{top}imagenet21k_small_classes/n00000009/n00000009_1.JPEG"] = b"s"
  expected = {f"train/{name}": data for name, data in files.items()}
  expected["validation/n01440764/n01440764_v.JPEG"] = b"v"
  return placed, expected


def test_every_form_of_imagenet21k_p_is_the_same_set(tmp_path):
  placed, expected = _processed("imagenet21k_resized/")
  bare, _ = _processed("")
  short, _ = _processed("x/y/", "train", "val")
  tar = tmp_path / "imagenet21k_resized.tar.gz"
  tar.write_bytes(gzip.compress(image_archives.tar(placed)))
  plain = tmp_path / "plain.tar"
  plain.write_bytes(image_archives.tar(bare))
  folders = tmp_path / "folders"
  image_archives.write(folders / "0", placed)
  image_archives.write(folders / "1", bare)
  image_archives.write(folders / "2", short)
  pair = [folders / "1/imagenet21k_val", folders / "1/imagenet21k_train"]
  for paths in (
    [tar],
    [plain],
    [folders / "0"],
    [folders / "0/imagenet21k_resized"],
    [folders / "1"],
    [folders / "2"],
    pair,
  ):
    source = detect.detect(
      paths, "imagenet21k_p", classes=sorted(image_archives.CLASSES)
    )
    assert image_archives.contents(source) == expected
    assert {m.split for m in image_archives.members(source)} == {
      "train",
      "validation",
    }
    image_archives.check_start(source)


def test_processed_set_with_a_stray_image(tmp_path):
  placed, _ = _processed("")
  path = tmp_path / "a.tar"
  path.write_bytes(image_archives.tar({**placed, "other/n01440764/1.jpg": b""}))
  source = detect.detect([path], "imagenet21k_p")
  (lost,) = [m for m in image_archives.members(source) if m.error]
  assert lost.error.startswith("lies in no folder of a class in imagenet21k_tr")


@pytest.mark.parametrize(
  ("files", "splits"),
  [
    (["a/1.jpg", "b/1.jpg"], {"": ""}),
    (["train/a/1", "test/a/1"], {"train": "train", "test": "test"}),
    (["train/a/1", "val/a/1"], {"train": "train", "validation": "val"}),
    (["Train/a/1", "Valid/a/1"], {"train": "Train", "validation": "Valid"}),
    (
      ["train/a/1", "validation/a/1", "test/b/1"],
      {"train": "train", "validation": "validation", "test": "test"},
    ),
    (
      ["train/a/1", "notes/x.txt", "test/b/1"],
      {"train": "train", "test": "test"},
    ),
    (["train/a/1", "train/b/1"], {"": "train"}),
    # A railway's classes.
    (["train/1.jpg", "tram/1.jpg"], {"": ""}),
    (["test/1.jpg", "tram/1.jpg"], {"": ""}),
    (["train/a/1", "test/1.jpg"], {"train": "train", "test": "test"}),
  ],
)  # fmt: skip
def test_layouts_of_folders(tmp_path, files, splits):
  root = image_archives.write(tmp_path, dict.fromkeys(files, b"1"))
  source = detect.detect([root], "folder")
  assert isinstance(source, class_folders.ClassFolders)
  assert dict.fromkeys(source.splits) == dict.fromkeys(splits)
  expected = {
    name: split
    for name in files
    for split, folder in splits.items()
    if name.startswith(folder) and not name.endswith((".txt", "test/1.jpg"))
  }
  if splits == {"": ""}:
    expected = dict.fromkeys(files, "")
  found = {m.name: m.split for m in image_archives.members(source)}
  assert found == expected


def _zip(path):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a/1.jpg", b"1")


def _refusals():
  tar = image_archives.tar
  one = {"n01440764/n01440764_1.JPEG": b"1"}
  tars = {"n01440764.tar": tar({"n01440764_1.JPEG": b"1"})}
  p = {"imagenet21k_train/n01440764/1.JPEG": b"1"}
  return {
    ("missing", "folder"): (None, "does not exist. Expected is a folder DIR"),
    ("missing", "imagenet21k"): (None, "does not exist. Expected is one of: w"),
    ("empty_dir", "folder"): ({}, "no folders of classes; it holds nothing"),
    ("empty_dir", "imagenet21k"): ({}, "it holds nothing. Expected is one of"),
    ("empty_dir", "imagenet21k_p"): ({}, "it holds nothing. Expected is one"),
    ("flat", "folder"): ({"1.jpg": b"1"}, "no folders of classes; it holds 1"),
    ("flat", "imagenet21k"): ({"1.jpg": b"1"}, "does not look like image"),
    ("no_images", "folder"): ({"a/x.txt": b""}, "there is no image in any cl"),
    ("no_classes", "folder"): (
      {"train/1.jpg": b"", "test/1.jpg": b""}, "train has no folders of classes"
    ),
    ("no_train", "folder"): ({"test/a/1": b"", "val/a/1": b""}, "but no train"),
    ("two_vals", "folder"): (
      {"train/a/1": b"", "val/a/1": b"", "valid/a/1": b""},
      "both taken for the split 'validation'; keep one",
    ),
    ("unclear", "folder"): (
      {"train/a/1": b"", "bus/1": b""}, "has train, as for a split, beside bus"
    ),
    ("image.jpg", "folder"): (b"\xff\xd8", "a file that begins with .* not a"),
    ("image.jpg", "imagenet21k"): (b"\xff\xd8" * 999, "begins with .*, no tar"),
    ("pipe", "folder"): (os.mkfifo, "is no regular file, not a folder"),
    ("pipe.tar", "imagenet21k"): (os.mkfifo, "can't be read: it is no regular"),
    ("x.zip", "folder"): (_zip, "a zip archive, which has to be unp.* first"),
    ("x.zip", "imagenet21k"): (_zip, "a zip archive, which has to be unpacked"),
    ("empty.tar", "imagenet21k"): (b"", "an empty file: it ends after 0 bytes"),
    ("page.tar", "imagenet21k"): (b"<html>" * 99, "a tar that is damaged, or"),
    ("a.tar", "folder"): (tar(one), "not a folder.*unpack archives first"),
    ("nothing.tar", "imagenet21k"): (tar({}), "holds no images as imagenet21k"),
    ("text.tar", "imagenet21k"): (tar({"a.txt": b""}), "holds no images as"),
    ("21k.tar", "imagenet21k_p"): (tar(tars), "no images as imagenet21k_p has"),
    ("p.tar", "imagenet21k"): (tar(p), "prepare it as imagenet21k_p"),
    ("p", "imagenet21k"): (p, "imagenet21k_train, as the processed set does"),
    ("both", "imagenet21k"): ({**one, **tars}, "both 1 tars .* and 1 folders"),
    ("n01440764.tar", "imagenet21k"): (
      tars["n01440764.tar"], "is the tar of one class. Expected is one of"
    ),
  }  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), _refusals())
def test_refusals_say_what_is_expected(tmp_path, name, kind):
  content, says = _refusals()[name, kind]
  path = tmp_path / name
  if isinstance(content, dict):
    path.mkdir()
    image_archives.write(path, content)
  elif isinstance(content, bytes):
    path.write_bytes(content)
  elif content is not None:
    content(path)
  with pytest.raises(UserError, match=says) as caught:
    detect.detect([path], kind)
  assert str(path) in str(caught.value)


def test_sources_that_do_not_go_together(tmp_path):
  for name in ("a", "b"):
    image_archives.write(tmp_path / name, image_archives.images())
  for kind in ("folder", "imagenet21k", "imagenet21k_p"):
    with pytest.raises(UserError, match="don't go together. Expected is"):
      detect.detect([tmp_path / "a", tmp_path / "b"], kind)
  with pytest.raises(UserError, match="no source of images is named"):
    detect.detect([], "folder")


def test_a_first_part_is_enough_to_tell_the_form(tmp_path):
  whole = image_archives.tar(image_archives.class_tars(image_archives.images()))
  file = io.BytesIO()
  with gzip.open(file, "wb") as packed:
    packed.write(whole)
  path = tmp_path / "winter21_whole.tar.gz"
  path.write_bytes(file.getvalue()[:-500])
  source = detect.detect([path], "imagenet21k", tolerate_truncation=True)
  assert isinstance(source, tar_forms.TarOfTars)
  assert image_archives.contents(source)
  assert source.warnings
