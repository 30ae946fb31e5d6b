"""Tests of `mixer.datasets.sources.class_folders` and `folder_walk`."""

import os
import unicodedata

import pytest

from mixer import image_files
from mixer.datasets.sources import class_folders
from mixer.errors import UserError
from tests.datasets.sources import image_archives


def _open(root, classes=None):
  return class_folders.ClassFolders(root, {"": root}, classes)


def test_splits_and_classes(tmp_path):
  root = image_archives.write(
    tmp_path,
    {
      "train/cat/1.jpg": b"1",
      "train/cat/deep/er/1.png": b"2",
      "train/dog/1.jpg": b"3",
      "test/dog/1.jpg": b"4",
      "test/eel/1.jpg": b"5",
    },
  )
  source = class_folders.ClassFolders(
    root, {"train": root / "train", "test": root / "test"}
  )
  assert source.class_names() == ("cat", "dog", "eel")
  assert source.splits == ("train", "test")
  assert {
    m.name: (m.class_name, m.split, m.data)
    for m in image_archives.members(source)
  } == {
    "train/cat/1.jpg": ("cat", "train", b"1"),
    "train/cat/deep/er/1.png": ("cat", "train", b"2"),
    "train/dog/1.jpg": ("dog", "train", b"3"),
    "test/dog/1.jpg": ("dog", "test", b"4"),
    "test/eel/1.jpg": ("eel", "test", b"5"),
  }
  assert source.total_bytes == 5
  assert source.warnings == [
    "1 classes have images, but none in train: eel",
    "1 classes have images in folders within their own, and take them "
    "together: cat (cat has deep/er)",
  ]
  image_archives.check_start(source)


def test_order_mixes_classes_and_is_that_of_the_names(tmp_path):
  files = {f"{c}/{k}.jpg": b"x" for c in "ab" for k in range(50)}
  one = image_archives.write(tmp_path / "one", files)
  other = image_archives.write(
    tmp_path / "other", dict(reversed(files.items()))
  )
  order = [m.name for m in image_archives.members(_open(one))]
  assert order == [m.name for m in image_archives.members(_open(other))]
  assert sorted(order) == sorted(files)
  assert 15 <= sum(name.startswith("a") for name in order[:50]) <= 35
  # The order decides what data sets look like: it is not to change.
  assert order[:3] == ["b/44.jpg", "b/49.jpg", "b/27.jpg"]


def test_what_is_an_image_by_its_name(tmp_path):
  kept = ["1.JPG", "1.jpeg", "1.WebP", "1", "a.b.gif", "1.tif", "1.pgm"]
  left = [
    ".DS_Store", ".hidden/1.jpg", "Thumbs.db", "1.txt", "1.CSV", "1.json",
    "README.md", "README", "__MACOSX/1.jpg", "._1.jpg", "1.xml",
  ]  # fmt: skip
  odd = ["1.mp4", "2.mp4", "x.jpg.part"]
  root = image_archives.write(
    tmp_path, {f"cat/{name}": b"1" for name in kept + left + odd}
  )
  image_archives.write(root, {"dog/1": b"1"})
  source = _open(root)
  assert set(image_archives.contents(source)) == {
    "dog/1",
    *(f"cat/{name}" for name in kept),
  }
  assert source.warnings == [
    "1 hidden folders or images are left out: cat/.hidden",
    "2 files '.mp4' are no images by their names and are left out",
    "1 files '.part' are no images by their names and are left out",
  ]


def test_names_of_any_kind(tmp_path):
  composed = unicodedata.normalize("NFC", "größe")
  apart = unicodedata.normalize("NFD", composed)
  assert composed != apart
  root = image_archives.write(
    tmp_path, {f"{apart}/{apart}.png": b"1", "日本 語/ 写真.png": b"2"}
  )
  os.mkdir(os.fsencode(root) + b"/caf\xe9\n")
  with open(os.fsencode(root) + b"/caf\xe9\n/\xff.png", "wb") as file:
    file.write(b"3")
  source = _open(root)
  assert source.class_names() == ("caf\\xe9\\n", composed, "日本 語")
  assert image_archives.contents(source) == {
    f"{composed}/{composed}.png": b"1",
    "日本 語/ 写真.png": b"2",
    "caf\\xe9\\n/\\xff.png": b"3",
  }
  for name in (*source.class_names(), *image_archives.contents(source)):
    name.encode()
  image_archives.check_start(source)


def test_names_that_read_the_same(tmp_path):
  composed, apart = "\u00e9", "e\u0301"
  image_archives.write(
    tmp_path, {f"a/{composed}.png": b"", f"a/{apart}.png": b""}
  )
  if len(os.listdir(tmp_path / "a")) == 1:
    pytest.skip("this file system has one name for both")
  with pytest.raises(UserError, match="reads 'a/é.png' as another file's does"):
    _open(tmp_path)
  image_archives.write(
    tmp_path / "2", {f"{composed}/1.png": b"", f"{apart}/2.png": b""}
  )
  with pytest.raises(UserError, match="can't be told apart"):
    _open(tmp_path / "2")


def test_links(tmp_path):
  root = image_archives.write(
    tmp_path / "set", {"cat/1.jpg": b"1", "dog/1.jpg": b"2"}
  )
  elsewhere = image_archives.write(tmp_path / "else", {"eel/1.jpg": b"3"})
  (root / "eel").symlink_to(elsewhere / "eel")
  (root / "cat" / "2.jpg").symlink_to(root / "dog" / "1.jpg")
  (root / "cat" / "loop").symlink_to(root / "cat")
  (root / "cat" / "up").symlink_to(root)
  (root / "cat" / "self").symlink_to("self")
  (root / "dog" / "broken.jpg").symlink_to("nowhere.jpg")
  os.mkfifo(root / "dog" / "fifo.jpg")
  source = _open(root)
  found = {m.name: m for m in image_archives.members(source)}
  assert found["eel/1.jpg"].data == b"3"
  assert found["cat/2.jpg"].data == b"2"
  broken = found["dog/broken.jpg"]
  assert broken.error == "the file can't be read: No such file or directory"
  assert set(found) == {
    "cat/1.jpg", "cat/2.jpg", "cat/self", "dog/1.jpg", "dog/broken.jpg",
    "eel/1.jpg",
  }  # fmt: skip


def test_empty_classes(tmp_path):
  root = image_archives.write(tmp_path, {"cat/1.jpg": b"1", "dog/x.txt": b""})
  (root / "eel").mkdir()
  source = _open(root)
  assert source.class_names() == ("cat", "dog", "eel")
  assert source.warnings == [
    "2 class folders hold no image and are kept as classes: dog, eel"
  ]
  (root / "cat/1.jpg").unlink()
  with pytest.raises(UserError, match="no image in any class folder"):
    _open(root)


def test_images_outside_of_classes(tmp_path):
  root = image_archives.write(
    tmp_path, {"cat/1": b"1", "dog/1": b"1", "2": b"2"}
  )
  source = _open(root)
  assert set(image_archives.contents(source)) == {"cat/1", "dog/1"}
  assert source.warnings == [
    f"1 images lie in {root} itself, in no folder of a class, and are left out"
  ]


def test_given_classes(tmp_path):
  root = image_archives.write(tmp_path, {"a/1": b"1", "b/1": b"2", "c/1": b"3"})
  source = _open(root, ["c", "a", "d"])
  assert source.class_names() == ("c", "a", "d")
  assert source.warnings == [
    "1 of the 3 classes have no image in the source, such as d"
  ]
  errors = {m.name: m.error for m in image_archives.members(source)}
  assert errors == {
    "a/1": "",
    "b/1": "its class b is not among the 3 of the data set",
    "c/1": "",
  }


def test_single_class(tmp_path):
  root = image_archives.write(tmp_path, {"all/a/1": b"1", "all/b/1": b"2"})
  source = _open(root)
  assert source.class_names() == ("all",)
  assert source.warnings == [
    "there is a single class, all; if its folders are the classes, name it as "
    "the source",
    "1 classes have images in folders within their own, and take them "
    "together: all (all has a, b)",
  ]


def test_what_is_left_out_or_taken_together_is_told(tmp_path):
  root = image_archives.write(
    tmp_path,
    {
      "train/plant/oak/1.jpg": b"1",
      "train/plant/elm/1.jpg": b"2",
      "train/plant/.old/1.jpg": b"3",
      "train/.eel/1.jpg": b"4",
      "train/cat/images/1.jpg": b"5",
      "train/cat/images/.a.png": b"6",
      "train/cat/._1.jpg": b"7",
      "train/cat/.nomedia": b"",
      "val/dog/images/1.jpg": b"8",  # One folder: nothing to confuse.
      "9.jpg": b"9",
      ".git/a.jpg": b"10",
    },
  )
  source = class_folders.ClassFolders(
    root, {"train": root / "train", "validation": root / "val"}
  )
  assert source.warnings == [
    "1 classes have images, but none in train: dog",
    "1 classes have images in folders within their own, and take them "
    "together: plant (plant has elm, oak)",
    f"1 images lie in {root} itself, in no folder of a class, and are left out",
    "4 hidden folders or images are left out: .git, "
    "train/.eel, train/cat/images/.a.png, ...",
  ]


def test_fingerprint(tmp_path):
  root = image_archives.write(tmp_path, {"a/1": b"1", "b/1": b"2"})
  one = _open(root).fingerprint
  assert one == _open(root).fingerprint
  assert one != _open(root, ["a", "b"]).fingerprint
  os.utime(root / "a/1", ns=(0, 0))
  assert one != _open(root).fingerprint


def test_file_that_goes_away(tmp_path):
  root = image_archives.write(tmp_path, {"a/1": b"1", "b/1": b"2"})
  source = _open(root)
  (root / "a/1").unlink()
  errors = [m.error for m in image_archives.members(source)]
  assert sorted(errors)[-1].startswith("the file can't be read: No such file")


def test_folder_without_permission(tmp_path, monkeypatch):
  def refuse(path):
    raise PermissionError(13, "Permission denied", path)

  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(UserError, match="can't be listed: Permission denied"):
    list(image_files.find(str(tmp_path)))
