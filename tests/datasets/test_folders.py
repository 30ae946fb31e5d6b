"""Sets in folders: `mixer.datasets.prepare.sources`."""

import os
import unicodedata

import pytest

from mixer.datasets.prepare import sources
from mixer.errors import UserError
from tests.datasets import forms


def opened(root, classes=None):
  return sources.ClassFolders(root, {"": root}, classes, 0)


def members(source):
  return {member.name: member for member, _ in source.members()}


def test_the_order_mixes_classes_and_is_that_of_the_names(tmp_path):
  files = {f"{c}/{k}.jpg": b"x" for c in "ab" for k in range(50)}
  root = forms.write(tmp_path, files)
  order = list(members(opened(root)))
  assert sorted(order) == sorted(files)
  assert 15 <= sum(name.startswith("a") for name in order[:50]) <= 35
  # The order decides what data sets look like: it is not to change.
  assert order[:3] == ["b/44.jpg", "b/49.jpg", "b/27.jpg"]


def test_names_of_any_kind(tmp_path):
  composed = unicodedata.normalize("NFC", "gr\u00f6\u00dfe")
  apart = unicodedata.normalize("NFD", composed)
  forms.write(
    tmp_path,
    {f"{apart}/{apart}.png": b"1", "\u65e5\u672c \u8a9e/ \u5199.png": b"2"},
  )
  os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9\n")
  with open(os.fsencode(tmp_path) + b"/caf\xe9\n/\xff.png", "wb") as file:
    file.write(b"3")
  source = opened(tmp_path)
  assert [*source.classes] == ["caf\\xe9\\n", composed, "\u65e5\u672c \u8a9e"]
  assert {name: m.data for name, m in members(source).items()} == {
    f"{composed}/{composed}.png": b"1",
    "\u65e5\u672c \u8a9e/ \u5199.png": b"2",
    "caf\\xe9\\n/\\xff.png": b"3",
  }
  for both in (f"a/{composed}.png", f"a/{apart}.png"):
    forms.write(tmp_path / "same", {both: b""})
  if len(os.listdir(tmp_path / "same" / "a")) == 2:
    with pytest.raises(UserError, match="both read 'a/gr"):
      opened(tmp_path / "same")
  forms.write(
    tmp_path / "labels", {f"{composed}/1.png": b"", f"{apart}/2.png": b""}
  )
  with pytest.raises(UserError, match="both read 'gr"):
    opened(tmp_path / "labels")


def test_links_and_files_that_go_away(tmp_path):
  root = forms.write(tmp_path / "set", {"cat/1.jpg": b"1", "dog/1.jpg": b"2"})
  other = forms.write(tmp_path / "else", {"eel/1.jpg": b"3"})
  (root / "eel").symlink_to(other / "eel")
  (root / "cat" / "2.jpg").symlink_to(root / "dog" / "1.jpg")
  (root / "cat" / "up").symlink_to(root)
  (root / "dog" / "broken.jpg").symlink_to("nowhere.jpg")
  os.mkfifo(root / "dog" / "fifo.jpg")
  source = opened(root)
  (root / "cat" / "1.jpg").unlink()
  found = members(source)
  assert {n: m.data for n, m in found.items() if not m.error} == {
    "cat/2.jpg": b"2",
    "dog/1.jpg": b"2",
    "eel/1.jpg": b"3",
  }
  for name in ("cat/1.jpg", "dog/broken.jpg"):
    error = "the file can't be read: No such file or directory"
    assert found[name].error == error
  assert len(found) == 5


def test_what_is_left_out_or_odd_is_told(tmp_path):
  root = forms.write(
    tmp_path,
    {
      "train/plant/oak/1.jpg": b"1",
      "train/plant/elm/1.jpg": b"2",
      "train/plant/.old/1.jpg": b"3",
      "train/.eel/1.jpg": b"4",
      "train/cat/images/.a.png": b"6",
      "train/cat/images/1.jpg": b"5",
      "train/cat/._1.jpg": b"7",
      "train/cat/notes.txt": b"",
      "train/empty/x.mp4": b"",
      "val/dog/images/1.jpg": b"8",  # One folder: nothing to confuse.
      "9.jpg": b"9",
      ".git/a.jpg": b"10",
    },
  )
  splits = sources.user_splits(root)
  assert {k: p.name for k, p in splits.items()} == {
    "train": "train",
    "validation": "val",
  }
  source = sources.ClassFolders(root, splits, None, 0)
  assert source.warnings == [
    "1 class folders hold no image and are kept as classes: empty",
    "1 classes have images in folders within their own, and take them "
    "together: plant (elm, oak)",
    "1 images are in no folder of a class and are left out: 9.jpg",
    "4 hidden folders or images are left out: .git, "
    "train/.eel, train/cat/images/.a.png, ...",
    "1 kinds of files are no images by their names and are left out: .mp4 (1)",
  ]
  one = opened(root / "train", ["cat", "plant", "dog"])
  lacking = "1 classes have no image in the source: dog"
  assert lacking in one.warnings
  assert one.fingerprint == opened(root / "train", [*one.classes]).fingerprint
  os.utime(root / "train/cat/images/1.jpg", ns=(0, 0))
  again = opened(root / "train", [*one.classes])
  assert one.fingerprint != again.fingerprint


@pytest.mark.parametrize(
  ("files", "splits"),
  [
    (["a/1.jpg", "b/1.jpg"], {"": ""}),
    (["train/a/1", "test/a/1"], {"train": "train", "test": "test"}),
    (["Train/a/1", "Valid/a/1"], {"train": "Train", "validation": "Valid"}),
    (
      ["train/a/1", "notes/x.txt", "test/b/1"],
      {"train": "train", "test": "test"},
    ),
    (["train/a/1", "train/b/1"], {"": "train"}),
    # A railway's classes.
    (["train/1.jpg", "tram/1.jpg"], {"": ""}),
    (
      ["train/a/1", "val/b/1", "tram/1.jpg"],
      "or classes beside splits; it holds train, tram, val",
    ),
    (["train/a/1", "val/b/1", "valid/1/1"], "or two of one split, or"),
    (["val/a/1"], "has no folders of classes"),
    (["train/1", "val/a/1"], "train has no folders of classes"),
    (["1.jpg"], "beside splits; it holds 1.j"),
  ],
)
def test_which_folders_are_splits(tmp_path, files, splits):
  forms.write(tmp_path, dict.fromkeys(files, b"1"))
  if isinstance(splits, str):
    with pytest.raises(UserError, match=splits):
      sources.user_splits(tmp_path)
    return
  found = sources.user_splits(tmp_path)
  assert found == {split: tmp_path / name for split, name in splits.items()}


def test_classes_of_imagenet_without_images(tmp_path):
  forms.write(tmp_path, {"n00000001/1.ppm": b"1", "n00000001/x.mp4": b""})
  (tmp_path / "n00000002").mkdir()
  source = sources.synset_folders({"": tmp_path}, None)
  assert [*source.classes] == ["n00000001", "n00000002"]
  assert list(members(source)) == ["n00000001/1.ppm"]
  assert source.warnings == [
    "1 class folders hold no image and are kept as classes: "
    f"{tmp_path}/n00000002",
    "1 kinds of files are no images by their names and are left out: .mp4 (1)",
  ]
