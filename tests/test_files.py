"""Files that are whole or absent, and text that is safe to print."""

import errno
import io
import json
import os
import pathlib
import stat
import sys
import threading
import unicodedata

import hypothesis
import pytest
from hypothesis import strategies as st

from mixer import errors, files
from mixer.errors import UserError


def write(path, data: bytes | str = b"new", **options):
  with files.atomic_write(path, **options) as f:
    f.write(data)


def test_an_older_file_stays_until_the_end(tmp_path):
  path = tmp_path / "a"
  path.write_bytes(b"old")
  with pytest.raises(ZeroDivisionError), files.atomic_write(path) as f:
    f.write(b"half")
    f.flush()
    assert path.read_bytes() == b"old"
    raise ZeroDivisionError
  assert path.read_bytes() == b"old"
  assert os.listdir(tmp_path) == ["a"]
  with (
    pytest.raises(ZeroDivisionError),
    files.atomic_write(path, partial=True) as f,
  ):
    f.write(b"half")
    raise ZeroDivisionError
  assert (tmp_path / "a.partial").read_bytes() == b"half"
  write(path, partial=True)
  assert path.read_bytes() == b"new"
  assert os.listdir(tmp_path) == ["a"]


def test_text_is_utf8_and_names_of_files_are_their_bytes(tmp_path):
  write(tmp_path / "a", "ä\udce9\r\n", mode="w")
  assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\xe9\r\n"


def test_what_a_link_leads_to_is_replaced(tmp_path):
  there = tmp_path / "there"
  there.mkdir()
  (there / "a").write_bytes(b"old")
  (there / "a").chmod(0o640)
  for name, target in (("a", "there/a"), ("b", "there/b")):  # b isn't there.
    (tmp_path / name).symlink_to(target)
    write(tmp_path / name)
    assert (tmp_path / name).is_symlink()
    assert (there / name).read_bytes() == b"new"
  assert stat.S_IMODE((there / "a").stat().st_mode) == 0o640
  assert sorted(os.listdir(there)) == ["a", "b"]


def test_a_device_and_a_pipe_are_written_in_place(tmp_path):
  write("/dev/null", "text", mode="w")
  with pytest.raises(UserError, match="/dev/full can't be written: No space"):
    write("/dev/full")
  for device in ("/dev/null", "/dev/full"):
    assert stat.S_ISCHR(os.stat(device).st_mode)
  os.mkfifo(pipe := tmp_path / "pipe")
  read = []
  reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
  reader.start()
  write(pipe)
  reader.join()
  assert read == [b"new"]
  assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_an_open_descriptor_goes_on_where_it_is(tmp_path):
  """As `command -o /dev/stdout >> log` wants it."""
  path = tmp_path / "log"
  path.write_bytes(b"before\n")
  with open(path, "ab") as f:
    write(f"/dev/fd/{f.fileno()}")
    f.write(b", after")
  assert path.read_bytes() == b"before\nnew, after"
  assert [*tmp_path.iterdir()] == [path]


def test_what_the_disk_refuses_is_a_sentence(tmp_path):
  (tmp_path / "file").touch()
  for path, why in (
    (tmp_path / "none" / "a", "No such file or directory"),
    (tmp_path, "Is a directory"),
    (tmp_path / "file" / "a", "Not a directory"),
  ):
    with pytest.raises(UserError) as caught:
      write(path, advice="Mend it.")
    assert str(caught.value) == f"{path} can't be written: {why}. Mend it."
  with pytest.raises(UserError, match="No space left"):
    with files.atomic_write(tmp_path / "a"):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  assert os.listdir(tmp_path) == ["file"]
  files.make_parent(tmp_path / "new" / "folder" / "a")
  assert os.listdir(tmp_path / "new" / "folder") == []
  for path in (tmp_path / "file" / "a", tmp_path):
    with pytest.raises(UserError, match="can't be written"):
      files.make_parent(path)


@pytest.mark.parametrize(
  ("data", "why"),
  [
    (b'{"a": "\xe9"}', "is no JSON of the config"),
    (b'{"a": 1', "is no JSON"),
    (b"[" * 100_000, "is no JSON"),
    (b"[1]", "it is no JSON object"),
    (b" " * 600_001, "it has more than 600,000 bytes"),
    (b'{"b": 1, "sha256": "abc"}', "is damaged: it is not the config"),
    (b'{"c": 1}', "is damaged: it is not the config"),
    (None, "there is no file .*; expected the config"),
  ],
)
def test_what_is_read_is_whole_or_refused(tmp_path, data, why):
  path = tmp_path / "a.json"
  if data is not None:
    path.write_bytes(data)
  with pytest.raises(UserError, match=why):
    files.read_json(path, "the config", limit=600_000)
    files.read_sealed(path, "the config", ["b"])


def test_json_and_what_is_no_regular_file(tmp_path):
  path = tmp_path / "a.json"
  for text in ('{"a": [1, "\\u00e4"]}', '\ufeff{"a": [1, "ä"]}'):
    path.write_text(text, "utf-8")
    assert files.read_json(path, "a set") == {"a": [1, "ä"]}
  path.write_text(json.dumps(files.sealed({"b": (1, 2)})))
  assert files.read_sealed(path, "it", ["b"]) == {"b": [1, 2]}
  os.mkfifo(tmp_path / "pipe")
  for place in (tmp_path / "pipe", pathlib.Path("/dev/zero"), tmp_path):
    with pytest.raises(UserError, match=r"(regular file|directory); expected"):
      files.read_json(place, "it")


# What foreign text may not do to a terminal, a log or a message.


def test_messages_are_lines_without_control_characters():
  assert str(UserError("a\nb \x1b[2J\r")) == r"a\nb \x1b[2J\r"
  assert str(UserError("a\n  b\x1b", lines=True)) == "a\n  b\\x1b"
  assert errors.printable("gnp.\u202etac\n", keep="\n") == "gnp.\\u202etac\n"
  name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
  assert errors.printable(name) == r"caf\udce9.png"
  assert errors.printable("b\u00e4r \u718a \U0001f43b") == "bär 熊 🐻"
  for text in ("", "\n", "\x0c", "a\x1b\nb.", "a.\n"):
    shown = errors.first_line(ValueError(text))
    assert shown in (r"a\x1b", "a", f"ValueError({text!r})")


@hypothesis.given(st.text(st.characters(codec=None)))
def test_printable_is_one_line_of_text(written):
  shown = errors.printable(written)
  assert len(shown.splitlines()) <= 1
  shown.encode()
  categories = {unicodedata.category(c) for c in shown}
  assert not categories & {"Cc", "Cs", "Zl", "Zp"}
  assert errors.printable(shown) == shown


class Stream(io.TextIOWrapper):
  """A stream of some encoding, perhaps a terminal."""

  def __init__(self, encoding="utf-8", terminal=False):
    self.bytes = io.BytesIO()
    super().__init__(self.bytes, encoding)
    self.isatty = lambda: terminal

  def written(self):
    self.flush()
    return self.bytes.getvalue()


def test_what_is_printed_moves_no_cursor(monkeypatch):
  monkeypatch.setattr(sys, "stdout", out := Stream())
  monkeypatch.setattr(sys, "stderr", err := Stream("ascii"))
  with errors.safe_output():
    print("\x1b[2Jä\ra\tb\nc")
    print("\r\x1b[K\x1b[A8 %", end="")  # Progress, and what it may not do.
    print("\x1b[A", end="")
    print("ä \udce9", file=sys.stderr)
  assert (
    out.written().decode() == "\\x1b[2Jä\\ra\tb\nc\n\r\x1b[K\\x1b[A8 %\x1b[A"
  )
  assert err.written() == rb"\xe4 \udce9" + b"\n"
  assert (sys.stdout, sys.stderr) == (out, err)


def test_data_is_exact_unless_a_person_sees_it(monkeypatch):
  for terminal, want in ((False, b"\x1b\xe9\n"), (True, b"\\x1b\\udce9\n")):
    monkeypatch.setattr(sys, "stdout", out := Stream(terminal=terminal))
    with errors.safe_output() as safe:
      safe.write_exactly("\x1b\udce9\n")
    assert out.written() == want
