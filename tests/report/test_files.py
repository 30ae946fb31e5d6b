"""Files that are there whole or not at all."""

import errno
import os
import threading

import pytest

from mixer import workdir
from mixer.errors import UserError
from mixer.report import files
from tests import object_store


def test_writes_and_replaces(tmp_path):
  target = tmp_path / "a.html"
  files.write(target, "old")
  files.write(target, "new é \ud800")
  assert target.read_text("utf-8") == "new é ?"
  assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_a_link_stays_one(tmp_path):
  (tmp_path / "real").write_text("old")
  (tmp_path / "link").symlink_to("real")
  files.write(tmp_path / "link", "new")
  assert (tmp_path / "link").is_symlink()
  assert (tmp_path / "real").read_text() == "new"


def test_a_pipe_stays_one(tmp_path):
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  got = []
  reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
  reader.start()
  files.write(pipe, "text")
  reader.join()
  assert got == ["text"]
  assert pipe.is_fifo()


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
  target = tmp_path / "a.html"
  files.write(target, "old")

  def full(handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(UserError, match="written: No space left on device"):
    files.write(target, "new")
  assert [p.name for p in tmp_path.iterdir()] == ["a.html"]
  assert target.read_text() == "old"


def test_no_folder(tmp_path):
  with pytest.raises(UserError, match=r"mixer report WORKDIR -o FILE"):
    files.write(tmp_path / "no" / "a.html", "text")


def test_an_object_store(monkeypatch):
  pytest.importorskip("gcsfs")
  with object_store.Server() as server:
    for key, value in server.environment.items():
      monkeypatch.setenv(key, value)
    run = workdir.path(f"gs://{object_store.BUCKET}/run")
    assert files.kept(run) == (None, "")
    content = {"step": 1, "predictions": None, "weights": None, "notes": []}
    files.keep(run, content)
    found, wrong = files.kept(run)
    assert (found, wrong) == ({"format": 1, **content}, "")
    files.write(run / files.PAGE, "page")
    assert server.store.objects["run/report.html"] == b"page"
    assert len(server.store.objects) == 2
