"""Archives of images, as `mixer prepare --source=FILE.tar` reads them.

Damaged at random: no image is missing without a word (but where zeros look like
an end mark, for which the fixed seed is), and none has other bytes where a
checksum covers them. With headers that are forged, checksum included:
nothing but sentences. Memory is bound to `_MEMORY` beyond what the test itself
holds; an input ends within `_SECONDS`.
"""

import bz2
import faulthandler
import gzip
import lzma
import tarfile
import tracemalloc

import numpy as np
import pytest

from mixer.datasets.sources import detect, file_names, tar_source
from mixer.errors import UserError
from tests.datasets.sources import image_archives
from tests.fuzz import mutations

_INPUTS = 10_000
# What xz may ask for is in it, and is not traced.
_MEMORY, _SECONDS = 2**25, 30


def _images() -> dict[str, bytes]:
  """Name -> bytes, small enough that headers are a good part of the whole."""
  rng = np.random.default_rng(0)
  return {
    f"imagenet21k_{split}/{wnid}/{wnid}_{k}.JPEG": rng.bytes(200 + 99 * k)
    for split in ("train", "val")
    for wnid in image_archives.CLASSES[:2]
    for k in range(3)
  }


def _seeds() -> list[tuple[detect.Kind, bytes, dict[str, bytes]]]:
  """Kind of set, archive, and the images that are in it by name."""
  seeds = []
  inner = {
    name: data
    for name, data in image_archives.images().items()
    if not name.endswith("_2.JPEG")
  }
  tars = image_archives.class_tars(inner)
  flat = {f"{n.split('/')[0]}/{n}": data for n, data in inner.items()}
  processed = _images()
  named = {
    ("train/" if "_train" in n else "validation/") + n.partition("/")[2]: data
    for n, data in processed.items()
  }
  joined = b"".join(image_archives.tar({n: t}) for n, t in tars.items())
  for pack in (bytes, gzip.compress, bz2.compress, lzma.compress):
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
      whole = image_archives.tar(tars, format=format)
      seeds.append(("imagenet21k", pack(whole), inner))
      whole = image_archives.tar(processed, format=format)
      seeds.append(("imagenet21k_p", pack(whole), named))
    seeds.append(("imagenet21k", pack(joined), inner))
    deep = {f"{'x' * 150}/{n}": data for n, data in flat.items()}
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
      whole = image_archives.tar(deep, format=format)
      seeds.append(("imagenet21k", pack(whole), inner))
  return seeds


def _forged(plain: bytes, rng: np.random.Generator) -> bytes:
  """The same archive with fields of a header changed, and its checksum right.

  Also what `tar --sparse`, volumes and extended headers have.
  """
  data = bytearray(plain)
  starts = [
    at
    for at in range(0, len(data) - 512, 512)
    if data[at + 257 : at + 262] == b"ustar"
  ]
  for at in rng.choice(starts, min(2, len(starts)), replace=False):
    header = data[at : at + 512]
    kind = rng.integers(5)
    if kind == 0:
      header[156] = rng.choice(list(b"0123456789SLKxgXDMVNA\0Z"))
      header[482] = rng.integers(3)
    elif kind == 1:
      number = int(rng.choice((-1, 0, 1, 511, 512, 2**20, 2**30, 2**33 - 1)))
      field = b"%011o\0" % number if number >= 0 else b"\xff" * 12
      header[124:136] = field
    elif kind == 2:
      header[124:136] = b"\x80" + rng.bytes(11)
    elif kind == 3:
      name = mutations.mutated(bytes(header[:100]), rng)
      header[:100] = name[:100].ljust(100, b"\0")
    else:
      header[:] = mutations.mutated(bytes(header), rng)[:512].ljust(512, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[at : at + 512] = header
    if rng.random() < 0.3:  # Of an extended header, or an image.
      end = at + 1024
      text = mutations.mutated(bytes(data[at + 512 : end]), rng)
      data[at + 512 : end] = text[:512].ljust(512, b"\0")
  return bytes(data)


def _read(path, kind, accept_truncated):
  """Name -> bytes of what is read, and whether anything was said."""
  source = detect.detect([path], kind, tolerate_truncation=accept_truncated)
  assert isinstance(source, tar_source.TarSource)
  source.class_names()
  found, told = {}, False
  for member, _ in source.members():
    told = told or bool(member.error) or member.name in found
    if not member.error:
      found[member.name] = member.data
    member.name.encode()
    assert member.name == file_names.readable(member.name)
  return found, told or bool(source.warnings)


@pytest.mark.slow
def test_damage_is_told(tmp_path):
  seeds = _seeds()
  for kind, data, images in seeds:
    (tmp_path / "whole.tar").write_bytes(data)
    found, _ = _read(tmp_path / "whole.tar", kind, False)
    assert found == images
  rng = np.random.default_rng(15)
  path = tmp_path / "damaged.tar"
  others = [data for _, data, _ in seeds]
  counts = {"refused": 0, "told": 0, "silent": 0}
  tracemalloc.start()
  try:
    for i in range(_INPUTS):
      kind, seed, images = seeds[i % len(seeds)]
      unpack = {b"\x1f": gzip, b"B": bz2, b"\xfd": lzma}.get(seed[:1])
      forged = bool(rng.random() < 0.4)
      if forged:
        plain = unpack.decompress(seed) if unpack else seed
        data = _forged(plain, rng)
        data = unpack.compress(data) if unpack else data
      else:
        data = mutations.mutated(seed, rng, others)
      path.write_bytes(data)
      before = tracemalloc.get_traced_memory()[0]
      tracemalloc.reset_peak()
      faulthandler.dump_traceback_later(_SECONDS, exit=True)
      try:
        found, told = _read(path, kind, bool(rng.random() < 0.5))
      except UserError as e:
        counts["refused"] += 1
        assert str(path) in str(e), f"input {i}"
      else:
        counts["told" if told else "silent"] += 1
        if not forged and not told:
          assert len(found) >= len(images), f"input {i}"
          if unpack:
            assert found == images, f"input {i}"
      finally:
        faulthandler.cancel_dump_traceback_later()
      peak = tracemalloc.get_traced_memory()[1] - before
      assert peak < _MEMORY, f"input {i}: {peak:,} bytes"
  finally:
    tracemalloc.stop()
  assert min(counts.values()) > _INPUTS / 50, counts
