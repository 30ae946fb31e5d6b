"""MNIST's own files, and those of the sets that took over its format.

An idx file is a magic number, the sizes of its axes, and the values: big-endian
32-bit integers, then bytes (https://yann.lecun.com/exdb/mnist/).
"""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mixer import files
from mixer.datasets.sources import file_names, folder_walk
from mixer.datasets.sources.member import Member
from mixer.errors import UserError

SIDE = 28
# Split -> how its files' names begin.
SPLITS = {"train": "train", "test": "t10k"}
# Unsigned bytes in three axes, and in one.
_IMAGES, _LABELS = 0x803, 0x801
# The largest, EMNIST's, unpack to 550 MB.
_MOST_BYTES = 1 << 30
# Some copies have a dot for the second dash; without .gz they are unpacked.
_FORMS = ("{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte")


class IdxFiles:
  """Four idx files in a folder; see `member.Source`.

  Members come in the files' order, train first, and their bytes are PNGs.

  Attributes:
    description: see there.
    fingerprint: see there.
    total_bytes: of the pixels.
    warnings: see there.
    labels: split -> uint8 [N].
  """

  def __init__(self, folder: Path, class_names: Sequence[str]):
    """Reads all of the files, some 55 MB when unpacked.

    Args:
      folder: where they lie, packed by gzip or not.
      class_names: in the order of the labels.

    Raises:
      UserError: a file is missing, cut short or another one; images and labels
        aren't as many.
    """
    if not folder.is_dir():
      what = "is no folder" if folder.exists() else "does not exist"
      raise UserError(f"the source {folder} {what}. {expected()}.")
    paths = {
      (split, kind): _find(folder, begin, kind)
      for split, begin in SPLITS.items()
      for kind in ("images", "labels")
    }
    self.description = f"idx files ({folder})"
    self.fingerprint = file_names.fingerprint(paths.values())
    self.warnings: list[str] = []
    self.labels: dict[str, np.ndarray] = {}
    self._images: dict[str, np.ndarray] = {}
    self._classes = tuple(class_names)
    for split in SPLITS:
      images = _read(paths[split, "images"], _IMAGES)
      labels = _read(paths[split, "labels"], _LABELS)
      self._check(images, labels, paths[split, "images"])
      self._images[split], self.labels[split] = images, labels
    self.total_bytes = sum(images.size for images in self._images.values())

  def _check(self, images: np.ndarray, labels: np.ndarray, path: Path) -> None:
    if images.shape[1:] != (SIDE, SIDE):
      height, width = images.shape[1:]
      raise UserError(
        f"{path} holds images of {height} x {width} pixels, and {SIDE} x "
        f"{SIDE} are expected; it is of another set."
      )
    if len(images) != len(labels):
      raise UserError(
        f"{path} holds {len(images):,} images, and the file of labels beside "
        f"it {len(labels):,}; take both from the same copy of the set."
      )
    if len(labels) and labels.max() >= len(self._classes):
      raise UserError(
        f"the labels beside {path} go up to {labels.max()}, and the set has "
        f"{len(self._classes)} classes; they are of another set."
      )

  def class_names(
    self, progress: Callable[[int], None] = lambda done: None
  ) -> tuple[str, ...]:
    del progress  # They are known.
    return self._classes

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    number = done = 0
    for split, images in self._images.items():
      for i, pixels in enumerate(images):
        number += 1
        done += pixels.size
        if number > start:
          yield self._member(split, i, pixels), done

  def _member(self, split: str, i: int, pixels: np.ndarray) -> Member:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    class_name = self._classes[self.labels[split][i]]
    return Member(f"{split}/{i:05}.png", class_name, split, encoded.getvalue())


def expected() -> str:
  """What a folder has to hold, for a sentence."""
  names = [
    _FORMS[0].format(begin, kind, axes)
    for begin in SPLITS.values()
    for kind, axes in (("images", 3), ("labels", 1))
  ]
  return f"Expected is a folder with {', '.join(names)} (or the same with .gz)"


def _find(folder: Path, begin: str, kind: str) -> Path:
  axes = 3 if kind == "images" else 1
  for form in _FORMS:
    for suffix in ("", ".gz"):
      path = folder / (form.format(begin, kind, axes) + suffix)
      if path.is_file():
        return path
  raise UserError(
    f"{folder} has no {_FORMS[0].format(begin, kind, axes)}; it holds "
    f"{folder_walk.content(folder)}. {expected()}."
  )


def _read(path: Path, magic: int) -> np.ndarray:
  """The values of an idx file, uint8 with as many axes as its magic says."""
  content = files.read_bytes(path, "an idx file")
  try:
    # By its content: browsers unpack on the way, and keep the name.
    if content.startswith(b"\x1f\x8b"):
      with gzip.open(io.BytesIO(content)) as packed:
        content = packed.read(_MOST_BYTES + 1)
  except (OSError, EOFError, zlib.error) as e:
    raise UserError(
      f"{path} can't be read: {e}. Get it again; it may be cut short."
    ) from e
  if len(content) > _MOST_BYTES:
    raise UserError(
      f"{path} unpacks to more than {_MOST_BYTES:,} bytes, which no such set "
      "has. Get it again."
    )
  axes = magic & 0xFF
  begin = 4 * (1 + axes)
  found = struct.unpack(">I", content[:4])[0] if len(content) >= 4 else -1
  if found != magic or len(content) < begin:
    raise UserError(
      f"{path} is no idx file of {'images' if axes == 3 else 'labels'}: it "
      f"begins with {content[:4].hex(' ') or 'nothing'}, where "
      f"{struct.pack('>I', magic).hex(' ')} is expected. Get it again."
    )
  sizes = struct.unpack(f">{axes}I", content[4:begin])
  # In Python's integers: a damaged header may claim more than 64 bits hold.
  wanted = begin + math.prod(sizes)
  if len(content) != wanted:
    more = "cut short" if len(content) < wanted else "longer than it says"
    raise UserError(
      f"{path} is {more}: by its header it has {wanted:,} bytes, and there are "
      f"{len(content):,}. Get it again."
    )
  return np.frombuffer(content, np.uint8, offset=begin).reshape(sizes)
