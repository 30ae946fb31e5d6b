"""Any images in one folder a class."""

import array
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from mixer import image_files
from mixer.datasets.sources import file_names, folder_walk
from mixer.datasets.sources.member import Member
from mixer.errors import UserError


class ClassFolders:
  """Any images in one folder a class; see `member.Source`.

  Members come in the order of a hash of their names and the seed, so any part
  of the set has every class in it. All are listed when this is made: some 200
  bytes of memory for each.

  Attributes:
    description: see there.
    fingerprint: see there.
    total_bytes: see there.
    warnings: see there.
    splits: that the folders say, or "" alone if they say none.
    class_sizes: class -> files for which the folders say no split.
  """

  def __init__(
    self,
    root: Path,
    splits: Mapping[str, Path],
    classes: Collection[str] | None = None,
    seed: int = 0,
  ):
    """Lists the images.

    Args:
      root: from which members are named.
      splits: a split's name, or "" alone, -> folder of its classes, below root.
      classes: all there can be, or None for those that the source has.
      seed: of the order.

    Raises:
      UserError: no image, names that can't be told apart, no permission.
    """
    self.description = f"folders of images ({root})"
    self.warnings: list[str] = []
    self.splits = tuple(splits)
    self._root = root
    self._places: list[tuple[int, str]] = []  # (split, class) by number.
    self._raw: dict[str, str] = {}  # name -> path, where they differ.
    self._passed_over = Counter[str]()
    self._hidden: list[str] = []
    # Class -> folders in its own that have images, "" for that itself.
    self._folders: dict[str, set[str]] = {}
    found: list[tuple[bytes, str, int, int]] = []
    marks, per_class = 0, Counter[str]()
    for i, parent in enumerate(splits.values()):
      for label, folder in self._class_folders(parent).items():
        self._places.append((i, label))
        per_class[label] += 0
        below = self._folders.setdefault(label, set())
        for name, way, entry in self._images(folder):
          below.add(way.rpartition("/")[0])
          size, time = folder_walk.size_and_time(entry)
          # Summed up, so that the order doesn't matter.
          marks += int.from_bytes(_hash(f"0:{name}\0{size}\0{time}", 16))
          place = len(self._places) - 1
          found.append((_hash(f"{seed}:{name}", 8), name, place, size))
          per_class[label] += 1
    found.sort()
    self._names = [name for _, name, _, _ in found]
    self._place = array.array("L", (place for _, _, place, _ in found))
    self._sizes = array.array("Q", (size for _, _, _, size in found))
    names = sorted(per_class) if classes is None else classes
    self._classes = dict.fromkeys(names)
    self.class_sizes = (
      {name: per_class[name] for name in self._classes}
      if self.splits == ("",)
      else {}
    )
    self.total_bytes = sum(self._sizes)
    self.fingerprint = file_names.fingerprint(
      [], str(root.resolve()), marks, list(classes or ())
    )
    self._check(per_class, splits.values())

  def _class_folders(self, parent: Path) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for folder in folder_walk.subfolders(parent):
      # Lists of classes are read line by line, without outer spaces.
      label = file_names.readable(folder.name).strip() or "_"
      if label in folders:
        raise UserError(
          f"the classes {folders[label]} and {folder} can't be told apart by "
          f"their names, which both read {label!r}; rename one."
        )
      folders[label] = folder
    return folders

  def _images(
    self, folder: Path
  ) -> Iterator[tuple[str, str, os.DirEntry[str]]]:
    """Each image's name, the way to it from `folder`, and its entry."""
    base = folder.relative_to(self._root).as_posix()
    for way, entry in image_files.find(
      str(folder), self._passed_over, self._hidden
    ):
      raw = f"{base}/{way}"
      name = file_names.readable(raw)
      if name != raw:
        path = self._root / name
        # macOS has one file under both names.
        other = path.exists() and not path.samefile(entry.path)
        if other or name in self._raw:
          raise UserError(
            f"the name of {entry.path} reads {name!r} as another file's does "
            "(they are written by other Unicode characters); rename one."
          )
        self._raw[name] = raw
      yield name, way, entry

  def _check(self, per_class: Counter[str], parents: Iterable[Path]) -> None:
    """Warns of what looks odd.

    Raises:
      UserError: there is no image at all.
    """
    if not self._names:
      raise UserError(
        f"there is no image in any class folder of {self._root}; files of "
        "images end in .jpg, .png, .webp and the like, or have no suffix."
      )
    empty = [label for label, count in per_class.items() if not count]
    if empty:
      self.warnings.append(folder_walk.no_images(sorted(empty)))
    self.warnings += file_names.missing(self._classes, per_class)
    if len(self._classes) == 1:
      (only,) = self._classes
      self.warnings.append(
        f"there is a single class, {only}; if its folders are the classes, "
        "name it as the source"
      )
    # Such as one that is written in another way there.
    full = {self._places[number] for number in set(self._place)}
    if "train" in self.splits:
      train = self.splits.index("train")
      untrained = sorted(
        {label for _, label in full} - {c for i, c in full if i == train}
      )
      if untrained:
        self.warnings.append(file_names.untrained(untrained))
    merged = [label for label, below in self._folders.items() if len(below) > 1]
    if merged:
      first = sorted(filter(None, self._folders[merged[0]]))
      self.warnings.append(
        f"{len(merged):,} classes have images in folders within their own, and "
        f"take them together: {file_names.some(merged)} "
        f"({merged[0]} has {file_names.some(first)})"
      )
    for parent in dict.fromkeys([self._root, *parents]):
      with os.scandir(parent) as inside:
        self._hidden += image_files.hidden_in(inside)
      outside = [p.name for p in folder_walk.files(parent)]
      count = sum(map(image_files.is_image, outside))
      if count:
        self.warnings.append(
          f"{count:,} images lie in {parent} itself, in no folder of a class, "
          "and are left out"
        )
    if self._hidden:
      hidden = [
        file_names.readable(os.path.relpath(path, self._root))
        for path in sorted(set(self._hidden))
      ]
      self.warnings.append(
        f"{len(hidden):,} hidden folders or images are left out: "
        + file_names.some(hidden)
      )
    self.warnings += file_names.no_images(self._passed_over)

  def class_names(
    self, progress: Callable[[int], None] = lambda done: None
  ) -> tuple[str, ...]:
    del progress  # They are known.
    return tuple(self._classes)

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    done = sum(self._sizes[:start])
    for i in range(start, len(self._names)):
      name = self._names[i]
      split, label = self._places[self._place[i]]
      path = os.path.join(self._root, self._raw.get(name, name))
      data, error = folder_walk.read(path)
      if label not in self._classes:
        data, error = b"", file_names.no_class(label, self._classes)
      done += self._sizes[i]
      yield Member(name, label, self.splits[split], data, error), done


def _hash(text: str, size: int) -> bytes:
  content = text.encode("utf-8", "surrogateescape")
  return hashlib.blake2b(content, digest_size=size).digest()
