"""The idx files of MNIST, and of the sets that took over its format.

A magic number, the sizes of the axes, and the values: big-endian 32-bit
integers, then bytes (https://yann.lecun.com/exdb/mnist/).
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
CLASSES = {
  "mnist": tuple("0123456789"),
  "fashion_mnist": (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
    "Sneaker", "Bag", "Ankle boot",
  ),
}  # fmt: skip
# The first labels of `train`: the files of both sets have the same names.
_BEGIN = {
  "mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
  "fashion_mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
}
# Split -> how its files' names begin, and its images.
_SPLITS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
_MOST_BYTES = 1 << 30  # The largest, EMNIST's, unpack to 550 MB.


class IdxFiles(sources.Source):
  """Four idx files in a folder; members in their order, train first."""

  def __init__(self, folder: Path, name: str):
    """Reads all files of a set of `CLASSES`, some 55 MB when unpacked."""
    paths, arrays = [], {}
    for split, (begin, _) in _SPLITS.items():
      for kind, axes in (("images", 3), ("labels", 1)):
        paths.append(_find(folder, f"{begin}-{kind}", axes))
        arrays[split, axes] = _read(paths[-1], axes)
    total = sum(array.size for array in arrays.values())
    mark = sources.fingerprint(paths)
    super().__init__(f"idx files ({folder})", mark, total, CLASSES[name])
    self._arrays = arrays
    other = {_BEGIN[n]: n for n in CLASSES if n != name}
    first = other.get(tuple(arrays["train", 1][:10].tolist()))
    for split, (_, size) in _SPLITS.items():
      images, labels = arrays[split, 3], arrays[split, 1]
      shape, last = (len(labels), SIDE, SIDE), labels.max(initial=0)
      if first or images.shape != shape or last >= len(CLASSES[name]):
        raise UserError(
          f"{folder} doesn't hold the files of {name}, but of "
          f"{first or 'another set'}, whose names are the same: the images of "
          f"{split} have the shape {images.shape}, and {len(labels)} labels go "
          f"up to {last}. Name another folder, or prepare it as what it is."
        )
      if len(labels) != size:
        self.warn(
          f"the split {split} has {len(labels):,} images, and {name} {size:,}"
        )

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    names, number, done = list(self.classes or ()), 0, 0
    for split in _SPLITS:
      labels = self._arrays[split, 1]
      for i, pixels in enumerate(self._arrays[split, 3]):
        number += 1
        done += pixels.size + 1
        if number > start:
          png = io.BytesIO()
          Image.fromarray(pixels).save(png, "PNG")
          name, class_name = f"{split}/{i:05}.png", names[labels[i]]
          yield Member(name, class_name, split, png.getvalue()), done


def _find(folder: Path, begin: str, axes: int) -> Path:
  # Some copies have a dot for the second dash; without .gz they are unpacked.
  names = [f"{begin}{c}idx{axes}-ubyte{z}" for c in "-." for z in ("", ".gz")]
  for name in names:
    if (folder / name).is_file():
      return folder / name
  inside = sources.content(folder) if folder.is_dir() else "no files"
  raise UserError(
    f"{folder} has no {names[0]}; it holds {inside}. Expected is a folder with "
    "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same two of t10k "
    "(or with .gz)."
  )


def _read(path: Path, axes: int) -> np.ndarray:
  """The values of an idx file of so many axes, uint8."""
  content = files.read_bytes(path, "an idx file")
  try:
    # By its content: browsers unpack on the way, and keep the name.
    if content.startswith(b"\x1f\x8b"):
      with gzip.open(io.BytesIO(content)) as packed:
        content = packed.read(_MOST_BYTES)
    begin = 4 * (1 + axes)
    magic, *sizes = struct.unpack(f">{1 + axes}I", content[:begin])
    # In Python's integers: a damaged header may claim more than 64 bits hold.
    if magic != 0x800 + axes or len(content) != begin + math.prod(sizes):
      raise ValueError(f"its header, {content[:begin].hex(' ', 4)}, is another")
  except (OSError, EOFError, ValueError, struct.error, zlib.error) as e:
    raise UserError(
      f"{path} is no idx file of {axes} axes, or damaged or cut short ({e}): "
      f"it has {len(content):,} bytes. Get it again."
    ) from e
  return np.frombuffer(content, np.uint8, offset=begin).reshape(sizes)
