"""A source of images in memory, and a builder; prepares as a process too.

python -m tests.datasets.preparation.build_fakes DATA_DIR WORKERS
"""

import collections
import functools
import hashlib
import io
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mixer.datasets.preparation import build
from mixer.datasets.sources.member import Member

CLASSES = ("ant", "bee", "cat")


@functools.cache
def png(number: int, file_format: str = "PNG") -> bytes:
  """A tiny image, another for each number."""
  pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
  encoded = io.BytesIO()
  Image.fromarray(pixels).save(encoded, file_format)
  return encoded.getvalue()


def member(number: int, split: str = "", data: bytes | None = None) -> Member:
  class_name = CLASSES[number % 3]
  return Member(
    f"{class_name}/{number:04}.png",
    class_name,
    split,
    png(number) if data is None else data,
  )


class Fake:
  """A source of given members.

  Attributes:
    read: how many members it has handed out.
  """

  description = "some images"

  def __init__(
    self,
    members: Sequence[Member],
    fingerprint: str = "fake",
    stop_at: int | None = None,
    seconds: float = 0.0,
    by_class: bool = False,
  ):
    """Makes it.

    Args:
      members: in their order.
      fingerprint: of the source.
      stop_at: before which member it breaks off with Ctrl-C.
      seconds: each member takes.
      by_class: whether it knows before how many each class has.
    """
    self._members = list(members)
    self._stop_at = stop_at
    self._seconds = seconds
    self.fingerprint = fingerprint
    self.total_bytes = 1000 * len(self._members)
    self.warnings: list[str] = []
    self.read = 0
    sizes = collections.Counter(m.class_name for m in members if not m.split)
    self.class_sizes = dict(sizes) if by_class else None
    self.splits = tuple({m.split for m in members})

  def class_names(
    self, progress: Callable[[int], None] = lambda done: None
  ) -> tuple[str, ...]:
    return CLASSES

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    for i in range(start, len(self._members)):
      if i == self._stop_at:
        raise KeyboardInterrupt
      time.sleep(self._seconds)
      self.read += 1
      yield self._members[i], 1000 * (i + 1)


class Fakes(build.ImageBuilder):
  """The data set `fakes`."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return self.image_info(CLASSES, description="Noise.", citation="none")


def digests(folder: pathlib.Path) -> dict[str, str]:
  """Of all files of a data set."""
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.iterdir())
  }


# What the process makes: all that there is, to be killed in.
MEMBERS = [
  *(member(i) for i in range(300)),
  Member("ant/none.png", "ant", "", b"", "lies in a hole"),
  member(301, data=png(17)),  # Seen before.
  member(302, data=png(302)[:60]),
  member(303, data=png(303, "JPEG")),
  *(member(i) for i in range(304, 600)),
]
OPTIONS = {
  "hold_out": {"test": 20, "validation": 30},
  "drop_duplicates": True,
  "chunk_images": 50,
}


if __name__ == "__main__":
  Fakes(
    source=Fake(MEMBERS, seconds=0.002),
    options=build.Options(workers=int(sys.argv[2]), **OPTIONS),
    data_dir=sys.argv[1],
  ).prepare(lambda p: print(p.stage, p.images, flush=True))
