"""Sets of images that lie in tar archives, read in one pass.

Nothing is unpacked to disk, and memory doesn't grow with the archive.
"""

import collections
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mixer import image_files, images
from mixer.datasets.sources import byte_stream, file_names, tar_stream
from mixer.datasets.sources.member import Member
from mixer.errors import UserError


class Place(NamedTuple):
  """Where an image belongs, by its path in an archive of folders.

  Attributes:
    name: of the member.
    class_name: its class.
    split: its split, "" for none.
    error: why it belongs nowhere, "" if it does.
  """

  name: str
  class_name: str
  split: str
  error: str = ""


class Wanted:
  """Counts members down to the first whose bytes are to be read.

  Each member, read or lost, calls `next` once.
  """

  def __init__(self, start: int):
    self._left = start

  def next(self) -> bool:
    self._left -= 1
    return self._left < 0


class TarSource:
  """What the forms have in common; see `member.Source`.

  Attributes:
    description: see there.
    fingerprint: see there.
    total_bytes: see there.
    warnings: see there.
  """

  def __init__(
    self,
    paths: Sequence[Path],
    description: str,
    classes: Collection[str] | None,
    tolerate_truncation: bool,
  ):
    """Reads nothing yet.

    Args:
      paths: the archives.
      description: for a person.
      classes: all there can be, or None for those that the source has.
      tolerate_truncation: take what is there of an archive that breaks off.
    """
    self.description = description
    self.warnings: list[str] = []
    self.total_bytes = sum(path.stat().st_size for path in paths)
    self.fingerprint = file_names.fingerprint(
      paths, type(self).__name__, list(classes or ())
    )
    self._paths = tuple(paths)
    self._classes = dict.fromkeys(classes) if classes is not None else None
    self._tolerate = tolerate_truncation
    self._passed_over = collections.Counter[str]()

  def class_names(
    self, progress: Callable[[int], None] = lambda done: None
  ) -> tuple[str, ...]:
    if self._classes is None:
      self.take_classes(sorted(self._list_classes(progress)))
    return tuple(self._classes or ())

  @property
  def paths(self) -> tuple[Path, ...]:
    """The archives, in the order in which they are read."""
    return self._paths

  @property
  def knows_classes(self) -> bool:
    """Whether `class_names` needn't read the archives."""
    return self._classes is not None

  def take_classes(self, class_names: Sequence[str]) -> None:
    """Spares a pass over the archives that an earlier one has made."""
    self._classes = dict.fromkeys(class_names)

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    wanted = Wanted(start)
    before = 0
    found = set[str]()
    self._passed_over.clear()
    for path in self._paths:
      number, last = 0, ""
      with _open(path) as stream:
        try:
          for member in self._read(stream, path, wanted):
            number += 1
            last = member.name
            found.add(member.class_name)
            if number > start:
              yield member, before + stream.bytes_done
          stream.drain()
        except (byte_stream.BrokenError, tar_stream.DamagedError) as e:
          self._break_off(
            path,
            e,
            f"Whole are the {number:,} images up to {last}."
            if number
            else "There is no whole image before.",
          )
        if stream.joined:
          self._warn(
            f"{path} goes on behind an end mark, from byte {stream.joined:,} "
            "on: it is read as archives that were joined"
          )
      start = max(0, start - number)
      before += path.stat().st_size
    for warning in (
      *file_names.missing(self._classes or (), found),
      *file_names.no_images(self._passed_over),
    ):
      self._warn(warning)

  def _warn(self, warning: str) -> None:
    if warning not in self.warnings:
      self.warnings.append(warning)

  def _list_classes(self, progress: Callable[[int], None]) -> Collection[str]:
    found = set[str]()
    for path in self._paths:
      with _open(path) as stream:
        try:
          for class_name in self._classes_in(stream):
            found.add(class_name)
            progress(stream.bytes_done)
        except (byte_stream.BrokenError, tar_stream.DamagedError) as e:
          self._break_off(path, e, f"So far it has {len(found):,} classes.")
    if not found:
      raise UserError(
        f"{self._paths[0]} holds no images of any class; expected are "
        "tars or folders named by WordNet ids, such as n01440764."
      )
    return found

  def _classes_in(self, stream: byte_stream.Stream) -> Iterator[str]:
    """The classes of an archive, perhaps repeatedly.

    Raises:
      BrokenError: the file can't be read on.
      DamagedError: its structure is damaged.
    """
    raise NotImplementedError

  def _read(
    self, stream: byte_stream.Stream, path: Path, wanted: Wanted
  ) -> Iterator[Member]:
    """All members of an archive, those that aren't wanted without data.

    Raises:
      BrokenError: the file can't be read on.
      DamagedError: its structure is damaged.
    """
    raise NotImplementedError

  def member(
    self, place: Place, stream: byte_stream.Stream, entry: tar_stream.Entry,
    wanted: Wanted,
  ) -> Member:  # fmt: skip
    """Reads a member's bytes; leaves the stream behind them."""
    name, class_name, split, error = place
    if not error and self._classes and class_name not in self._classes:
      error = file_names.no_class(class_name, self._classes)
    error = error or entry.problem
    if not error and entry.size > images.MAX_BYTES:
      error = f"{entry.size:,} bytes, more than {images.MAX_BYTES:,}"
    if wanted.next() and not error:
      return Member(name, class_name, split, stream.read(entry.size))
    stream.skip_to(entry.end)
    return Member(name, class_name, split, b"", error)

  def class_tar(
    self, stream: byte_stream.Stream, wnid: str, end: int | None, wanted: Wanted
  ) -> Iterator[Member]:
    """A class's members; at damage the last one says so.

    Raises:
      BrokenError: the file around it can't be read on.
    """
    names = collections.Counter[str]()
    try:
      for entry in tar_stream.entries(stream, end):
        base = os.path.basename(entry.name)
        if not image_files.is_image(base, self._passed_over):
          continue
        name = f"{wnid}/{file_names.readable(base)}"
        names[name] += 1
        if names[name] > 1:
          error = "a second file of this name"
          yield lost(f"{name} ({names[name]})", wnid, error, wanted)
        else:
          yield self.member(Place(name, wnid, ""), stream, entry, wanted)
    except tar_stream.DamagedError as e:
      yield lost_rest(wnid, e, e.name, wanted)

  def _break_off(self, path: Path, error: Exception, whole: str) -> None:
    """Ends the reading of an archive that breaks off.

    Raises:
      UserError: unless that is tolerated.
    """
    what = f"{path} is cut off or damaged: {error}. {whole}"
    if not self._tolerate:
      raise UserError(
        f"{what} Get the file again (compare its size with the original's), or "
        "take what is there with --accept_truncated."
      )
    self._warn(what)


def _open(path: Path) -> byte_stream.Stream:
  try:
    return byte_stream.Stream(path)
  except OSError as e:
    raise UserError(f"{path} can't be read: {e.strerror}.") from e


def lost(name: str, class_name: str, error: str, wanted: Wanted) -> Member:
  """A member of which only the error is there."""
  wanted.next()
  return Member(file_names.readable(name), class_name, "", b"", error)


def lost_rest(wnid: str, error: Exception, name: str, wanted: Wanted) -> Member:
  """The last member of a class's tar that is damaged.

  Args:
    wnid: the class.
    error: what is wrong with the tar.
    name: of the file at which the damage is, "" if it isn't known.
    wanted: the count.
  """
  base = file_names.readable(os.path.basename(name))
  return lost(
    f"{wnid}/{base}" if base else f"{wnid}.tar",
    wnid,
    f"the tar of its class, {wnid}.tar, is cut off or damaged: {error}; what "
    "comes after is lost",
    wanted,
  )
