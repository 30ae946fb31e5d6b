"""Tests of `mixer.datasets.sources.file_names`."""

import pytest

from mixer.datasets.sources import file_names
from mixer.errors import UserError


def test_readable():
  assert file_names.readable("a b.jpg") == "a b.jpg"
  assert file_names.readable("e\u0301") == "\u00e9"
  assert file_names.readable("a\udcff") == "a\\xff"
  assert file_names.readable("a\nb\x7f\u2028") == "a\\nb\\x7f\\u2028"
  for name in ("a\udcff", "x\ny", "e\u0301"):
    once = file_names.readable(name)
    assert file_names.readable(once) == once


def test_wnid_of_tar():
  assert file_names.wnid_of_tar("n01440764.tar") == "n01440764"
  for name in (
    "n01440764",
    "n0144076.tar",
    "n01440764.tar.gz",
    "._n01440764.tar",
  ):
    assert file_names.wnid_of_tar(name) == ""


def test_read_classes(tmp_path):
  path = tmp_path / "classes.txt"
  path.write_text("n00000002 two\n\n# a note\nn00000001,one\n", "utf-8")
  assert file_names.read_classes(path) == ("n00000002", "n00000001")
  path.write_text("\ufeffgroßer Hund\ncat\n", "utf-8")  # As Windows has it.
  assert file_names.read_classes(path, wnids=False) == ("großer Hund", "cat")


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (b"n00000001\ncat\n", "line 2 .* is 'cat'; each line has to begin"),
    (b"n00000001\nn00000001\n", "names n00000001 twice"),
    (b"\n", "is empty"),
    (b"\xff\xfe", "can't be read"),
    (None, "can't be read: .*No such file"),
  ],
)
def test_bad_lists_of_classes(tmp_path, content, says):
  path = tmp_path / "classes.txt"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=says):
    file_names.read_classes(path)
