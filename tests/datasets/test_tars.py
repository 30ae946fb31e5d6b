"""Sets in tar archives, whole and damaged: `mixer.datasets.prepare.tars`."""

import bz2
import gzip
import lzma
import os
import re
import tarfile
import tracemalloc

import pytest

from mixer.datasets.prepare import tars
from mixer.errors import UserError
from tests.datasets import forms

PACK = {
  "": bytes,
  "gz": gzip.compress,
  "bz2": bz2.compress,
  "xz": lzma.compress,
}
BROKEN = (tars.BrokenError, tars.DamagedError)


def entries(path, read=True):
  found = []
  with tars.Stream(path) as stream:
    for entry in tars.entries(stream):
      found.append((entry.name, stream.read(entry.size) if read else None))
    stream.drain()
  return found


@pytest.fixture
def path(tmp_path):
  return tmp_path / "misnamed.bin"


@pytest.mark.parametrize("pack", PACK)
def test_what_tarfile_wrote_is_read_and_any_cut_is_told(path, pack):
  files = {f"a/{k}.bin": bytes([k]) * (k * 300) for k in range(5)}
  whole = forms.tar(files)
  content = PACK[pack](whole)
  path.write_bytes(content)
  assert entries(path) == list(files.items())
  assert [name for name, _ in entries(path, read=False)] == list(files)
  path.write_bytes(content + bytes(5000) * (pack != "xz"))  # Padding.
  assert len(entries(path)) == 5
  # A cut of the unpacked file at any place, between two files too.
  most = len(content) - 1 if pack else len(whole.rstrip(b"\0")) + 512
  for cut in {*range(0, most, 128), *range(0, most, 512), most - 1}:
    path.write_bytes(content[:cut])
    for read in (True, False):
      with pytest.raises(BROKEN):
        entries(path, read)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names(path, format):
  names = ["\u00e9/\u00fc.png", "x/" * 40 + "y", "l" * 300, "\u03a9" * 120]
  names += ["nicht\udce9utf8"] if format == tarfile.GNU_FORMAT else []
  path.write_bytes(forms.tar(dict.fromkeys(names, b"1"), format=format))
  assert [name for name, _ in entries(path)] == names


def test_links_folders_and_sparse_files(path):
  old = bytearray(header("old.bmp", 512, tarfile.GNUTYPE_SPARSE))
  old[482] = 1
  old[148:156] = b" " * 8
  old[148:156] = b"%06o\0 " % sum(old)
  more = bytes(504) + b"\1" + bytes(7) + bytes(512) + b"d" * 512
  records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
  records += b"27 GNU.sparse.name=new.bmp\n"
  new = pax(records) + forms.tar({"GNUSparseFile.1/new.bmp": b"0\n" * 256})
  links = [(tarfile.DIRTYPE, "d"), (tarfile.FIFOTYPE, "f")]
  links += [(tarfile.SYMTYPE, "s.jpg"), (tarfile.LNKTYPE, "l.jpg")]
  path.write_bytes(
    b"".join(header(name, 0, kind) for kind, name in links)
    + bytes(old)
    + more
    + new
  )
  with tars.Stream(path) as stream:
    found = {e.name: e.problem[:13] for e in tars.entries(stream)}
  assert found == {
    "s.jpg": "a link or spa",
    "l.jpg": "a link or spa",
    "old.bmp": "a link or spa",
    "new.bmp": "a link or spa",
  }


def header(name: str, size: int, kind: bytes) -> bytes:
  info = tarfile.TarInfo(name)
  info.size, info.type = size, kind
  return info.tobuf()


def pax(records: bytes) -> bytes:
  return header("x", len(records), tarfile.XHDTYPE) + records.ljust(512, b"\0")


@pytest.mark.parametrize("pack", PACK)
def test_archives_that_follow_one_another(path, pack):
  """As `cat a.tar b.tar` makes them, and `cat a.tar.gz b.tar.gz`."""
  parts = [
    forms.tar({f"{k}/{i}": bytes([k]) * 700 for i in range(3)})
    for k in range(3)
  ]
  for content in (
    PACK[pack](b"".join(parts)),
    b"".join(map(PACK[pack], parts)),
  ):
    path.write_bytes(content)
    assert entries(path) == [
      (f"{k}/{i}", bytes([k]) * 700) for k in range(3) for i in range(3)
    ]
  if not pack:
    inner = parts[1] * 2
    path.write_bytes(inner + parts[0])
    with tars.Stream(path) as stream:
      assert len(list(tars.entries(stream, len(inner)))) == 6
      assert stream.position == len(inner)
    path.write_bytes(parts[0] + b"more")
    with pytest.raises(tars.DamagedError, match="no header behind 0/2"):
      entries(path)


@pytest.mark.parametrize(
  "spoil",
  [
    lambda tar: tar[:1539] + bytes([tar[1539] ^ 1]) + tar[1540:],
    lambda tar: pax(b"11 size=-5\n") + tar,
    # An end mark behind the long name of a file.
    lambda tar: header("x", 200, tarfile.GNUTYPE_LONGNAME) + bytes(2048),
    lambda tar: header("x", 2**33 - 1, tarfile.XHDTYPE) + tar,
    lambda tar: header("x", 2**33 - 1, tarfile.REGTYPE) + tar,
  ],
  ids=["bit", "size", "end", "header", "file"],
)
def test_damaged_headers(path, spoil):
  path.write_bytes(spoil(forms.tar({"a": b"1" * 600, "b": b"2"})))
  tracemalloc.start()
  with pytest.raises(BROKEN):
    entries(path)
  used = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert used < 1 << 22


@pytest.mark.parametrize("pack", ["gz", "bz2", "xz"])
def test_corrupted_compression(path, pack):
  content = bytearray(PACK[pack](forms.tar({"a": forms.image(1, 99, 99)})))
  for place in (len(content) // 2, len(content) - 8 if pack == "gz" else 40):
    damaged = bytearray(content)
    damaged[place] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(BROKEN, match="damaged at or|no header"):
      entries(path)


def test_a_pipe_is_no_archive(path):
  os.mkfifo(path)
  with pytest.raises(UserError, match="no regular file"):
    tars.Stream(path)


def of_tars(path, content, classes=None, accept=False):
  """A source of one tar a class in a tar."""
  path.write_bytes(content)
  return tars.Tars([(path, tars.tar_of_class)], "", classes, accept)


def members(source, start=0):
  return [member for member, _ in source.members(start)]


def test_odd_entries(path):
  one = forms.tar({"a.ppm": b"1", "x.txt": b"", "._a.ppm": b"", "b.jpg ": b""})
  twice = forms.tar({"a.ppm": b"1"})[:1024] + forms.tar({"a.ppm": b"1"})[:1024]
  link = header("b.ppm", 0, tarfile.LNKTYPE)
  files = {
    "n00000001.tar": one,
    "x/n00000001.tar": one,
    "other.tar": one,
    "stray.ppm": b"1",
    "n00000002.tar": twice + link + bytes(1024),
    "n00000003.tar": b"<html>404</html>" * 100,
    "n00000004.tar": b"",
  }
  source = of_tars(path, forms.tar(files))
  found = members(source)
  assert {m.name: m.error.partition(": ")[0] for m in found} == {
    "n00000001/a.ppm": "",
    "x/n00000001.tar": "a second tar of its class",
    "other.tar": "is no tar that is named by a WordNet id",
    "stray.ppm": "is no tar that is named by a WordNet id",
    "n00000002/a.ppm": "",
    "n00000002/a.ppm (2)": "a second file of this name",
    "n00000002/b.ppm": "a link or sparse file; pack it anew as a plain file",
    "n00000003.tar": "the tar of its class is cut off or damaged",
    "n00000004.tar": "the tar of its class is cut off or damaged",
  }
  assert source.warnings == [
    "1 kinds of files are no images by their names and are left out: .jpg  (1)"
  ]
  for start in range(len(found) + 1):
    assert members(source, start) == found[start:]
  wnids = ["n00000001", "n00000002", "n00000003", "n00000004"]
  assert sorted(source.list_classes(lambda done: None)) == wnids
  source = of_tars(path, forms.tar(files), ["n00000001", "n00000009"])
  errors = {m.error for m in members(source) if m.class_name == "n00000002"}
  assert "its class n00000002 is not among the 2 of the data set" in errors
  assert "1 classes have no image in the source: n00000009" in source.warnings


@pytest.mark.parametrize("pack", ["", "gz"])
def test_a_set_that_breaks_off(path, pack):
  files = forms.images()
  names = list(files)
  inner = forms.class_tars(files)
  cut = dict(inner)
  cut["n01440764.tar"] = cut["n01440764.tar"][:1600]
  # A class's tar that is cut off costs its rest.
  source = of_tars(path, PACK[pack](forms.tar(cut)))
  found = members(source)
  assert [m.name for m in found if not m.error] == [*names[:4], *names[6:]]
  (lost,) = [m for m in found if m.error]
  assert lost.class_name == "n01440764" and "n01440764/" not in lost.name
  for k, (name, content) in enumerate(cut.items()):
    (path.parent / name).write_bytes(PACK[pack](content))
    part = (path.parent / name, name.removesuffix(".tar"))
    alone = members(tars.Tars([part], "", None, False))
    assert bool(alone[-1].error) == (k == 1)
  # Of the whole, what is there may be accepted.
  whole = forms.tar(inner)
  content = gzip.compress(whole, 0) if pack else whole
  at = content.index(files[names[4]]) + 20
  with pytest.raises(UserError) as caught:
    members(of_tars(path, content[:at]))
  assert f"Whole are the 4 images up to {names[3]}. " in str(caught.value)
  with pytest.raises(UserError, match=r"So far it has 2 classes\."):
    of_tars(path, content[:at]).list_classes(lambda done: None)
  source = of_tars(path, content[:at], accept=True)
  assert [m.name for m in members(source)] == names[:4]
  assert re.search("cut off or damaged.*Whole are the 4", source.warnings[0])


def test_memory_is_flat(path):
  def peak(count):
    inner = forms.tar({f"{k}.ppm": b"x" * 600 for k in range(50)})
    outer = {f"n{k:08}.tar": inner for k in range(count)}
    source = of_tars(path, gzip.compress(forms.tar(outer), 1))
    tracemalloc.start()
    assert sum(1 for _ in source.members()) == 50 * count
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return used

  # Python's tarfile would keep 5,000 headers more, of over 500 bytes each.
  assert peak(130) < peak(30) + (1 << 20)
