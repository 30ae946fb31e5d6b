"""Tests of `mixer.datasets.sources.tar_stream` and `byte_stream`."""

import bz2
import gzip
import lzma
import os
import tarfile
import tracemalloc

import pytest

from mixer.datasets.sources import byte_stream, tar_stream
from tests.datasets.sources import image_archives

PACK = {
  "": bytes,
  "gzip": gzip.compress,
  "bzip2": bz2.compress,
  "xz": lzma.compress,
}


def _list(path, read=True):
  found = []
  with byte_stream.Stream(path) as stream:
    for entry in tar_stream.entries(stream):
      found.append((entry.name, stream.read(entry.size) if read else None))
    stream.drain()
  return found


@pytest.mark.parametrize("compression", PACK, ids=lambda c: c or "plain")
def test_reads_what_tarfile_wrote(tmp_path, compression):
  files = {f"a/{k}.bin": bytes([k]) * (k * 300) for k in range(8)}
  path = tmp_path / "misnamed.bin"
  path.write_bytes(PACK[compression](image_archives.tar(files)))
  with byte_stream.Stream(path) as stream:
    assert stream.compression == compression
  assert _list(path) == list(files.items())
  assert [name for name, _ in _list(path, read=False)] == list(files)


@pytest.mark.parametrize(
  "format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]
)
def test_names(tmp_path, format):
  names = ["é/ü.png", "x/" * 40 + "y"]
  if format != tarfile.USTAR_FORMAT:
    names += ["l" * 300, "nicht\udce9utf8", "Ω" * 120]
  path = tmp_path / "a.tar"
  path.write_bytes(
    image_archives.tar(dict.fromkeys(names, b"1"), format=format)
  )
  if format == tarfile.PAX_FORMAT:
    # It says so itself; surrogates can't be in its records.
    names = [n for n in names if n.isprintable() or "\udce9" not in n]
  found = [name for name, _ in _list(path)]
  assert set(names) <= set(found)
  assert len(found) == len({*names, *found})


def test_links_and_folders(tmp_path):
  path = tmp_path / "a.tar"
  with tarfile.open(path, "w") as archive:
    for kind, name in (
      (tarfile.DIRTYPE, "d"),
      (tarfile.SYMTYPE, "s.jpg"),
      (tarfile.LNKTYPE, "l.jpg"),
      (tarfile.FIFOTYPE, "f"),
    ):
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, "x"
      archive.addfile(info)
  with byte_stream.Stream(path) as stream:
    found = [(e.name, e.problem[:6]) for e in tar_stream.entries(stream)]
  assert found == [("s.jpg", "a link"), ("l.jpg", "a link")]


def test_one_member_may_be_concatenated_gzip(tmp_path):
  whole = image_archives.tar({"a": b"1" * 5000, "b": b"2"})
  path = tmp_path / "a.tar.gz"
  path.write_bytes(
    gzip.compress(whole[:4000]) + gzip.compress(whole[4000:]) + bytes(100)
  )
  assert [name for name, _ in _list(path)] == ["a", "b"]


@pytest.mark.parametrize("compression", PACK, ids=lambda c: c or "plain")
def test_any_cut_is_told(tmp_path, compression):
  files = {f"{k}": image_archives.image(k) for k in range(4)}
  tar = image_archives.tar(files)
  used = len(tar.rstrip(b"\0")) + 512
  content = PACK[compression](tar)
  most = used if not compression else len(content) - 1
  path = tmp_path / "a.tar"
  for cut in {*range(0, most, 128), *range(0, most, 512), most - 1}:
    path.write_bytes(content[:cut])
    # A cut of the unpacked file at any place, between two files too.
    for read in (True, False):
      with pytest.raises((byte_stream.BrokenError, tar_stream.DamagedError)):
        _list(path, read)


def test_an_end_mark_in_place_of_a_file(tmp_path):
  """Zeros over the last file: its long name, an entry before it, is left."""
  content = image_archives.tar({"a": b"1", "l" * 200: b"2" * 600})
  at = content.index(b"2" * 600)
  path = tmp_path / "a.tar"
  path.write_bytes(content[: at - 512].ljust(len(content), b"\0"))
  with pytest.raises(
    tar_stream.DamagedError, match="ends behind the long name"
  ):
    _list(path)


def test_damaged_header(tmp_path):
  content = bytearray(image_archives.tar({"a": b"1" * 600, "b": b"2"}))
  content[512 + 1024 + 3] ^= 1
  path = tmp_path / "a.tar"
  path.write_bytes(content)
  with pytest.raises(tar_stream.DamagedError, match="no header .* byte 1,536"):
    _list(path)


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz"])
def test_corrupted_compression(tmp_path, compression):
  content = bytearray(
    PACK[compression](image_archives.tar({"a": image_archives.image(1, 200)}))
  )
  content[len(content) // 2] ^= 0xFF
  path = tmp_path / "a.tar"
  path.write_bytes(content)
  with pytest.raises(byte_stream.BrokenError, match="corrupted"):
    _list(path)


def test_wrong_checksum_at_the_very_end(tmp_path):
  content = bytearray(gzip.compress(image_archives.tar({"a": b"1"})))
  content[-8] ^= 1  # CRC32, behind all data.
  path = tmp_path / "a.tar"
  path.write_bytes(content)
  with pytest.raises(byte_stream.BrokenError, match="corrupted"):
    _list(path)


@pytest.mark.parametrize("compression", PACK, ids=lambda c: c or "plain")
def test_archives_that_follow_one_another(tmp_path, compression):
  """As `cat a.tar b.tar` makes them, and `cat a.tar.gz b.tar.gz`."""
  parts = [
    image_archives.tar({f"{k}/{i}": bytes([k]) * 700 for i in range(3)})
    for k in range(3)
  ]
  path = tmp_path / "a.tar"
  pack = PACK[compression]
  for content in (pack(b"".join(parts)), b"".join(map(pack, parts))):
    path.write_bytes(content)
    found = _list(path)
    assert found == [
      (f"{k}/{i}", bytes([k]) * 700) for k in range(3) for i in range(3)
    ]
  # Zeros behind are padding, however many.
  path.write_bytes(pack(parts[0]) + bytes(5000))
  assert len(_list(path)) == 3


@pytest.mark.parametrize("compression", PACK, ids=lambda c: c or "plain")
def test_what_follows_and_is_no_archive_is_told(tmp_path, compression):
  content = PACK[compression](image_archives.tar({"a": b"1"}))
  path = tmp_path / "a.tar"
  path.write_bytes(content + b"more")
  with pytest.raises(
    (byte_stream.BrokenError, tar_stream.DamagedError), match="behind .*more"
  ):
    _list(path)


def test_the_next_archive_within_another_ends_with_it(tmp_path):
  inner = image_archives.tar({"a": b"1"}) * 2
  path = tmp_path / "a.tar"
  path.write_bytes(inner + image_archives.tar({"b": b"2"}))
  with byte_stream.Stream(path) as stream:
    found = [e.name for e in tar_stream.entries(stream, len(inner))]
    assert found == ["a", "a"] and stream.position == len(inner)


def header(name: str, size: int, kind: bytes) -> bytes:
  info = tarfile.TarInfo(name)
  info.size, info.type = size, kind
  return info.tobuf()


def pax(records: bytes) -> bytes:
  return header("x", len(records), tarfile.XHDTYPE) + records.ljust(512, b"\0")


@pytest.mark.parametrize(
  "size", [b"-5", b"1_0", b" 10", b"+10", b"1e3", "٣".encode(), b"9" * 30]
)
def test_sizes_that_are_no_numbers(tmp_path, size):
  record = b" size=%s\n" % size
  record = b"%d%s" % (len(record) + 2, record)
  path = tmp_path / "a.tar"
  path.write_bytes(pax(record) + image_archives.tar({"a": b"1" * 10}))
  with pytest.raises(tar_stream.DamagedError, match="a size that is no number"):
    _list(path)


def test_extended_headers_take_no_time(tmp_path):
  path = tmp_path / "a.tar"
  # Numbers of more digits than Python converts.
  path.write_bytes(header("x", 10_240, tarfile.XHDTYPE) + b"9" * 10_240)
  with pytest.raises(tar_stream.DamagedError, match="extended header"):
    _list(path)
  # So many records that a copy of the rest for each would take a minute.
  content = b"4 a\n" * (2**18)
  path.write_bytes(
    header("x", len(content), tarfile.XHDTYPE)
    + content
    + image_archives.tar({"a": b"1"})
  )
  assert _list(path) == [("a", b"1")]


def test_sparse_files_are_told(tmp_path):
  """Old GNU's, with a map in two blocks of its own, and PAX's."""
  old = bytearray(header("old.bmp", 512, tarfile.GNUTYPE_SPARSE))
  old[482] = 1
  old[148:156] = b" " * 8
  old[148:156] = b"%06o\0 " % sum(old)
  more = bytes(504) + b"\1" + bytes(7)
  records = b"22 GNU.sparse.major=1\n"
  records += b"27 GNU.sparse.name=new.bmp\n"
  path = tmp_path / "a.tar"
  path.write_bytes(
    bytes(old)
    + more
    + bytes(512)
    + b"d" * 512
    + pax(records)
    + image_archives.tar({"GNUSparseFile.1/new.bmp": b"1\n", "a": b"1"})
  )
  with byte_stream.Stream(path) as stream:
    found = [(e.name, e.problem[:13]) for e in tar_stream.entries(stream)]
  assert found == [
    ("old.bmp", "stored as a s"),
    ("new.bmp", "stored as a s"),
    ("a", ""),
  ]


def test_what_a_header_claims_takes_no_memory(tmp_path):
  path = tmp_path / "a.tar"
  path.write_bytes(header("a", 2**33 - 1, tarfile.REGTYPE))
  with byte_stream.Stream(path) as stream:
    entry = next(tar_stream.entries(stream))
    tracemalloc.start()
    with pytest.raises(byte_stream.BrokenError, match="it ends after"):
      stream.read(entry.size)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_pipe_is_no_archive(tmp_path):
  os.mkfifo(tmp_path / "a.tar")
  with pytest.raises(OSError, match="no regular file"):
    byte_stream.Stream(tmp_path / "a.tar")
