"""What the user asks to be prepared, and what there is to say of a set."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixer.datasets import catalog, wordnet
from mixer.datasets.prepare import sources
from mixer.datasets.prepare.sources import Source
from mixer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be prepared, and from what."""

  base: str  # The data set, without its config.
  release: str  # The config, "" if it has none.
  paths: Sequence[Path]  # At least one.
  class_file: Path | None = None
  accept_truncated: bool = False
  seed: int = 0
  columns: str = ""  # Of a table: FILE,LABEL or FILE,LABEL,SPLIT.

  def unfit(self, what: str) -> UserError:
    """The refusal of a source; `what` says what is there."""
    entry = catalog.ENTRIES[self.base]
    where = f" (from {entry.where})" if entry.where else ""
    return UserError(
      f"{what}. For {self.base}, --source has to name {entry.by_hand}{where}."
    )

  def classes(self, listed: str = "") -> Sequence[str] | None:
    """Those of the user's file, else of a list that we have, else None."""
    if self.class_file is not None:
      return sources.read_classes(self.class_file, self.base != "folder")
    return wordnet.classes(listed) if listed in wordnet.LISTS else None

  def inside(self, name: str) -> Iterator[Path]:
    """What has that name, or begins with it, in the folders of --source."""
    for path in self.paths:
      if path.name.startswith(name):
        yield path
      elif path.is_dir():
        yield from sorted(path.glob(f"{name}*"))

  def only(self, name: str) -> Path:
    """The first of `inside`; a UserError without one."""
    for path in self.inside(name):
      return path
    raise self.unfit(f"{sources.some(self.paths)} has no {name}")


@dataclasses.dataclass(frozen=True)
class Spec:
  """A data set: where its images come from, and what it is."""

  open: Callable[[Request], Source]
  takes: Sequence[str]  # Further flags.
  # Config -> its images without a split, by which numbers to hold out become
  # shares; 0 if unknown. The first is the default.
  releases: Mapping[str, int]
  version: str = "1.0.0"  # TFDS's, of the sets that it knows.
  # Of `journal.Options`, where the user gives no other.
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # What a record calls the number of its class; ReaL's `real_label` is beside.
  label: str = "label"
  # Height, width and channels, where all images have the same; as PNGs.
  shape: tuple[int, int, int] | None = None
