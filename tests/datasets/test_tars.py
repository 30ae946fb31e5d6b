"""Sources of images, whole and damaged: `prepare.tars`, `prepare.sources`."""

import contextlib
import gzip
import os
import pathlib
import tarfile
import tracemalloc
import unicodedata

import pytest

from mixer.datasets.prepare import sources, tars
from mixer.datasets.prepare.sources import Member
from mixer.errors import UserError
from tests.datasets import forms

PACK = {"": bytes, "gz": gzip.compress}


def entries(path, read=True):
  with contextlib.closing(tars.Stream(path)) as stream:
    return [
      (name, stream.read(size) if read else None)
      for name, size, _ in tars.entries(stream)
    ]


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
  path.write_bytes(content + bytes(5000))  # Padding.
  assert len(entries(path)) == 5
  # A cut of the unpacked file at any place, between two files too.
  most = len(content) - 1 if pack else len(whole.rstrip(b"\0")) + 512
  for cut in {*range(0, most, 128), *range(0, most, 512), most - 1}:
    path.write_bytes(content[:cut])
    for read in (True, False):
      with pytest.raises(tars.BrokenError):
        entries(path, read)
  # A second archive behind the first is told, not passed over.
  path.write_bytes(PACK[pack](whole + whole))
  with pytest.raises(tars.DamagedError, match="goes on behind its end mark"):
    entries(path)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names(path, format):
  names = ["\u00e9/\u00fc.png", "x/" * 40 + "y", "l" * 300, "\u03a9" * 120]
  names += ["nicht\udce9utf8"] if format == tarfile.GNU_FORMAT else []
  path.write_bytes(forms.tar(dict.fromkeys(names, b"1"), format=format))
  assert [name for name, _ in entries(path)] == names


def header(name: str, size: int, kind: bytes) -> bytes:
  info = tarfile.TarInfo(name)
  info.size, info.type = size, kind
  return info.tobuf()


def pax(records: bytes) -> bytes:
  return header("x", len(records), tarfile.XHDTYPE) + records.ljust(512, b"\0")


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
  with pytest.raises(tars.BrokenError):
    entries(path)
  used = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert used < 1 << 22


def test_corrupted_compression(path):
  content = bytearray(gzip.compress(forms.tar({"a": forms.image(1, 99, 99)})))
  for place in (len(content) // 2, len(content) - 8):
    damaged = bytearray(content)
    damaged[place] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(tars.BrokenError, match="damaged at or|no header"):
      entries(path)


def layout(path: pathlib.PurePosixPath) -> Member:
  """That of a tar of one tar a class."""
  return Member(str(path), sources.wnid_of_tar(path.name))


def of_tars(path, content, accept=False):
  path.write_bytes(content)
  return tars.source([path], layout, None, accept)


def members(source, start=0):
  return [member for member, _ in source.members(start)]


def test_odd_entries(path):
  one = forms.tar({"a.ppm": b"1", "x.txt": b"", "._a.ppm": b"", "b.jpg ": b""})
  links = [(tarfile.SYMTYPE, "s.jpg"), (tarfile.LNKTYPE, "l.jpg")]
  links += [(tarfile.DIRTYPE, "d"), (tarfile.FIFOTYPE, "f")]
  sparse = pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
  sparse += forms.tar({"new.bmp": b"0\n" * 256})
  odd = b"".join(header(name, 0, kind) for kind, name in links) + sparse
  files = {
    "n00000001.tar": one,
    "other.tar": one,
    "stray.ppm": b"1",
    "n00000002.tar": odd,
    "n00000003.tar": b"<html>404</html>" * 100,
    "n00000004.tar": b"",
  }
  source = of_tars(path, forms.tar(files))
  found = members(source)
  assert [m.name for m in found if not m.class_name] == [
    "other.tar",
    "stray.ppm",
  ]
  assert {m.name: m.error.partition(":")[0] for m in found} == {
    "n00000001/a.ppm": "",
    "other.tar": "",
    "stray.ppm": "",
    "n00000002/s.jpg": "a link or sparse file; pack it anew as a plain file",
    "n00000002/l.jpg": "a link or sparse file; pack it anew as a plain file",
    "n00000002/new.bmp": "a link or sparse file; pack it anew as a plain file",
    "n00000003.tar": "a tar that is cut off or damaged",
    "n00000004.tar": "a tar that is cut off or damaged",
  }
  what = "kinds of files are left out, no images by their names"
  assert source.warnings == [f"1 {what}: .jpg  (1)"]
  for start in range(len(found) + 1):
    assert members(source, start) == found[start:]
  source.find_classes(lambda done: None)
  assert source.classes == [f"n0000000{k}" for k in range(1, 5)]
  os.mkfifo(path.with_name("fifo"))
  with pytest.raises(UserError, match="no regular file"):
    tars.Stream(path.with_name("fifo"))


@pytest.mark.parametrize("pack", ["", "gz"])
def test_a_set_that_breaks_off(path, pack):
  files = forms.images()
  names = list(files)
  inner = forms.class_tars(files)
  cut = dict(inner)
  cut["n01440764.tar"] = cut["n01440764.tar"][:1600]
  # A class's tar that is cut off costs its rest, within another or alone.
  found = members(of_tars(path, PACK[pack](forms.tar(cut))))
  assert [m.name for m in found if not m.error] == [*names[:4], *names[6:]]
  assert [m.class_name for m in found if m.error] == ["n01440764"]
  for name, content in cut.items():
    forms.write(path.parent / "each", {name: PACK[pack](content)})
  each = [path.parent / "each" / name for name in cut]
  source = tars.source(each, layout, None)
  assert [m.name for m in members(source)] == [*names[:4], *names[6:]]
  assert "n01440764.tar is no whole tar archive" in source.warnings[0]
  # Of the whole, what is there may be accepted.
  whole = forms.tar(inner)
  content = gzip.compress(whole, 0) if pack else whole
  at = content.index(files[names[4]]) + 20
  with pytest.raises(UserError, match=f"archive: behind {names[3]}, its data"):
    members(of_tars(path, content[:at]))
  source = of_tars(path, content[:at], accept=True)
  assert [m.name for m in members(source)] == names[:4]
  assert "is no whole tar archive: behind" in source.warnings[0]


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

  # Python's tarfile would keep 5,000 headers more, of over 500 bytes each. The
  # best of two, as other threads of the tests' process allocate as well.
  assert min(peak(130), peak(130)) < peak(30) + (1 << 20)


# Folders of the user's own.
def opened(root, classes=None):
  return sources.own_folders(root, classes, 0)


def test_the_order_mixes_classes_and_is_that_of_the_names(tmp_path):
  files = {f"{c}/{k}.jpg": b"x" for c in "ab" for k in range(50)}
  order = [m.name for m in members(opened(forms.write(tmp_path, files)))]
  assert sorted(order) == sorted(files)
  assert 15 <= sum(name.startswith("a") for name in order[:50]) <= 35
  # The order decides what data sets look like: it is not to change.
  assert order[:3] == ["b/44.jpg", "b/49.jpg", "b/27.jpg"]


def test_names_of_any_kind(tmp_path):
  composed = unicodedata.normalize("NFC", "gr\u00f6\u00dfe")
  apart = unicodedata.normalize("NFD", composed)
  forms.write(
    tmp_path,
    {f"{apart}/{apart}.png": b"1", "\u65e5\u672c \u8a9e/ \u5199.png": b"2"},
  )
  os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9\n")
  with open(os.fsencode(tmp_path) + b"/caf\xe9\n/\xff.png", "wb") as file:
    file.write(b"3")
  source = opened(tmp_path)
  assert [*source.classes] == ["caf\\xe9?", composed, "\u65e5\u672c \u8a9e"]
  assert {m.name: m.data for m in members(source)} == {
    f"{composed}/{composed}.png": b"1",
    "\u65e5\u672c \u8a9e/ \u5199.png": b"2",
    "caf\\xe9?/\\xff.png": b"3",
  }


def test_links_and_files_that_go_away(tmp_path):
  root = forms.write(tmp_path / "set", {"cat/1.jpg": b"1", "dog/1.jpg": b"2"})
  other = forms.write(tmp_path / "else", {"eel/1.jpg": b"3"})
  (root / "eel").symlink_to(other / "eel")
  (root / "cat" / "2.jpg").symlink_to(root / "dog" / "1.jpg")
  (root / "cat" / "up").symlink_to(root)
  (root / "dog" / "broken.jpg").symlink_to("nowhere.jpg")
  os.mkfifo(root / "dog" / "fifo.jpg")
  source = opened(root)
  (root / "cat" / "1.jpg").unlink()
  error = "the file can't be read: No such file or directory"
  assert {m.name: m.error or m.data for m in members(source)} == {
    "cat/1.jpg": error,
    "cat/2.jpg": b"2",
    "dog/1.jpg": b"2",
    "dog/broken.jpg": error,
    "eel/1.jpg": b"3",
  }


def test_what_is_left_out_or_changed(tmp_path):
  files = {
    "cat/1.jpg": b"1",
    "cat/.2.jpg": b"2",
    "empty/x.mp4": b"",
    "9.jpg": b"",
  }
  root = forms.write(tmp_path, files)
  source = opened(root)
  assert [*source.classes] == ["cat", "empty"]
  assert len(members(source)) == 1
  assert source.warnings == [
    "1 images are in no folder of a class and are left out: 9.jpg",
    "1 classes have no image in the source: empty",
    "1 kinds of files are left out, no images by their names: .mp4 (1)",
  ]
  assert source.fingerprint == opened(root).fingerprint
  assert source.fingerprint != opened(root, ["cat"]).fingerprint
  os.utime(root / "cat/1.jpg", ns=(0, 0))
  assert source.fingerprint != opened(root).fingerprint


@pytest.mark.parametrize(
  ("files", "splits"),
  [
    (["a/1.jpg", "b/1.jpg"], {""}),
    (["train/a/1", "test/a/1"], {"train", "test"}),
    (["Train/a/1", "Valid/a/1"], {"train", "validation"}),
    (["train/a/1", "notes/x.txt", "test/b/1"], {"train", "test"}),
    (["train/a/1", "train/b/1"], {""}),
    (["train/a/1", "val/b/1", "tram/1.jpg"], None),
    (["train/a/1", "val/b/1", "valid/1/1"], None),
    (["val/a/1"], None),
    (["train/1", "val/a/1"], None),
    (["1.jpg"], None),
  ],
)
def test_which_folders_are_splits(tmp_path, files, splits):
  forms.write(tmp_path, dict.fromkeys(files, b"1"))
  if splits is None:
    with pytest.raises(UserError, match="or classes beside splits; it holds"):
      opened(tmp_path)
  else:
    assert {m.split for m in members(opened(tmp_path))} == splits
