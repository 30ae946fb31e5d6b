"""Archives of images, as `mixer prepare --source=FILE.tar` reads them.

Damaged at random: no image is missing without a word (but where zeros look like
an end mark, for which the fixed seed is), and none has other bytes where a
checksum covers them. With headers that are forged, checksum included: nothing
but sentences. Memory is bound to `_MEMORY` beyond what the test itself holds;
an input ends within `_SECONDS`.
"""

import faulthandler
import gzip
import tarfile
import tracemalloc

import numpy as np
import pytest

from mixer.datasets.prepare import request as request_lib
from mixer.datasets.prepare import sets, sources
from mixer.errors import UserError
from tests.datasets import forms
from tests.fuzz import mutations

_INPUTS = 2_000
_MEMORY, _SECONDS = 2**25, 30


def _seeds() -> list[tuple[str, bytes, dict[str, bytes]]]:
  """Set, archive, and the images that are in it by name."""
  inner = forms.images(2)
  deep = {f"{'x' * 150}/{name}": data for name, data in inner.items()}
  processed, named = {}, {}
  for part, split in (("train", "train"), ("val", "validation")):
    for name, data in inner.items():
      processed[f"imagenet21k_{part}/{name}"] = data
      named[f"{split}/{name}"] = data
  return [
    (name, pack(forms.tar(files, format=format)), want)
    for pack in (bytes, gzip.compress)
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    for name, files, want in (
      ("imagenet21k", forms.class_tars(inner), inner),
      ("imagenet21k", deep, inner),
      ("imagenet21k_p", processed, named),
    )
  ]


def _forged(plain: bytes, rng: np.random.Generator) -> bytes:
  """The same archive with fields of headers changed, and their checksums right.

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
    kind = rng.integers(4)
    if kind == 0:
      header[156] = rng.choice(list(b"0123456789SLKxgXDMVNA\0Z"))
      header[482] = rng.integers(3)
    elif kind == 1:
      number = int(rng.choice((-1, 0, 1, 511, 512, 2**20, 2**30, 2**33 - 1)))
      field = b"%011o\0" % number if number >= 0 else b"\xff" * 12
      header[124:136] = field
    elif kind == 2:
      header[124:136] = b"\x80" + rng.bytes(11)
    else:
      header[:] = mutations.mutated(bytes(header), rng)[:512].ljust(512, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[at : at + 512] = header
    if rng.random() < 0.3:  # Of an extended header, or an image.
      text = mutations.mutated(bytes(data[at + 512 : at + 1024]), rng)
      data[at + 512 : at + 1024] = text[:512].ljust(512, b"\0")
  return bytes(data)


def _read(path, name, accept):
  """Name -> bytes of what is read, and whether anything was said."""
  request = request_lib.Request(name, "winter21", [path], None, accept)
  source = sets.open_source(request)
  if name == "imagenet21k_p":  # Whose classes are known, and aren't these.
    source.classes = dict.fromkeys(forms.CLASSES)
  source.find_classes(lambda done: None)
  source.warnings.clear()
  found, told = {}, False
  for member, _ in source.members():
    told |= bool(member.error) or not member.class_name or member.name in found
    if not member.error:
      found[member.name] = member.data
    assert member.name == sources.readable(member.name)
  return found, told or bool(source.warnings)


@pytest.mark.slow
def test_damage_is_told(tmp_path):
  seeds, path = _seeds(), tmp_path / "damaged.tar"
  for name, data, images in seeds:
    path.write_bytes(data)
    assert _read(path, name, False)[0] == images
  rng = np.random.default_rng(16)
  others = [data for _, data, _ in seeds]
  counts = {"refused": 0, "told": 0, "silent": 0}
  tracemalloc.start()
  for i in range(_INPUTS):
    name, seed, images = seeds[i % len(seeds)]
    packed, forged = seed[:1] == b"\x1f", bool(rng.random() < 0.4)
    if forged:
      data = _forged(gzip.decompress(seed) if packed else seed, rng)
      data = gzip.compress(data) if packed else data
    else:
      data = mutations.mutated(seed, rng, others)
    path.write_bytes(data)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    try:
      found, told = _read(path, name, bool(rng.random() < 0.5))
    except UserError as e:
      counts["refused"] += 1
      assert str(path) in str(e), f"input {i}"
    else:
      counts["told" if told else "silent"] += 1
      if not forged and not told:
        assert len(found) >= len(images), f"input {i}"
        assert found == images or not packed, f"input {i}"
    faulthandler.cancel_dump_traceback_later()
    peak = tracemalloc.get_traced_memory()[1] - before
    assert peak < _MEMORY, f"input {i}: {peak:,} bytes"
  tracemalloc.stop()
  assert min(counts.values()) > _INPUTS / 50, counts
