import io
import os

import pytest

from mixer import errors
from mixer.prediction import finding


@pytest.fixture
def photos(tmp_path):
  root = tmp_path / "photos"
  (root / "below").mkdir(parents=True)
  for name in ("b.png", "a.jpg", "below/c.jpg", "notes.txt", ".hidden.jpg"):
    (root / name).touch()
  return root


def test_files_folders_and_patterns(photos, tmp_path):
  names = [str(photos / "*.png"), str(photos / "**" / "*.jpg")]
  (tmp_path / "empty").mkdir()
  none = str(tmp_path / "empty")
  paths, empty = finding.find([*names, str(photos), names[0], none])
  assert [os.path.relpath(p, photos) for p in paths] == [
    "b.png", "a.jpg", "below/c.jpg"
  ]  # fmt: skip
  assert empty == [none]
  assert finding.find(["none.jpg"]) == (["none.jpg"], [])
  strange = tmp_path / "a[1].png"
  strange.touch()
  assert finding.find([str(strange)]) == ([str(strange)], [])


def test_ways_up_and_links_lead_to_the_same_images(photos, monkeypatch):
  below = photos / "below"
  (below / "again").symlink_to(photos)  # Not followed: we come from there.
  (photos.parent / "link").symlink_to(photos)
  monkeypatch.chdir(below)
  for way in ("..", "../../photos", "../below/..", "../../link", "again"):
    paths, _ = finding.find([way])
    assert [os.path.relpath(p, way) for p in paths] == [
      "a.jpg", "b.png", "below/c.jpg"
    ]  # fmt: skip


def test_a_list_is_taken_as_it_is(tmp_path, monkeypatch):
  path = tmp_path / "list.txt"
  path.write_bytes(b"\xef\xbb\xbfa.jpg\r\n\nb [1]*.png\na.jpg\n \xff.gif")
  want = ["a.jpg", "b [1]*.png", "a.jpg", " \udcff.gif"]
  assert finding.find([], str(path)) == (want, [])
  assert finding.find(["z.png"], str(path)) == (["z.png", *want], [])

  class Stdin:
    buffer = io.BytesIO(path.read_bytes())

  monkeypatch.setattr("sys.stdin", Stdin)
  assert finding.find([], "-") == (want, [])


def test_refusals(tmp_path, monkeypatch):
  with pytest.raises(errors.UserError, match=r"no image in .*x\*: expected"):
    finding.find([str(tmp_path / "x*")])
  empty = tmp_path / "empty.txt"
  empty.write_text("\n\n")
  with pytest.raises(errors.UserError, match="no image in --files=.*empty.txt"):
    finding.find([], str(empty))
  with pytest.raises(errors.UserError, match="none.txt can't be read: No such"):
    finding.find([], str(tmp_path / "none.txt"))
  with pytest.raises(errors.UserError, match="can't be read: Is a directory"):
    finding.find([], str(tmp_path))
  monkeypatch.setattr("sys.stdin", None)  # As by `<&-`.
  with pytest.raises(errors.UserError, match="can't be read: stdin is closed"):
    finding.find([], "-")
  with monkeypatch.context() as patch:
    patch.setattr(finding, "_LARGEST", 9)
    with pytest.raises(errors.UserError, match="is no list of files; expected"):
      finding.find([], "/dev/urandom")
  picture = tmp_path / "a.png"
  picture.write_bytes(b"\x89PNG\r\n\0\0")
  with pytest.raises(errors.UserError, match="is no list of files; expected"):
    finding.find([], str(picture))

  def refuse(path):
    raise PermissionError(13, "Permission denied", path)

  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(errors.UserError, match="can't be listed: Permission"):
    finding.find([str(tmp_path)])
