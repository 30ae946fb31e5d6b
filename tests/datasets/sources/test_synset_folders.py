"""Tests of `mixer.datasets.sources.synset_folders`."""

import shutil

import pytest

from mixer.datasets.sources import synset_folders
from mixer.errors import UserError
from tests.datasets.sources import image_archives


def test_folders(tmp_path):
  files = image_archives.images()
  root = image_archives.write(
    tmp_path, {**files, "misc/1.JPEG": b"x", "n01440764/x.txt": b"x"}
  )
  source = synset_folders.SynsetFolders({"": root})
  assert source.class_names() == tuple(sorted(image_archives.CLASSES))
  assert image_archives.contents(source) == files
  found = [m.name for m in image_archives.members(source)]
  assert found == sorted(found)
  assert {m.split for m in image_archives.members(source)} == {""}
  assert not source.warnings
  assert source.total_bytes == pytest.approx(
    sum(map(len, files.values())), rel=0.01
  )
  image_archives.check_start(source)
  assert list(source.members())[-1][1] == source.total_bytes


def test_splits(tmp_path):
  root = image_archives.write(
    tmp_path,
    {
      "t/n00000001/1": b"1",
      "t/n00000002/1": b"2",
      "v/n00000001/1": b"3",
    },
  )
  source = synset_folders.SynsetFolders(
    {"train": root / "t", "validation": root / "v"}
  )
  assert source.class_names() == ("n00000001", "n00000002")
  assert [
    (m.name, m.class_name, m.split, m.data)
    for m in image_archives.members(source)
  ] == [
    ("train/n00000001/1", "n00000001", "train", b"1"),
    ("train/n00000002/1", "n00000002", "train", b"2"),
    ("validation/n00000001/1", "n00000001", "validation", b"3"),
  ]
  image_archives.check_start(source)


def test_given_classes_and_empty_ones(tmp_path):
  root = image_archives.write(tmp_path, image_archives.images())
  shutil.rmtree(root / "n12345678")
  (root / "n12345678").mkdir()
  source = synset_folders.SynsetFolders({"": root}, ["n01440764"])
  assert source.class_names() == ("n01440764",)
  errors = {m.class_name: m.error for m in image_archives.members(source)}
  assert errors == {
    "n01440764": "",
    "n02084071": "its class n02084071 is not among the 1 of the data set",
  }
  assert len(source.warnings) == 1
  assert "1 class folders hold no image" in source.warnings[0]


def test_no_images(tmp_path):
  (tmp_path / "n01440764").mkdir()
  with pytest.raises(UserError, match="there is no image below"):
    synset_folders.SynsetFolders({"": tmp_path})


def test_fingerprint(tmp_path):
  root = image_archives.write(tmp_path, image_archives.images())
  one = synset_folders.SynsetFolders({"": root}).fingerprint
  assert one == synset_folders.SynsetFolders({"": root}).fingerprint
  (root / "n12345678" / "new.JPEG").write_bytes(b"")
  assert one != synset_folders.SynsetFolders({"": root}).fingerprint
