"""What lies where, before, during and after an export."""

import pathlib

import pytest

from mixer.errors import UserError
from mixer.exporting import placing
from tests.exporting import models

_MEMBERS = ("info", "weights", "program")


def test_a_file_is_there_at_the_end(tmp_path):
  path = tmp_path / "a.onnx"
  path.write_text("old")
  with placing.place(str(path), ".onnx") as place:
    assert not place.is_folder
    place.part.write_text("new")
    assert path.read_text() == "old"
    place.commit()
  assert path.read_text() == "new"
  assert models.left_over(tmp_path) == ["a.onnx"]


def test_the_folder_that_it_goes_to_is_made(tmp_path):
  with models.place(tmp_path / "a" / "b" / "c.onnx", ".onnx") as place:
    place.part.write_text("new")
  assert (tmp_path / "a" / "b" / "c.onnx").read_text() == "new"


def test_a_folder_is_there_at_the_end(tmp_path):
  path = tmp_path / "v1.5"
  for text in ("old", "new"):
    with placing.place(str(path), ".onnx", _MEMBERS) as place:
      assert place.is_folder
      for name in _MEMBERS:
        (place.part / name).write_text(text)
      assert place.size() == 9
      place.commit()
    assert [(path / name).read_text() for name in _MEMBERS] == [text] * 3
    assert models.left_over(tmp_path) == ["v1.5"]
  assert path.stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o777 | 0o055


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt, ValueError])
def test_nothing_is_left_of_one_that_fails(tmp_path, error):
  path = tmp_path / "a.onnx"
  path.write_text("old")
  with pytest.raises(error) as caught:
    with placing.place(str(path), ".onnx") as place:
      place.part.write_text("new")
      raise error(f"{place.part} is wrong")
  assert path.read_text() == "old"
  assert models.left_over(tmp_path) == ["a.onnx"]
  if error is UserError:  # In the user's words.
    assert str(caught.value) == f"{path} is wrong"


def test_links_and_devices(tmp_path):
  there, link = tmp_path / "there", tmp_path / "a.onnx"
  there.mkdir()
  for target in ("there/b", "/dev/null"):
    link.symlink_to(target)
    with placing.place(str(link), ".onnx") as place:
      place.part.write_text("new")
      place.commit()
    assert link.is_symlink()
    link.unlink()
  assert pathlib.Path("/dev/null").is_char_device()
  assert (there / "b").read_text() == "new"
  assert [*models.left_over(there), *models.left_over(tmp_path)] == [
    "b",
    "there",
  ]


def test_one_that_is_killed_between_files_leaves_no_mixture(
  tmp_path, monkeypatch
):
  path = tmp_path / "made"
  path.mkdir()
  for name in _MEMBERS:
    (path / name).write_text("old")
  replace = placing.pathlib.Path.replace

  def stop(self, target):
    if str(target).endswith("weights"):
      raise KeyboardInterrupt
    return replace(self, target)

  monkeypatch.setattr(placing.pathlib.Path, "replace", stop)
  with pytest.raises(KeyboardInterrupt):
    with placing.place(str(path), ".onnx", _MEMBERS) as place:
      for name in _MEMBERS:
        (place.part / name).write_text("new")
      place.commit()
  assert "program" not in models.left_over(path)


@pytest.mark.parametrize(
  ("name", "members", "said"),
  [
    ("a.npz", (), "expected a name ending in .onnx"),
    ("a", (), "expected a name ending in .onnx"),
    ("a.npz", _MEMBERS, "for one file, or the name of a folder, for info and"),
    ("file/a.onnx", (), "can't be written: File exists"),
    ("folder.onnx", (), "is a folder; name a file in it"),
    ("file", _MEMBERS, "it is a file, not a folder"),
    ("full", _MEMBERS, "holds something else (a, b, c, ...); name one"),
  ],
)
def test_names_that_cannot_be(tmp_path, name, members, said):
  (tmp_path / "file").write_text("")
  (tmp_path / "folder.onnx").mkdir()
  (tmp_path / "full").mkdir()
  for other in ("a", "b", "c", "d", "info"):
    (tmp_path / "full" / other).write_text("")
  before = models.left_over(tmp_path)
  with pytest.raises(UserError) as caught:
    with placing.place(str(tmp_path / name), ".onnx", members):
      raise AssertionError("it was opened")
  assert said in str(caught.value)
  assert models.left_over(tmp_path) == before


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
  def refuse(self):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(placing.pathlib.Path, "mkdir", refuse)
  with pytest.raises(UserError, match="a.onnx can't be written: Permission"):
    with placing.place(str(tmp_path / "a.onnx"), ".onnx"):
      raise AssertionError("it was opened")
