"""The forms in which sets of images lie in tar archives."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from mixer import image_files
from mixer.datasets.sources import (
  byte_stream,
  file_names,
  tar_source,
  tar_stream,
)
from mixer.datasets.sources.member import Member

# None: no member.
Layout = Callable[[PurePosixPath], tar_source.Place | None]


class TarOfTars(tar_source.TarSource):
  """An archive of one archive a class: winter21_whole.tar.gz and the like."""

  def __init__(
    self,
    path: Path,
    classes: Collection[str] | None = None,
    tolerate_truncation: bool = False,
  ):
    super().__init__(
      [path], f"a tar of one tar a class ({path})", classes, tolerate_truncation
    )

  def _classes_in(self, stream: byte_stream.Stream) -> Iterator[str]:
    for entry in tar_stream.entries(stream):
      if wnid := file_names.wnid_of_tar(os.path.basename(entry.name)):
        yield wnid

  def _read(
    self, stream: byte_stream.Stream, path: Path, wanted: tar_source.Wanted
  ) -> Iterator[Member]:
    seen = set()
    for entry in tar_stream.entries(stream):
      base = os.path.basename(entry.name)
      wnid = file_names.wnid_of_tar(base)
      if wnid and wnid not in seen:
        seen.add(wnid)
        if entry.problem:
          yield tar_source.lost(entry.name, wnid, entry.problem, wanted)
        else:
          yield from self.class_tar(stream, wnid, entry.end, wanted)
      elif wnid:
        yield tar_source.lost(
          entry.name, wnid, "a second tar of its class", wanted
        )
      elif base.endswith(".tar") and not image_files.is_hidden(base):
        yield tar_source.lost(
          entry.name, "", "its name is no WordNet id", wanted
        )
      elif image_files.is_image(base, self._passed_over):
        yield tar_source.lost(
          entry.name, "", "lies outside of the tars", wanted
        )


class TarsOfClasses(tar_source.TarSource):
  """One archive a class, side by side."""

  def __init__(
    self,
    paths: Sequence[Path],
    classes: Collection[str] | None = None,
    tolerate_truncation: bool = False,
  ):
    paths = sorted(paths, key=lambda path: path.name)
    super().__init__(
      paths,
      f"{len(paths):,} tars, one a class ({paths[0].parent})",
      classes,
      tolerate_truncation,
    )

  def _list_classes(self, progress: Callable[[int], None]) -> Collection[str]:
    del progress  # The files' names do.
    return {file_names.wnid_of_tar(path.name) for path in self._paths}

  def _read(
    self, stream: byte_stream.Stream, path: Path, wanted: tar_source.Wanted
  ) -> Iterator[Member]:
    wnid = file_names.wnid_of_tar(path.name)
    try:
      yield from self.class_tar(stream, wnid, None, wanted)
      stream.drain()
    except byte_stream.BrokenError as e:
      # Here the loss ends with the file.
      yield tar_source.lost_rest(wnid, e, "", wanted)


class InTurn(tar_source.TarSource):
  """Archives of several forms, one after the other."""

  def __init__(
    self,
    parts: Sequence[tar_source.TarSource],
    classes: Collection[str],
    tolerate_truncation: bool = False,
  ):
    """Reads nothing yet.

    Args:
      parts: one archive each, with the same classes.
      classes: all there can be.
      tolerate_truncation: see `tar_source.TarSource`.
    """
    self._parts = {path: part for part in parts for path in part.paths}
    super().__init__(
      list(self._parts),
      ", ".join(part.description for part in parts),
      classes,
      tolerate_truncation,
    )

  def _read(
    self, stream: byte_stream.Stream, path: Path, wanted: tar_source.Wanted
  ) -> Iterator[Member]:
    part = self._parts[path]
    part._passed_over = self._passed_over
    yield from part._read(stream, path, wanted)


class TarOfFolders(tar_source.TarSource):
  """An archive of folders of images."""

  def __init__(
    self,
    path: Path,
    layout: Layout,
    classes: Collection[str] | None = None,
    tolerate_truncation: bool = False,
    what: str = "a tar of folders",
  ):
    super().__init__([path], f"{what} ({path})", classes, tolerate_truncation)
    self._layout = layout

  def _places(
    self, stream: byte_stream.Stream
  ) -> Iterator[tuple[tar_source.Place, tar_stream.Entry]]:
    for entry in tar_stream.entries(stream):
      path = PurePosixPath(entry.name)
      if path.name and image_files.is_image(path.name, self._passed_over):
        place = self._layout(path)
        if place is not None:
          yield place, entry

  def _classes_in(self, stream: byte_stream.Stream) -> Iterator[str]:
    for place, _ in self._places(stream):
      if place.class_name:
        yield place.class_name

  def _read(
    self, stream: byte_stream.Stream, path: Path, wanted: tar_source.Wanted
  ) -> Iterator[Member]:
    for place, entry in self._places(stream):
      yield self.member(place, stream, entry, wanted)
