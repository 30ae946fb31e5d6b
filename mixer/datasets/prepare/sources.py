"""Where the images of a data set come from: members of a source, in order."""

import dataclasses
import hashlib
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mixer import image_files, images
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
_EMPTY = "class folders hold no image and are kept as classes"
_EXPECTED = (
  "Expected is a folder DIR with DIR/train/CLASS/* and DIR/test/CLASS/* or "
  "DIR/val/CLASS/*, or with DIR/CLASS/* alone"
)


class Member(NamedTuple):
  """One image file of a source."""

  # Unique in the source, and the same for every form of it, such as
  # "n01440764/n01440764_10026.JPEG", whether in a tar of tars or in folders.
  name: str
  class_name: str
  split: str = ""  # If the source says so; "" if it is to be drawn.
  data: bytes = b""
  error: str = ""  # Why `data` can't be read whole, "" if it can.
  # Further features of its record, and their numbers.
  more: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclasses.dataclass
class Source:
  """A set of images in some form; subclasses read it."""

  description: str  # For a person: "a tar of one tar a class (/data/x.tar)".
  # Tells the source from another one, or the same path with other content.
  fingerprint: str
  total_bytes: int  # To be read in all; may be an estimate.
  # All classes, in the order of labels; None if `list_classes` has to tell.
  classes: Collection[str] | None
  has_splits: bool = False  # Its folders name the splits of images.
  # Class -> files for which the folders say no split; None if unknown.
  class_sizes: dict[str, int] | None = None
  warnings: list[str] = dataclasses.field(default_factory=list)

  def __post_init__(self):
    if self.classes is not None:  # For quick look-ups, in their order.
      self.classes = dict.fromkeys(self.classes)

  def warn(self, *sentences: str) -> None:
    self.warnings += [s for s in sentences if s not in self.warnings]

  def _warn_of(self, what: str, names: Sequence[object]) -> None:
    if names:
      self.warn(f"{len(names):,} {what}: {some(names)}")

  def warn_of_rest(
    self, found: Collection[str], passed_over: Counter[str]
  ) -> None:
    """Warns of listed classes that aren't `found`, and of odd files."""
    lacking = [name for name in self.classes or () if name not in found]
    self._warn_of("classes have no image in the source", lacking)
    self._warn_of(
      "kinds of files are no images by their names and are left out",
      [f"{suffix} ({n:,})" for suffix, n in sorted(passed_over.items())],
    )

  def list_classes(self, progress: Callable[[int], None]) -> Collection[str]:
    """Reads the source to find its classes; `progress` takes bytes."""
    raise NotImplementedError

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    """Members from number `start` on, with the bytes of disk read so far.

    The order is the same each time. What isn't an image by its name alone
    (folders, hidden files, ".txt") is no member and isn't counted.
    """
    raise NotImplementedError

  def member_of_file(
    self, name: str, class_name: str, split: str, path: str
  ) -> Member:
    """The member that is a file, with its bytes or why there are none."""
    member = Member(name, class_name, split)
    if class_name not in (self.classes or ()):
      return member._replace(error=no_class(class_name, self.classes or ()))
    try:
      return member._replace(data=images.read(path))
    except images.ImageError as e:
      return member._replace(error=f"the file can't be read: {e}")


class ClassFolders(Source):
  """Any images in one folder a class.

  They come in the order of a hash of their names and the seed, so that any part
  has every class in it. All are listed at once: some 300 bytes of memory each.
  """

  def __init__(
    self,
    root: Path,
    splits: dict[str, Path],
    classes: Collection[str] | None,
    seed: int,
  ):
    """Lists the images.

    Args:
      root: from which members are named.
      splits: a split's name, or "" alone, -> folder of its classes, below root.
      classes: all there can be, or None for those that the source has.
      seed: of the order.
    """
    self._root = root
    self._paths: dict[str, str] = {}  # Of names that aren't the path.
    # Key of the order, name, split, class, bytes.
    self._files: list[tuple[bytes, str, str, str, int]] = []
    per_class, without_split = Counter[str](), Counter[str]()
    passed_over, hidden, marks = Counter[str](), list[str](), 0
    nested: dict[str, set[str]] = {}  # Class -> folders in it with images.
    for split, parent in splits.items():
      for label, folder in _class_folders(parent).items():
        per_class[label] += 0
        base = folder.relative_to(root).as_posix()
        for way, entry in image_files.find(str(folder), passed_over, hidden):
          path = f"{base}/{way}"
          if (name := readable(path)) != path:
            self._paths[name] = path
          size, time = _size_and_time(entry)
          # Summed up, so that the order doesn't matter.
          marks += int.from_bytes(_hash(f"0:{name}\0{size}\0{time}", 16), "big")
          key = _hash(f"{seed}:{name}", 8)
          self._files.append((key, name, split, label, size))
          per_class[label] += 1
          without_split[label] += not split
          nested.setdefault(label, set()).add(way.rpartition("/")[0])
    self._files.sort()
    if not self._files:
      raise UserError(
        f"there is no image in any class folder of {root}; files of images end "
        "in .jpg, .png, .webp and the like, or have no suffix."
      )
    for (_, name, *_), (_, other, *_) in itertools.pairwise(self._files):
      if name == other:
        raise _alike(root, name)
    names = sorted(per_class) if classes is None else classes
    super().__init__(
      f"folders of images ({root})",
      fingerprint([], str(root.resolve()), marks, list(classes or ())),
      total_bytes=sum(file[-1] for file in self._files),
      classes=names,
      has_splits="" not in splits,
      class_sizes={name: without_split[name] for name in names},
    )
    parents = [*dict.fromkeys([root, *splits.values()])]
    for parent in parents:
      with os.scandir(parent) as entries:
        hidden += image_files.hidden_in(entries)
    odds = {
      _EMPTY: [c for c, files in sorted(per_class.items()) if not files],
      "classes have images in folders within their own, and take them "
      "together": [
        f"{c} ({some(sorted(filter(None, below)))})"
        for c, below in nested.items()
        if len(below) > 1
      ],
      "images are in no folder of a class and are left out": [
        path.relative_to(root)
        for parent in parents
        for path in files_in(parent)
        if image_files.is_image(path.name)
      ],
      "hidden folders or images are left out": [
        readable(os.path.relpath(p, root)) for p in sorted({*hidden})
      ],
      "class is all there is; if its folders are the classes, name it as the "
      "source": [*names] if len(names) == 1 else [],
    }
    for what, odd in odds.items():
      self._warn_of(what, odd)
    self.warn_of_rest(per_class, passed_over)

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    done = sum(file[-1] for file in self._files[:start])
    for _, name, split, label, size in self._files[start:]:
      done += size
      path = os.path.join(self._root, self._paths.get(name, name))
      yield self.member_of_file(name, label, split, path), done


class LazyFolders(Source):
  """Folders of one class each that are listed when their turn comes.

  ImageNet-21k is 14 million files. The total of bytes is an estimate from some
  of the folders, and the bytes done follow the number of files.
  """

  def __init__(
    self,
    folders: Sequence[tuple[str, str, str, Path]],
    where: str,
    classes: Collection[str] | None,
  ):
    """Takes of each folder: split, class, begin of its members' names, path.

    `where` says where they are; `classes` are as in `ClassFolders`.
    """
    self._folders = folders
    found = {class_name for _, class_name, _, _ in folders}
    sample = folders[:: max(1, len(folders) // 16)]
    measured = sum(
      _size_and_time(entry)[0]
      for *_, path in sample
      for _, entry in image_files.find(str(path))
    )
    super().__init__(
      f"{len(folders):,} folders, one a class ({where})",
      fingerprint([path for *_, path in folders], list(classes or ())),
      measured * len(folders) // max(1, len(sample)),
      sorted(found) if classes is None else classes,
    )

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    share = self.total_bytes / max(1, len(self._folders))
    passed_over, lacking = Counter[str](), []
    for i, (split, class_name, prefix, folder) in enumerate(self._folders):
      found = list(image_files.find(str(folder), passed_over))
      lacking += [] if found else [str(folder)]
      for k, (way, entry) in enumerate(found[start:], start + 1):
        name = f"{prefix}/{readable(way)}"
        member = self.member_of_file(name, class_name, split, entry.path)
        yield member, int(share * (i + k / len(found)))
      start = max(0, start - len(found))
    self._warn_of(_EMPTY, lacking)
    self.warn_of_rest({folder[1] for folder in self._folders}, passed_over)


def synset_folders(
  splits: dict[str, Path], classes: Collection[str] | None
) -> LazyFolders:
  """Folders named by WordNet ids; a split, or "" alone, -> where they are."""
  folders = [
    (split, path.name, f"{split}/{path.name}".lstrip("/"), path)
    for split, parent in splits.items()
    for path in subfolders(parent)
    if is_wnid(path.name)
  ]
  return LazyFolders(folders, ", ".join(map(str, splits.values())), classes)


def _class_folders(parent: Path) -> dict[str, Path]:
  """Class -> its folder."""
  folders: dict[str, Path] = {}
  for folder in subfolders(parent):
    # Lists of classes are read line by line, without outer spaces.
    label = readable(folder.name).strip() or "_"
    if label in folders:
      raise _alike(parent, label)
    folders[label] = folder
  return folders


def _alike(folder: Path, name: str) -> UserError:
  return UserError(
    f"two names in {folder} can't be told apart: both read {name!r} (they have "
    "other spaces or Unicode characters); rename one."
  )


def user_splits(root: Path) -> dict[str, Path]:
  """Split, or "" alone -> its folder, of images in one folder a class."""
  if not root.is_dir():
    raise UserError(f"{root} is no folder; unpack archives first. {_EXPECTED}.")
  folders = subfolders(root)
  named = [f for f in folders if f.name.lower() in SPLITS]
  others = [f for f in folders if f not in named]
  # Classes may be called "train" and the like (a railway's).
  if others and not any(map(subfolders, named)):
    return {"": root}
  splits = {SPLITS[folder.name.lower()]: folder for folder in named}
  train = splits.get("train")
  odd = [f for f in others if next(image_files.find(str(f)), None)]
  if odd or train is None or len(splits) < len(named) or not subfolders(train):
    where = (root if odd else train) or root
    raise UserError(
      f"{where} has no folders of classes, or two of one split, or classes "
      f"beside splits; it holds {content(where)}. {_EXPECTED}."
    )
  # With nothing beside it, it is to be split like a set without splits.
  return splits if len(splits) > 1 else {"": train}


def subfolders(parent: Path) -> list[Path]:
  """The folders in a folder that aren't hidden, sorted."""
  return [path for path in _inside(parent) if path.is_dir()]


def files_in(parent: Path) -> list[Path]:
  """What isn't a folder in a folder and isn't hidden, sorted."""
  return [path for path in _inside(parent) if not path.is_dir()]


def _inside(parent: Path) -> list[Path]:
  try:
    names = sorted(os.listdir(parent))
  except OSError as e:
    raise UserError(f"{parent} can't be listed: {e.strerror}.") from e
  return [parent / name for name in names if not image_files.is_hidden(name)]


def content(folder: Path) -> str:
  """The names in a folder, for a sentence."""
  return some(sorted(os.listdir(folder))) or "nothing"


def some(names: Sequence[object]) -> str:
  """Names for a sentence, the first of them if there are many."""
  return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
  """A file's bytes and its time of change in ns; zeros for a broken link."""
  try:
    info = entry.stat()
  except OSError:
    return 0, 0
  return info.st_size, info.st_mtime_ns


def _hash(text: str, size: int) -> bytes:
  content = text.encode("utf-8", "surrogateescape")
  return hashlib.blake2b(content, digest_size=size).digest()


def is_wnid(name: str) -> bool:
  """Whether it is a WordNet id, such as "n01440764"."""
  return _WNID.fullmatch(name) is not None


def wnid_of_tar(name: str) -> str:
  """The class of "n01440764.tar"; "" for other names."""
  wnid, _, suffix = name.rpartition(".")
  return wnid if suffix == "tar" and is_wnid(wnid) else ""


def readable(name: str) -> str:
  r"""The name as it goes into data sets and lists.

  Unicode's composed form (NFC), as macOS may hand out another one than Linux.
  Bytes that aren't UTF-8, and control characters, become escapes: "caf\xe9".
  """
  if name.isascii() and name.isprintable():
    return name
  valid = os.fsencode(name).decode("utf-8", "backslashreplace")
  escaped = _CONTROL.sub(
    lambda match: match[0].encode("unicode_escape").decode(), valid
  )
  return unicodedata.normalize("NFC", escaped)


def fingerprint(paths: Iterable[Path], *more: object) -> str:
  """Tells files by place, size and time of change, and `more` by its repr."""
  digest = hashlib.blake2b(repr(more).encode(), digest_size=16)
  for path in paths:
    stat = path.stat()
    digest.update(os.fsencode(path.resolve()))
    digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
  return digest.hexdigest()


def read_classes(path: Path, wnids: bool) -> tuple[str, ...]:
  """Reads a list of classes, one a line; empty lines and "# ..." don't count.

  Of `wnids` what follows in the line is ignored.
  """
  try:
    # Editors of Windows begin it with a byte-order mark.
    lines = path.read_text("utf-8-sig").splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f"the list of classes {path} can't be read: {e}.") from e
  lines = [s for line in lines if (s := line.strip()) and s[0] != "#"]
  names = [re.split(r"[\s,;]", s)[0] if wnids else readable(s) for s in lines]
  counts = Counter(names)
  wrong = [n for n in names if counts[n] > 1 or (wnids and not is_wnid(n))]
  if wrong or not names:
    what = f"has {wrong[0][:60]!r}" if wrong else "is empty"
    raise UserError(
      f"the list of classes {path} {what}; give every class one line"
      + (", which begins with a WordNet id such as n01440764." * wnids or ".")
    )
  return tuple(names)


def no_class(name: str, classes: Collection[str]) -> str:
  """The error of a member of a class that isn't listed."""
  return f"its class {name} is not among the {len(classes):,} of the data set"
