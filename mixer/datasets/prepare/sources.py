"""Where the images of a data set come from: members of a source, in order."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mixer import files, image_files, images
from mixer.errors import UserError

_WNID = re.compile(r"n\d{8}")
# Control characters, and those at which lines of a list of classes would end.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Names of folders, in small letters -> split.
SPLITS = {
  **dict.fromkeys(("train", "training", "imagenet21k_train"), "train"),
  **dict.fromkeys(("test", "testing"), "test"),
  **dict.fromkeys(("val", "valid", "validation"), "validation"),
  "imagenet21k_val": "validation",
}


class Member(NamedTuple):
  """One image file of a source."""

  # Unique in the source, and the same for every form of it, such as
  # "n01440764/n01440764_10026.JPEG", whether in a tar of tars or in folders.
  name: str
  class_name: str
  split: str = ""  # As the source says; "" if it is to be drawn.
  data: bytes = b""
  error: str = ""  # Why `data` can't be read whole, "" if it can.
  # Further features of its record, and their numbers.
  more: tuple[tuple[str, tuple[int, ...]], ...] = ()

  def read(self, data: Callable[[], bytes]) -> "Member":
    """The member with its bytes, or why there are none."""
    try:
      return self if self.error else self._replace(data=data())
    except images.ImageError as e:
      return self._replace(error=f"the file can't be read: {e}")


@dataclasses.dataclass
class Source:
  """A set of images in some form."""

  description: str  # For a person: "folders of images (DIR)".
  # Tells the source from another one, or the same path with other content.
  fingerprint: str
  # Yields all members, always in the same order, with the work done so far of
  # `total`. Those before the number given come without their data. What is no
  # image by its name is no member.
  read: Callable[[int], Iterator[tuple[Member, int]]]
  total: int = 0  # 0 if unknown, with the number of members as work.
  total_bytes: int = 0  # Of the images; 0 if unknown.
  classes: Collection[str] | None = None  # In the order of labels.
  # Class -> files whose split is to be drawn, by class; None: drawn by hash.
  class_sizes: dict[str, int] | None = None
  has_splits: bool = False  # It says the split of every image.
  # Suffix -> files that are no image by their names, found by `read`.
  passed_over: Counter[str] = dataclasses.field(default_factory=Counter)
  warnings: list[str] = dataclasses.field(default_factory=list)

  def warn(self, what: str, names: Sequence[object]) -> None:
    """Warns of some names, if there are any."""
    if names:
      self.warnings.append(f"{len(names):,} {what}: {some(names)}")

  def find_classes(self, progress: Callable[[int], None]) -> None:
    """Reads the source, if that is needed, to know its classes."""
    if self.classes is None:
      found = set()
      for member, done in self.read(1 << 62):
        found.add(member.class_name)
        progress(done)
      self.classes = in_order(found)
      self.passed_over.clear()

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    """Members from number `start` on; at the end, warns of what is missing."""
    found = set()
    for number, (member, done) in enumerate(self.read(start)):
      found.add(member.class_name)
      if number >= start:
        yield member, done
    lacking = [name for name in self.classes or () if name not in found]
    self.warn("classes have no image in the source", lacking)
    others = [f"{k} ({n:,})" for k, n in sorted(self.passed_over.items())]
    self.warn("kinds of files are left out, no images by their names", others)


def listed(
  what: str,
  images_of: Iterable[tuple[str, str, str, str]],
  classes: Collection[str] | None,
  seed: int,
  *more: object,
) -> Source:
  """Image files that are all listed at once: name, class, split, path of each.

  They come in the order of a hash of their names and the seed, so that any part
  has every class in it. `what` describes them.
  """
  found: list[tuple[bytes, Member, str]] = []
  marks, total_bytes = hashlib.blake2b(), 0
  for name, label, split, path in images_of:
    name, size, time = readable(name), 0, 0
    with contextlib.suppress(OSError):  # A broken link, or nothing.
      size, time = os.stat(path).st_size, os.stat(path).st_mtime_ns
    marks.update(f"{name}\0{size}\0{time}\0".encode())
    chance = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8)
    found.append((chance.digest(), Member(name, label, split), path))
    total_bytes += size
  found.sort()
  if not found:
    raise UserError(
      f"there is no image in {what}; files of images end in .jpg, .png, .webp "
      "and the like, or have no suffix."
    )
  classes = classes or in_order({member.class_name for _, member, _ in found})
  sizes = dict.fromkeys(classes, 0)
  for _, member, _ in found:
    if member.class_name in sizes:
      sizes[member.class_name] += not member.split

  def read(start: int) -> Iterator[tuple[Member, int]]:
    for number, (_, member, path) in enumerate(found):
      if number >= start:
        member = member.read(functools.partial(images.read, path))
      yield member, number

  mark = fingerprint([], marks.hexdigest(), *classes, *more)
  return Source(what, mark, read, len(found), total_bytes, classes, sizes)


def in_order(names: Collection[str]) -> list[str]:
  """Classes in the order of their labels: of their numbers, or by name."""
  numbers = all(name.isdecimal() for name in names)
  return sorted({*names} - {""}, key=int if numbers else str)


def own_folders(
  root: Path, classes: Collection[str] | None, seed: int
) -> Source:
  """Any images in one folder a class; `listed`."""
  splits, passed_over = _splits(root), Counter[str]()
  folders = [
    # Lists of classes are read line by line, without outer spaces.
    (split, readable(folder.name).strip() or "_", folder)
    for split, parent in splits.items()
    for folder in inside(parent)[0]
  ]
  found = (
    (f"{folder.relative_to(root).as_posix()}/{way}", label, split, entry.path)
    for split, label, folder in folders
    for way, entry in image_files.find(str(folder), passed_over)
  )
  classes = classes or sorted({label for _, label, _ in folders})
  where = str(root.resolve())
  source = listed(f"folders of images ({root})", found, classes, seed, where)
  source.passed_over = passed_over
  parents = dict.fromkeys([root, *splits.values()])
  stray = [path for parent in parents for path in inside(parent)[1]]
  stray = [path.name for path in stray if image_files.is_image(path.name)]
  source.warn("images are in no folder of a class and are left out", stray)
  return source


def _splits(root: Path) -> dict[str, Path]:
  """Split, or "" alone -> its folder, of images in one folder a class."""
  if not root.is_dir():
    raise UserError(
      f"{root} is no folder; unpack archives first, but for WebDataset shards "
      "(NAME-0000.tar). Other forms are .parquet, and a table, .csv or .tsv."
    )
  folders = inside(root)[0]
  named = [f for f in folders if f.name.lower() in SPLITS]
  others = [f for f in folders if f not in named]
  if not named and others:
    return {"": root}
  splits = {SPLITS[folder.name.lower()]: folder for folder in named}
  train = splits.get("train")
  odd = any(next(image_files.find(str(folder)), None) for folder in others)
  if odd or len(splits) < len(named) or not (train and inside(train)[0]):
    raise UserError(
      f"{root} has no folders of classes, or two of one split, or classes "
      f"beside splits; it holds {some(sorted(os.listdir(root)))}. Expected are "
      "DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/* alone."
    )
  # `train` alone is divided like a set without splits.
  return splits if len(splits) > 1 else {"": train}


def inside(folder: Path) -> tuple[list[Path], list[Path]]:
  """The folders and the other files in a folder that aren't hidden, sorted."""
  paths = [p for p in folder.iterdir() if not image_files.is_hidden(p.name)]
  folders = sorted(path for path in paths if path.is_dir())
  return folders, sorted({*paths} - {*folders})


def some(names: Sequence[object]) -> str:
  """Names for a sentence, the first of them if there are many."""
  return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")


def is_wnid(name: str) -> bool:
  """Whether it is a WordNet id, such as "n01440764"."""
  return _WNID.fullmatch(name) is not None


def wnid_of_tar(name: str) -> str:
  """The class of "n01440764.tar"; "" for other names."""
  wnid = name.removesuffix(".tar")
  return wnid if wnid != name and is_wnid(wnid) else ""


def readable(name: str) -> str:
  r"""The name as it goes into data sets and lists: printable UTF-8.

  In Unicode's composed form, as macOS may hand out another one than Linux;
  bytes that aren't UTF-8 become escapes ("caf\xe9"), control characters "?".
  """
  if name.isascii() and name.isprintable():
    return name
  valid = os.fsencode(name).decode("utf-8", "backslashreplace")
  return unicodedata.normalize("NFC", _CONTROL.sub("?", valid))


def fingerprint(paths: Iterable[Path], *more: object) -> str:
  """Tells files by place, size and time of change, and `more` by its repr."""
  stats = [(str(p.resolve()), p.stat()) for p in paths]
  marks = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
  return hashlib.blake2b(repr((marks, more)).encode()).hexdigest()[:32]


def read_classes(path: Path, wnids: bool) -> tuple[str, ...]:
  """Reads a list of classes, one a line; empty lines and "# ..." don't count.

  Of `wnids` what follows in the line is ignored.
  """
  data = files.read_bytes(path, "a list of classes")
  lines = data.decode("utf-8-sig", "replace").splitlines()
  lines = [s for line in lines if (s := line.strip()) and s[0] != "#"]
  names = [re.split(r"[\s,;]", s)[0] if wnids else readable(s) for s in lines]
  counts = Counter(names)
  wrong = [n for n in names if counts[n] > 1 or (wnids and not is_wnid(n))]
  if wrong or not names:
    what = f"has {wrong[0][:60]!r}" if wrong else "is empty"
    raise UserError(
      f"the list of classes {path} {what}; give every class one line"
      f"{', with its WordNet id first' * wnids}."
    )
  return tuple(names)
