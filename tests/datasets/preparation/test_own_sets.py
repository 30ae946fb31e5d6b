"""Tests of `mixer.datasets.preparation.own_sets`."""

import gzip

import pytest

from mixer import progress
from mixer.datasets.preparation import build_files, own_sets
from mixer.datasets.sources import tar_source
from mixer.errors import UserError
from tests.datasets.sources import image_archives


def test_a_tar_is_looked_through_for_classes_once(tmp_path, monkeypatch):
  tars = image_archives.class_tars(image_archives.images())
  path = tmp_path / "winter21_whole.tar.gz"
  path.write_bytes(gzip.compress(image_archives.tar(tars)))
  passes = []
  list_classes = tar_source.TarSource._list_classes

  def counted(self, progress):
    passes.append(1)
    return list_classes(self, progress)

  monkeypatch.setattr(tar_source.TarSource, "_list_classes", counted)

  def prepare(**options):
    request = own_sets.Request("imagenet21k", [path], options=options)
    with progress.Progress() as shown:
      return own_sets.prepare(request, tmp_path / "data", shown)

  folder = tmp_path / "data" / "imagenet21k" / "winter21"
  with pytest.raises(UserError, match="hold_out"):
    prepare(hold_out={"test": 10**6}, workers=0)
  (kept,) = folder.glob(".classes-*")
  classes = build_files.read_checked(kept)
  content = kept.read_bytes()
  name, report = prepare(hold_out={"test": 1}, workers=0, restart=True)
  assert len(passes) == 1
  assert name == "imagenet21k/winter21" and report.splits["test"] == 1
  labels = (folder / "1.0.0" / "label.labels.txt").read_text().splitlines()
  assert labels == classes
  assert not list(folder.glob(".classes-*"))
  # One that is damaged is as good as none.
  kept.write_bytes(content.replace(b"n0", b"n1", 1))
  prepare(hold_out={"test": 2}, workers=0, restart=True)
  assert len(passes) == 2
  labels = (folder / "1.0.0" / "label.labels.txt").read_text().splitlines()
  assert labels == classes
