import os
import pathlib

import pytest

from mixer import errors
from mixer.prediction import partial


def test_a_file_appears_when_it_is_whole(tmp_path):
  path, part = tmp_path / "a.csv", tmp_path / "a.csv.partial"
  path.write_text("older")
  with partial.text(str(path)) as write:
    write("one\n")
    assert path.read_text() == "older"
    assert part.read_text() == "one\n"  # At once.
    write("ä\udcff\n")
  assert path.read_bytes() == b"one\n\xc3\xa4\xff\n"
  assert os.listdir(tmp_path) == ["a.csv"]


def test_what_was_written_stays_after_an_exception(tmp_path):
  path = tmp_path / "a.csv"
  with (
    pytest.raises(KeyboardInterrupt),
    partial.text(str(path)) as write,
  ):
    write("one\n")
    raise KeyboardInterrupt
  assert os.listdir(tmp_path) == ["a.csv.partial"]
  assert (tmp_path / "a.csv.partial").read_text() == "one\n"


def test_nothing_written_leaves_nothing(tmp_path):
  with (
    pytest.raises(ZeroDivisionError),
    partial.text(str(tmp_path / "a.csv")),
  ):
    raise ZeroDivisionError
  assert os.listdir(tmp_path) == []


def test_stdout(capsys):
  with partial.text("") as write:
    write("one")
    write("\n")
  assert capsys.readouterr().out == "one\n"


def test_links_devices_and_pipes(tmp_path):
  there = tmp_path / "there"
  there.mkdir()
  link = tmp_path / "a.csv"
  link.symlink_to("there/b.csv")
  with partial.text(str(link)) as write:
    write("one\n")
    assert os.listdir(there) == ["b.csv.partial"]
  assert link.is_symlink() and (there / "b.csv").read_text() == "one\n"
  link.unlink()
  link.symlink_to("/dev/null")
  with partial.text(str(link)) as write:
    write("one\n")
  assert link.is_char_device()
  link.unlink()
  link.symlink_to("/dev/full")
  with (
    pytest.raises(errors.UserError, match="a.csv can't be written: No space"),
    partial.text(str(link)) as write,
  ):
    write("one\n")
  assert sorted(os.listdir(tmp_path)) == ["a.csv", "there"]


def refuse(*args, **kwargs):
  raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["file/a.csv", ".", "a.csv"])
def test_what_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch, name):
  (tmp_path / "file").touch()
  why = {"file/a.csv": "exists", ".": "is a folder", "a.csv": "No space"}
  if name == "a.csv":
    monkeypatch.setattr(pathlib.Path, "open", refuse)
  with (
    pytest.raises(errors.UserError, match=f"can't be written: .*{why[name]}"),
    partial.text(str(tmp_path / name)),
  ):
    raise AssertionError


def test_a_disk_that_is_full_later(tmp_path, monkeypatch):
  path = tmp_path / "a.csv"
  with (
    pytest.raises(errors.UserError, match="a.csv can't be written: No space"),
    partial.text(str(path)) as write,
  ):
    write("one\n")
    monkeypatch.setattr(os, "fsync", refuse)
  assert not path.exists()
