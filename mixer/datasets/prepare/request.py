"""What the user asks to be prepared, and opening it as archives or folders."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixer.datasets import catalog, wordnet
from mixer.datasets.prepare import forms, sources, tars
from mixer.datasets.prepare.sources import Source
from mixer.errors import UserError

# But ILSVRC's of other tasks.
_ARCHIVE = re.compile(r"(?!.*_(test|train_t3|bbox)).*\.(tar|tar\.gz|tgz)")


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

  def archives(
    self, layout: tars.Layout, listed: str, labels: Sequence[Path] = ()
  ) -> Source:
    """Its folder, an archive, or any number of CLASS.tar or ILSVRC's.

    Also WebDataset shards and parquet files, whose classes are WordNet ids.
    """
    classes = self.classes(listed)
    if hub := forms.shards(self.paths):
      return forms.of_hub(hub, classes, self.accept_truncated)
    found: set[Path] = set()
    for path in self.paths:
      inside = sources.inside(path)[1] if path.is_dir() else []
      inside = [file for file in inside if _ARCHIVE.fullmatch(file.name)]
      found |= {*inside} or {path}
    # In this order whatever order they were named in.
    paths = sorted(found - {*labels}, key=lambda path: path.name)
    names = [path.name for path in paths]
    wnids = [*map(sources.wnid_of_tar, names)]
    if all(wnids):
      classes = classes or sorted({*wnids})
    elif len(names) > 1 and not all(n.startswith("ILSVRC") for n in names):
      raise self.unfit(f"it has {len(names)} archives: {sources.some(names)}")
    more = self.accept_truncated, sources.fingerprint(labels)
    return tars.source(paths, layout, classes, *more)
