"""Tests of `mixer.datasets.sources.tar_stream` and `byte_stream`."""

import bz2
import gzip
import lzma
import tarfile

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
    found = [(e.name, e.is_link) for e in tar_stream.entries(stream)]
  assert found == [("s.jpg", True), ("l.jpg", True)]


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
