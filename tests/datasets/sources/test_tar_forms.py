"""Tests of `mixer.datasets.sources.tar_forms` and `tar_source`."""

import gzip
import os
import re
import tarfile
import tracemalloc
from pathlib import PurePosixPath
from typing import Any

import pytest

from mixer.datasets.sources import tar_forms, tar_source
from mixer.errors import UserError
from tests.datasets.sources import image_archives


def _outer(tmp_path, tars, pack: Any = bytes, name="outer.tar"):
  path = tmp_path / name
  path.write_bytes(pack(image_archives.tar(tars)))
  return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_tar_of_tars(tmp_path, pack):
  files = image_archives.images()
  tars = image_archives.class_tars(files)
  inside = {f"winter21_whole/{name}": tar for name, tar in tars.items()}
  path = _outer(tmp_path, {**inside, "README.txt": b"..."}, pack)
  source = tar_forms.TarOfTars(path)
  assert source.class_names() == tuple(sorted(image_archives.CLASSES))
  found = image_archives.members(source)
  assert {m.name: m.data for m in found} == files
  assert [m.name for m in found] == list(files)  # In the archive's order.
  assert all(m.class_name == m.name.split("/")[0] for m in found)
  assert {m.split for m in found} == {""}
  assert source.total_bytes == path.stat().st_size
  image_archives.check_start(source)


def test_joined_archives_are_read_and_told(tmp_path):
  tars = image_archives.class_tars(image_archives.images())
  parts = [image_archives.tar({name: tar}) for name, tar in tars.items()]
  path = tmp_path / "all.tar"
  path.write_bytes(b"".join(parts))
  source = tar_forms.TarOfTars(path)
  assert source.class_names() == tuple(sorted(image_archives.CLASSES))
  assert image_archives.contents(source) == image_archives.images()
  assert source.warnings == [
    f"{path} goes on behind an end mark, from byte {len(parts[0]):,} on: it is "
    "read as archives that were joined"
  ]
  image_archives.check_start(source)


def test_listing_tells_progress_and_remembers(tmp_path):
  path = _outer(
    tmp_path, image_archives.class_tars(image_archives.images()), gzip.compress
  )
  source = tar_forms.TarOfTars(path)
  told = []
  source.class_names(told.append)
  assert len(told) == 3 and told == sorted(told)
  told.clear()
  assert len(source.class_names(told.append)) == 3
  assert not told


def test_given_classes(tmp_path):
  path = _outer(tmp_path, image_archives.class_tars(image_archives.images()))
  source = tar_forms.TarOfTars(path, ["n12345678", "n01440764"])
  assert source.class_names() == ("n12345678", "n01440764")  # As given.
  assert not source.warnings
  errors = {m.class_name: m.error for m in image_archives.members(source)}
  assert not source.warnings
  assert errors.pop("n02084071") == (
    "its class n02084071 is not among the 2 of the data set"
  )
  assert set(errors.values()) == {""}
  image_archives.check_start(source)
  source = tar_forms.TarOfTars(path, ["n01440764", "n99999999"])
  for start in (0, 5):
    image_archives.members(source, start)
  assert source.warnings == [
    "1 of the 2 classes have no image in the source, such as n99999999"
  ]


def test_what_is_no_image(tmp_path):
  inner = image_archives.tar(
    {
      "n01440764_1.JPEG": b"1",
      "./n01440764_2.JPEG": b"",  # The inspection's business.
      "n01440764_1.txt": b"x",
      "._n01440764_1.JPEG": b"x",
      "n01440764_3": b"3",
      "n01440764_1.JPEG ": b"x",
    }
  )
  path = _outer(tmp_path, {"n01440764.tar": inner})
  for source in (
    tar_forms.TarOfTars(path),
    tar_forms.InTurn([tar_forms.TarOfTars(path)], ["n01440764"]),
  ):
    image_archives.members(source)
    image_archives.members(source, start=1)
    assert source.warnings == [
      "1 files '.jpeg ' are no images by their names and are left out"
    ]
  source = tar_forms.TarOfTars(path)
  assert image_archives.contents(source) == {
    "n01440764/n01440764_1.JPEG": b"1",
    "n01440764/n01440764_2.JPEG": b"",
    "n01440764/n01440764_3": b"3",
  }


def test_odd_entries(tmp_path):
  files = {"a.JPEG": b"1"}
  twice = tmp_path / "twice.tar"
  with tarfile.open(twice, "w") as archive:
    for name, kind in (
      ("a.JPEG", tarfile.REGTYPE),
      ("a.JPEG", tarfile.REGTYPE),
      ("b.JPEG", tarfile.LNKTYPE),
    ):
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, "a.JPEG"
      archive.addfile(info)
  path = _outer(
    tmp_path,
    {
      "n00000001.tar": image_archives.tar(files),
      "x/n00000001.tar": image_archives.tar(files),
      "other.tar": image_archives.tar(files),
      "stray.JPEG": b"1",
      "n00000002.tar": twice.read_bytes(),
    },
  )
  source = tar_forms.TarOfTars(path)
  errors = {m.name: m.error for m in image_archives.members(source)}
  assert errors == {
    "n00000001/a.JPEG": "",
    "x/n00000001.tar": "a second tar of its class",
    "other.tar": "its name is no WordNet id",
    "stray.JPEG": "lies outside of the tars",
    "n00000002/a.JPEG": "",
    "n00000002/a.JPEG (2)": "a second file of this name",
    "n00000002/b.JPEG": (
      "a link inside of the archive, without content of its own"
    ),
  }
  image_archives.check_start(source)


def _damaged():
  """A set of tars, the middle one cut off in its second file."""
  files = image_archives.images()
  tars = image_archives.class_tars(files)
  cut = tars["n01440764.tar"][: 512 + 1024 + 512 + 300]
  assert len(files["n01440764/n01440764_0.JPEG"]) < 1024
  return files, {**tars, "n01440764.tar": cut}


def _check_loss(source, files):
  found = image_archives.members(source)
  lost = [m for m in found if m.error]
  whole = {m.name: m.data for m in found if not m.error}
  assert whole == {
    name: data
    for name, data in files.items()
    if not name.startswith("n01440764") or name.endswith("_0.JPEG")
  }
  assert len(lost) == 1 and lost[0].class_name == "n01440764"
  assert "n01440764.tar, is cut off or damaged" in lost[0].error
  image_archives.check_start(source)
  return lost[0]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_cut_inner_tar(tmp_path, pack):
  files, tars = _damaged()
  source = tar_forms.TarOfTars(_outer(tmp_path, tars, pack))
  lost = _check_loss(source, files)
  assert lost.name == "n01440764/n01440764_1.JPEG"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_cut_tar_beside_others(tmp_path, pack):
  files, tars = _damaged()
  root = image_archives.write(
    tmp_path / "tars", {name: pack(tar) for name, tar in tars.items()}
  )
  source = tar_forms.TarsOfClasses(list(root.iterdir()))
  assert _check_loss(source, files).name == "n01440764.tar"


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (b"<html>404</html>", "ends without an end mark"),
    (b"<html>404</html>" * 100, "no header of a file at byte .*<html>"),
    (b"", "ends without an end mark"),
  ],
)
def test_inner_file_that_is_no_tar(tmp_path, content, says):
  files = image_archives.images()
  tars = {**image_archives.class_tars(files), "n01440764.tar": content}
  for source in (
    tar_forms.TarOfTars(_outer(tmp_path, tars)),
    tar_forms.TarOfTars(_outer(tmp_path, tars, gzip.compress)),
  ):
    found = image_archives.members(source)
    (lost,) = [m for m in found if m.error]
    assert lost.name == "n01440764.tar"
    assert re.search(says, lost.error)
    assert sum(not m.error for m in found) == 6
    image_archives.check_start(source)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_cut_outer_tar(tmp_path, pack):
  files = image_archives.images()
  whole = image_archives.tar(image_archives.class_tars(files))
  path = tmp_path / "winter21_whole.tar.gz"
  if pack is bytes:
    # In the middle of the second file of the second tar.
    offset = whole.index(files["n01440764/n01440764_1.JPEG"])
    path.write_bytes(whole[: offset + 100])
    count, last = 4, "n01440764/n01440764_0.JPEG"
  else:
    packed = gzip.compress(whole, compresslevel=0)
    offset = packed.index(files["n01440764/n01440764_1.JPEG"])
    path.write_bytes(packed[: offset + 100])
    count, last = 4, "n01440764/n01440764_0.JPEG"
  with pytest.raises(UserError) as caught:
    list(tar_forms.TarOfTars(path).members())
  says = str(caught.value)
  assert str(path) in says and "--accept_truncated" in says
  assert f"Whole are the {count} images up to {last}." in says
  source = tar_forms.TarOfTars(path, tolerate_truncation=True)
  assert list(image_archives.contents(source)) == list(files)[:count]
  assert len(source.warnings) == 1 and "cut off" in source.warnings[0]
  image_archives.check_start(source)
  with pytest.raises(UserError, match=r"So far it has 2 classes\."):
    tar_forms.TarOfTars(path).class_names()
  source = tar_forms.TarOfTars(path, tolerate_truncation=True)
  assert source.class_names() == ("n01440764", "n02084071")


def test_corrupted_gzip(tmp_path):
  whole = image_archives.tar(image_archives.class_tars(image_archives.images()))
  packed = bytearray(gzip.compress(whole))
  packed[len(packed) // 2] ^= 0xFF
  path = tmp_path / "a.tar.gz"
  path.write_bytes(packed)
  with pytest.raises(UserError, match="gzip data are corrupted"):
    list(tar_forms.TarOfTars(path).members())


def _flat(path):
  parts = PurePosixPath(path).parts
  return tar_source.Place("/".join(parts), parts[0], "train")


def test_tar_of_folders(tmp_path):
  files = image_archives.images()
  path = _outer(tmp_path, {**files, "n01440764/x.txt": b"x"}, gzip.compress)
  source = tar_forms.TarOfFolders(path, _flat)
  assert source.class_names() == tuple(sorted(image_archives.CLASSES))
  assert image_archives.contents(source) == files
  assert {m.split for m in image_archives.members(source)} == {"train"}
  image_archives.check_start(source)


def test_fingerprints(tmp_path):
  tars = image_archives.class_tars(image_archives.images())
  path = _outer(tmp_path, tars)
  other = _outer(tmp_path, tars, name="other.tar")
  one = tar_forms.TarOfTars(path).fingerprint
  assert one == tar_forms.TarOfTars(path).fingerprint
  assert one != tar_forms.TarOfTars(other).fingerprint
  assert one != tar_forms.TarOfTars(path, ["n01440764"]).fingerprint
  os.utime(path, ns=(0, 0))
  assert one != tar_forms.TarOfTars(path).fingerprint


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_memory_is_flat(tmp_path, pack):
  noise = image_archives.image(0, 32) * 2

  def peak(count):
    inner = image_archives.tar({f"{k}.JPEG": noise for k in range(50)})
    tars = {f"n{k:08}.tar": inner for k in range(count)}
    path = _outer(tmp_path, tars, pack)
    source = tar_forms.TarOfTars(path)
    tracemalloc.start()
    seen = sum(1 for _ in source.members())
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 50 * count
    return used

  few, many = peak(60), peak(200)
  # Python's tarfile would keep 7,000 headers more, of over 500 bytes each.
  assert many < few + (1 << 20)


def test_classes_that_took_a_pass_can_be_given(tmp_path, monkeypatch):
  tars = image_archives.class_tars(image_archives.images())
  path = _outer(tmp_path, tars, gzip.compress)
  source = tar_forms.TarOfTars(path)
  assert not source.knows_classes
  found = source.class_names()
  assert found and source.knows_classes
  again = tar_forms.TarOfTars(path)
  again.take_classes(found)
  monkeypatch.setattr(again, "_list_classes", None)
  assert again.class_names() == found
  assert again.fingerprint == source.fingerprint
