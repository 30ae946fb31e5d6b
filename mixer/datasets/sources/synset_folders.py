"""ImageNet in one folder a class."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from mixer import image_files
from mixer.datasets.sources import file_names, folder_walk
from mixer.datasets.sources.member import Member
from mixer.errors import UserError

# Class folders that are measured to estimate the size of all.
_SAMPLE = 16


class SynsetFolders:
  """Folders named by WordNet ids; see `member.Source`.

  ImageNet-21k is 14 million files, so they are listed class by class when their
  turn comes. The total of bytes is an estimate from some of the classes, and
  the bytes done follow the number of files.

  Attributes:
    description: see there.
    fingerprint: of the folders; it changes when files come or go.
    total_bytes: see there.
    warnings: see there.
  """

  def __init__(
    self,
    splits: Mapping[str, Path],
    classes: Collection[str] | None = None,
  ):
    """Lists the classes, but not their images.

    Args:
      splits: a split's name, or "" alone, -> folder of its classes.
      classes: all there can be, or None for those that the source has.

    Raises:
      UserError: there is no image, or a folder can't be listed.
    """
    self._folders = [
      (split, path)
      for split, parent in splits.items()
      for path in folder_walk.synset_folders(parent)
    ]
    self.description = (
      f"{len(self._folders):,} folders, one a class "
      f"({', '.join(str(parent) for parent in splits.values())})"
    )
    self.warnings: list[str] = []
    names = (
      sorted({path.name for _, path in self._folders})
      if classes is None
      else classes
    )
    self._classes = dict.fromkeys(names)
    present = {path.name for _, path in self._folders}
    self.warnings += file_names.missing(self._classes, present)
    empty = [
      str(path)
      for _, path in self._folders
      if not folder_walk.has_image(str(path))
    ]
    if len(empty) == len(self._folders):
      raise UserError(
        f"there is no image below {', '.join(map(str, splits.values()))}; "
        "expected are folders such as n01440764 with images in them."
      )
    if empty:
      self.warnings.append(folder_walk.no_images(empty))
    self.total_bytes = self._estimate()
    self.fingerprint = file_names.fingerprint(
      [path for _, path in self._folders], list(classes or ())
    )

  def _estimate(self) -> int:
    every = max(1, len(self._folders) // _SAMPLE)
    sample = self._folders[::every]
    measured = sum(
      folder_walk.size_and_time(entry)[0]
      for _, path in sample
      for _, entry in image_files.find(str(path))
    )
    return max(1, measured * len(self._folders) // len(sample))

  def class_names(
    self, progress: Callable[[int], None] = lambda done: None
  ) -> tuple[str, ...]:
    del progress  # They are known.
    return tuple(self._classes)

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    share = self.total_bytes / len(self._folders)
    passed_over = Counter[str]()
    for i, (split, path) in enumerate(self._folders):
      found = list(image_files.find(str(path), passed_over))
      for k, (way, entry) in enumerate(found[start:], start + 1):
        yield (
          self._member(split, path.name, way, entry.path),
          int(share * (i + k / len(found))),
        )
      start = max(0, start - len(found))
    for warning in file_names.no_images(passed_over):
      if warning not in self.warnings:
        self.warnings.append(warning)

  def _member(self, split: str, wnid: str, way: str, path: str) -> Member:
    name = "/".join(filter(None, (split, wnid, file_names.readable(way))))
    if wnid not in self._classes:
      error = file_names.no_class(wnid, self._classes)
      return Member(name, wnid, split, b"", error)
    return Member(name, wnid, split, *folder_walk.read(path))
