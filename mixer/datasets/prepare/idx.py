"""MNIST's own files, and those of the sets that took over its format.

An idx file is a magic number, the sizes of its axes, and the values: big-endian
32-bit integers, then bytes (https://yann.lecun.com/exdb/mnist/).
"""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mixer import files
from mixer.datasets.prepare import sources
from mixer.datasets.prepare.sources import Member
from mixer.errors import UserError

SIDE = 28
SIZES = {"train": 60_000, "test": 10_000}
CLASSES = {
  "mnist": tuple("0123456789"),
  "fashion_mnist": (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
    "Sneaker", "Bag", "Ankle boot",
  ),
}  # fmt: skip
# The first labels of `train`: the files of both sets have the same names.
_BEGIN = {
  "mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4],
  "fashion_mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5],
}
# Split -> how its files' names begin.
_FILES = {"train": "train", "test": "t10k"}
# The largest, EMNIST's, unpack to 550 MB.
_MOST_BYTES = 1 << 30
# Some copies have a dot for the second dash; without .gz they are unpacked.
_FORMS = ("{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte")
_EXPECTED = (
  "Expected is a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, "
  "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (or the same with .gz)"
)


class IdxFiles(sources.Source):
  """Four idx files in a folder; members in their order, train first."""

  def __init__(self, folder: Path, name: str):
    """Reads all files of a set of `CLASSES`, some 55 MB when unpacked."""
    if not folder.is_dir():
      what = "is no folder" if folder.exists() else "does not exist"
      raise UserError(f"the source {folder} {what}. {_EXPECTED}.")
    paths = {
      (split, axes): _find(folder, begin, axes)
      for split, begin in _FILES.items()
      for axes in (3, 1)
    }
    arrays = {key: _read(path, key[1]) for key, path in paths.items()}
    super().__init__(
      description=f"idx files ({folder})",
      fingerprint=sources.fingerprint(paths.values()),
      total_bytes=sum(arrays[split, 3].size for split in _FILES),
      classes=CLASSES[name],
    )
    self._arrays = arrays
    for split, size in SIZES.items():
      images, labels = arrays[split, 3], arrays[split, 1]
      shape = (len(labels), SIDE, SIDE)
      if images.shape != shape or labels.max(initial=0) >= len(CLASSES[name]):
        raise UserError(
          f"{paths[split, 3]} holds images of shape {images.shape}, where "
          f"{shape} is expected by the labels beside it, which go up to "
          f"{labels.max(initial=0)}; take both from the same copy of {name}."
        )
      if len(labels) != size:
        self.warn(
          f"the split {split} has {len(labels):,} images, and {name} {size:,}"
        )
    first = arrays["train", 1][:10].tolist()
    for other, begin in _BEGIN.items():
      if other != name and first == begin:
        raise UserError(
          f"{folder} holds the files of {other}, whose names are the same; "
          f"prepare it as {other}, or name a folder with those of {name}."
        )

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    names, number, done = list(self.classes or ()), 0, 0
    for split in _FILES:
      labels = self._arrays[split, 1]
      for i, pixels in enumerate(self._arrays[split, 3]):
        number += 1
        done += pixels.size
        if number > start:
          png = io.BytesIO()
          Image.fromarray(pixels).save(png, "PNG")
          name, class_name = f"{split}/{i:05}.png", names[labels[i]]
          yield Member(name, class_name, split, png.getvalue()), done


def _find(folder: Path, begin: str, axes: int) -> Path:
  kind = "images" if axes == 3 else "labels"
  names = [form.format(begin, kind, axes) for form in _FORMS]
  for name in names:
    for path in (folder / name, folder / f"{name}.gz"):
      if path.is_file():
        return path
  raise UserError(
    f"{folder} has no {names[0]}; it holds {sources.content(folder)}. "
    f"{_EXPECTED}."
  )


def _read(path: Path, axes: int) -> np.ndarray:
  """The values of an idx file of so many axes, uint8."""
  content = files.read_bytes(path, "an idx file")
  try:
    # By its content: browsers unpack on the way, and keep the name.
    if content.startswith(b"\x1f\x8b"):
      with gzip.open(io.BytesIO(content)) as packed:
        content = packed.read(_MOST_BYTES)
  except (OSError, EOFError, zlib.error) as e:
    raise UserError(
      f"{path} can't be read: {e}. Get it again; it may be cut short."
    ) from e
  begin = 4 * (1 + axes)
  magic, *sizes = struct.unpack(f">{1 + axes}I", content[:begin].ljust(begin))
  # In Python's integers: a damaged header may claim more than 64 bits hold.
  if magic != 0x800 + axes or len(content) != begin + math.prod(sizes):
    raise UserError(
      f"{path} is no idx file of {axes} axes, or cut short: its header "
      f"({content[:begin].hex(' ', 4)}) doesn't fit its {len(content):,} "
      "bytes. Get it again."
    )
  return np.frombuffer(content, np.uint8, offset=begin).reshape(sizes)
