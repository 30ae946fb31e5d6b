import collections

import pytest

from mixer import image_files
from mixer.errors import UserError


def test_images_are_found_in_order_and_links_end(tmp_path):
  for name in (
    "b.JPG", "a/2.png", "a/1.webp", "a/.hidden.png", "a/README", "a/notes.txt",
    "a/x.foo", "a/noext", "__MACOSX/c.png", ".hid/c.png", "d/._e.png",
  ):  # fmt: skip
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
  (tmp_path / "a" / "up").symlink_to(tmp_path)
  (tmp_path / "gone.gif").symlink_to(tmp_path / "nowhere")
  passed_over, hidden = collections.Counter(), []
  found = [
    way for way, _ in image_files.find(str(tmp_path), passed_over, hidden)
  ]
  assert found == ["a/1.webp", "a/2.png", "a/noext", "b.JPG", "gone.gif"]
  assert passed_over == {".foo": 1}
  assert sorted(hidden) == [
    str(tmp_path / ".hid"), str(tmp_path / "a" / ".hidden.png")
  ]  # fmt: skip
  with pytest.raises(UserError, match="nowhere can't be listed: No such file"):
    list(image_files.find(str(tmp_path / "nowhere")))
