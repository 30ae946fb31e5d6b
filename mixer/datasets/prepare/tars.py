"""Reads sets of images from tar archives: in one pass and in flat memory.

`tarfile.TarInfo` parses the headers. `tarfile.TarFile` would keep every header
that it has seen, take a damaged one for the end of the archive, and not tell an
archive that was cut off between two files from a whole one.
"""

import bz2
import errno
import gzip
import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mixer import image_files, images
from mixer.datasets.prepare import sources
from mixer.datasets.prepare.sources import Member
from mixer.errors import UserError

_BLOCK = 512
_MAX_HEADER = 1 << 16  # Bytes of long names and the like.
_PIECE = 1 << 20
_UNPACK: dict[bytes, Callable[..., Any]] = {
  b"\x1f\x8b\x08": gzip.open,
  b"BZh": bz2.open,
  b"\xfd7zXZ\0": lzma.open,
}


class BrokenError(Exception):
  """The file can't be read on; the message says why."""


class DamagedError(Exception):
  """The archive's structure is damaged; the message says how."""


class Stream:
  """The bytes of a file, decompressed if need be, from first to last."""

  def __init__(self, path: Path):
    """Opens the file; a UserError if it can't be."""
    try:
      if not path.is_file():  # A pipe would be waited for.
        raise OSError(errno.EINVAL, "it is no regular file")
      # Unbuffered, so that what is skipped isn't read.
      self._raw = open(path, "rb", buffering=0)
      self._size = path.stat().st_size
      begin = self._raw.read(8)
      self._raw.seek(0)
    except OSError as e:
      raise UserError(f"{path} can't be read: {e.strerror}.") from e
    unpack = [f for magic, f in _UNPACK.items() if begin.startswith(magic)]
    self._file = unpack[0](self._raw) if unpack else self._raw
    self._packed = bool(unpack)
    self.position = 0  # Of the next byte, decompressed.

  def __enter__(self) -> "Stream":
    return self

  def __exit__(self, *unused: object) -> None:
    self._raw.close()

  @property
  def bytes_done(self) -> int:
    """Of the file as it is on disk."""
    return self._raw.tell()

  def read(self, size: int, at_most: bool = False) -> bytes:
    """`size` bytes; only if `at_most`, fewer at the end."""
    parts: list[bytes] = []
    end = self.position + size
    if not (self._packed or at_most) and end > self._size:
      # Before there is memory for what a damaged header claims.
      raise BrokenError(f"it ends after {self._size:,} bytes")
    while self.position < end:
      try:
        part = self._file.read(min(end - self.position, _PIECE))
        if not (part or at_most):
          raise EOFError("its end is missing")
      except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:
        where = f"at or before byte {self.bytes_done:,}"
        raise BrokenError(f"its data are damaged {where} ({e})") from e
      if not part:
        break
      parts.append(part)
      self.position += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)

  def skip_to(self, position: int) -> None:
    """Goes forward, without reading if the file isn't compressed."""
    if not self._packed and self.position < position <= self._size:
      self.position = self._raw.seek(position)
    while self.position < position:
      self.read(min(_PIECE, position - self.position))

  def drain(self) -> None:
    """Reads a compressed file to its end, where its checksum is."""
    while self._packed and self.read(_PIECE, at_most=True):
      pass


class Entry(NamedTuple):
  """A file in an archive."""

  name: str  # With folders; bytes that aren't UTF-8 by surrogates.
  size: int
  problem: str = ""  # Why its bytes aren't those of the file.


class _Headers:
  """What `TarInfo.fromtarfile` needs of a TarFile."""

  encoding, errors = "utf-8", "surrogateescape"

  def __init__(self, stream: Stream, end: int | None):
    self.fileobj, self.pax_headers, self.offset = self, {}, 0
    self._stream, self._end, self._next = stream, end, b""

  def tell(self) -> int:
    return self._stream.position

  def read(self, size: int) -> bytes:
    block, self._next = self._next, b""
    if block:
      return block
    if not 0 <= size <= _MAX_HEADER:
      raise DamagedError(f"a header claims to have {size:,} bytes")
    if self._end is not None and self.tell() + size > self._end:
      raise DamagedError("it ends without an end mark")
    return self._stream.read(size)

  def goes_on(self) -> bool:
    """Whether something else than zeros follows an end mark."""
    while not self._next.strip(b"\0"):
      left = _BLOCK if self._end is None else self._end - self.tell()
      self._next = self._stream.read(min(_BLOCK, left), at_most=True)
      if not self._next:
        return False
    return True


def entries(stream: Stream, end: int | None = None) -> Iterator[Entry]:
  """The files of the archive at which the stream stands.

  Archives may follow one another, as `cat a.tar b.tar` makes them. At each
  entry the stream stands at its first byte.

  Args:
    stream: read forward.
    end: place in the stream where an archive within another one ends.

  Raises:
    DamagedError: a damaged header, or the archive goes on beyond `end`.
    BrokenError: the stream ends or breaks in the middle.
  """
  headers: Any = _Headers(stream, end)
  name = "its first file"
  while True:
    try:
      info = tarfile.TarInfo.fromtarfile(headers)
    # Damaged extended headers make `tarfile` raise any of these.
    except (tarfile.HeaderError, ValueError, LookupError, RecursionError) as e:
      if type(e).__name__ != "EOFHeaderError":  # Which has no public name.
        raise DamagedError(f"there is no header behind {name} ({e})") from e
      if headers.goes_on():
        continue
      return
    name = info.name
    after = info.offset_data + info.size
    if info.size < 0 or headers.offset < stream.position:
      raise DamagedError(f"the header of {name} has a size of {info.size}")
    if end is not None and min(after, headers.offset) > end:
      raise DamagedError(f"it ends in the middle of {name}")
    is_link = info.islnk() or info.issym()
    if is_link or info.issparse():
      problem = "a link or sparse file; pack it anew as a plain file"
      yield Entry(name, 0 if is_link else info.size, problem)
    elif info.isreg():
      yield Entry(name, info.size)
    stream.skip_to(headers.offset if end is None else min(headers.offset, end))


# Says of the path of an image in an archive to which member it belongs, without
# its bytes; None: to none.
Layout = Callable[[PurePosixPath], Member | None]


def tar_of_class(path: PurePosixPath) -> Member:
  """The layout of a tar that has one tar a class."""
  name = sources.readable(str(path))
  if wnid := sources.wnid_of_tar(path.name):
    return Member(name, wnid)
  return Member(name, "", error="is no tar that is named by a WordNet id")


def _of_class(class_name: str) -> Layout:
  """The layout of a tar of one class, for one pass."""
  names = Counter[str]()

  def layout(path: PurePosixPath) -> Member:
    name = f"{class_name}/{sources.readable(path.name)}"
    names[name] += 1
    if names[name] > 1:
      error = "a second file of this name"
      return Member(f"{name} ({names[name]})", class_name, error=error)
    return Member(name, class_name)

  return layout


def _is_tar(name: str) -> bool:
  return name.endswith(".tar") and not image_files.is_hidden(name)


def first_file(path: Path) -> PurePosixPath:
  """The first image or tar in an archive, by its name."""
  try:
    with Stream(path) as stream:
      for entry in entries(stream):
        inner = PurePosixPath(entry.name)
        if _is_tar(inner.name) or image_files.is_image(inner.name):
          return inner
    why = "it has no image"
  except (BrokenError, DamagedError) as e:
    why = f"{e}. If it is another kind of archive, unpack it first"
  raise UserError(f"the source {path} can't be read as a tar of images: {why}.")


class Tars(sources.Source):
  """Archives that are read one after the other."""

  def __init__(
    self,
    parts: Sequence[tuple[Path, Layout | str]],
    description: str,
    classes: Collection[str] | None,
    accept_truncated: bool,
    *more: object,
  ):
    """Takes archives, each with its layout, or with a class if all is of that.

    Of a source without `classes` they are those that are found; `more` is what
    else the fingerprint tells.
    """
    paths = [path for path, _ in parts]
    total = sum(path.stat().st_size for path in paths)
    mark = sources.fingerprint(paths, list(classes or ()), *more)
    super().__init__(description, mark, total, classes)
    self._parts, self._accept = parts, accept_truncated
    self._passed_over = Counter[str]()

  def list_classes(self, progress: Callable[[int], None]) -> Collection[str]:
    found: set[str] = set()
    for path, layout in self._parts:
      if isinstance(layout, str):
        found.add(layout)
        continue
      with Stream(path) as stream:
        try:
          for entry in entries(stream):
            member = self._member(entry, layout)
            found |= {member.class_name} if member else set()
            progress(stream.bytes_done)
        except (BrokenError, DamagedError) as e:
          self._break_off(path, e, f"So far it has {len(found):,} classes.")
    return found - {""}

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    before = number = 0  # Bytes of the archives before; members so far.
    found: set[str] = set()
    self._passed_over.clear()
    for path, layout in self._parts:
      first, last = number, ""
      with Stream(path) as stream:
        try:
          how = _of_class(layout) if isinstance(layout, str) else layout
          for member, size in self._members(stream, how):
            if number >= start and not member.error:
              member = member._replace(data=stream.read(size))
            number += 1
            last = member.name
            found.add(member.class_name)
            if number > start:
              yield member, before + stream.bytes_done
          stream.drain()
        except (BrokenError, DamagedError) as e:
          if isinstance(layout, str):  # The loss ends with the file.
            number += 1
            if number > start:
              yield _lost(layout, e), before + stream.bytes_done
          else:
            whole = f"Whole are the {number - first:,} images up to {last}."
            self._break_off(path, e, whole if last else "No image is whole.")
      before += path.stat().st_size
    self.warn_of_rest(found, self._passed_over)

  def _members(
    self, stream: Stream, layout: Layout, end: int | None = None
  ) -> Iterator[tuple[Member, int]]:
    """All of an archive, without their bytes; and how many those are."""
    tars = set()
    for entry in entries(stream, end):
      member = self._member(entry, layout)
      if member is None:
        continue
      if layout is not tar_of_class or member.error:
        yield member, entry.size
      elif member.class_name in tars:
        yield member._replace(error="a second tar of its class"), entry.size
      else:
        tars.add(member.class_name)
        inner = _of_class(member.class_name)
        after = stream.position + entry.size
        try:
          yield from self._members(stream, inner, after)
        except DamagedError as e:
          yield _lost(member.class_name, e), 0

  def _member(self, entry: Entry, layout: Layout) -> Member | None:
    """What an entry is, without its bytes; None for what is no image."""
    path, error = PurePosixPath(entry.name), entry.problem
    is_tar = layout is tar_of_class and _is_tar(path.name)
    if not is_tar and not image_files.is_image(path.name, self._passed_over):
      return None
    member = layout(path)
    if member is None or member.error:
      return member
    if not is_tar and self.classes and member.class_name not in self.classes:
      error = sources.no_class(member.class_name, self.classes)
    elif not is_tar and entry.size > images.MAX_BYTES:
      error = f"{entry.size:,} bytes, more than {images.MAX_BYTES:,}"
    return member._replace(error=error)

  def _break_off(self, path: Path, error: Exception, whole: str) -> None:
    """Says that an archive breaks off; a UserError if that isn't accepted."""
    what = f"{path} is cut off or damaged: {error}. {whole}"
    if not self._accept:
      raise UserError(
        f"{what} Get the file again (compare its size with the original's), or "
        "take what is there with --accept_truncated."
      )
    self.warn(what)


def _lost(class_name: str, error: Exception) -> Member:
  """The last member of a class's tar that is damaged."""
  what = (
    f"the tar of its class is cut off or damaged: {error}; the rest is lost"
  )
  return Member(f"{class_name}.tar", class_name, error=what)
