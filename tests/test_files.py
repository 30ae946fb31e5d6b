import errno
import json
import os
import pathlib
import stat
import threading

import pytest

from mixer import files
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
  write(path)
  assert path.read_bytes() == b"new"
  assert os.listdir(tmp_path) == ["a"]


def test_text_is_utf8_and_names_of_files_are_their_bytes(tmp_path):
  with files.atomic_write(tmp_path / "a", "w") as f:
    f.write("ä\udce9\r\n")
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


def test_a_device_is_written_in_place(tmp_path):
  write("/dev/null")
  write("/dev/null", "text", mode="w")
  assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
  with pytest.raises(UserError, match="/dev/full can't be written: No space"):
    write("/dev/full")
  assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_pipe_is_written_in_place(tmp_path):
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  read = []
  reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
  reader.start()
  write(pipe)
  reader.join()
  assert read == [b"new"]
  assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_an_open_descriptor_goes_on_where_it_is(tmp_path):
  with open(tmp_path / "a", "wb") as f:
    f.write(b"before, ")
    f.flush()
    write(f"/dev/fd/{f.fileno()}")
    f.write(b", after")
  assert (tmp_path / "a").read_bytes() == b"before, new, after"


def test_what_the_disk_refuses_is_a_sentence(tmp_path):
  with pytest.raises(UserError, match=r"there is no folder .*none; make it"):
    write(tmp_path / "none" / "a")
  with pytest.raises(UserError, match="it is a folder; name a file in it"):
    write(tmp_path)
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"Not a directory\. Mend it\.$"):
    write(tmp_path / "file" / "a", advice="Mend it.")
  with pytest.raises(UserError, match=r"No space left.*make room there"):
    with files.atomic_write(tmp_path / "a"):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  assert os.listdir(tmp_path) == ["file"]


def test_read_json(tmp_path):
  path = tmp_path / "a.json"
  for text in ('{"a": [1, "\\u00e4"]}', '\ufeff{"a": [1, "ä"]}'):
    path.write_text(text, "utf-8")
    assert files.read_json(path, "a set") == {"a": [1, "ä"]}
  assert files.read_json(str(path), "a set") == {"a": [1, "ä"]}


@pytest.mark.parametrize(
  ("data", "why"),
  [
    (b'{"a": "\xe9"}', "is no JSON .*; expected the config"),
    (b'{"a": 1', "is no JSON .*; expected the config"),
    (b"", "is no JSON"),
    (b"[" * 100_000, "is no JSON"),
    (b'{"a":' * 100_000, "is no JSON"),
    (b"[1]", "holds no JSON object"),
    (b"9" * 10_000, "is no JSON"),
    (json.dumps({"a": "b" * 1000}).encode(), "has 1,009 bytes, where .* 1,000"),
  ],
)
def test_read_json_refuses_by_sentences(tmp_path, data, why):
  path = tmp_path / "a.json"
  path.write_bytes(data)
  with pytest.raises(UserError, match=f"a.json {why}"):
    files.read_json(
      path, "the config", limit=1000 if b"bb" in data else 1 << 20
    )


def test_read_json_of_what_is_no_file(tmp_path):
  with pytest.raises(UserError, match=r"there is no file .*none; expected it"):
    files.read_json(tmp_path / "none", "it")
  with pytest.raises(
    UserError, match="can.t be read: Is a directory; expected it"
  ):
    files.read_json(tmp_path, "it")
  os.mkfifo(tmp_path / "pipe")
  for path in (tmp_path / "pipe", pathlib.Path("/dev/zero")):
    with pytest.raises(UserError, match="it is no regular file; expected it"):
      files.read_json(path, "it")
