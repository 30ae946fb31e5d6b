"""Reads sets of images from tar archives: in one pass and in flat memory.

`tarfile.TarInfo` parses the headers. `tarfile.TarFile` would keep every header
that it has seen, take a damaged one for the end of the archive, and not tell an
archive that was cut off between two files from a whole one.
"""

import contextlib
import functools
import gzip
import itertools
import tarfile
import types
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mixer import files, image_files, images
from mixer.datasets.prepare import sources
from mixer.datasets.prepare.sources import Member, Source
from mixer.errors import UserError

_MAX_HEADER = 1 << 16  # Bytes of long names and the like.
_PIECE = 1 << 20
# Says of the path of an image which member it is, without its bytes; it has no
# class if it is out of place. A member that is a tar has images of its class.
Layout = Callable[[PurePosixPath], Member | None]
# Gives a member its bytes, of so many, if they are wanted.
Fill = Callable[[Member, Callable[[], bytes], int], Member]
# The members of another kind of archive.
Samples = Callable[["Stream", Path, Fill], Iterator[Member]]


class BrokenError(Exception):
  """The file can't be read on; the message says why."""


class DamagedError(BrokenError):
  """Only the structure of an archive is damaged: its file can be read on."""


class Stream:
  """The bytes of a file, unpacked if it is gzip's, from first to last."""

  def __init__(self, path: Path):
    """Opens the file; a UserError if it can't be."""
    try:
      files.open_regular(path).close()  # A pipe would be waited for.
      # Unbuffered, so that what is skipped isn't read.
      self._raw = open(path, "rb", buffering=0)
      is_packed = self._raw.read(3) == b"\x1f\x8b\x08"
      self._raw.seek(0)
    except OSError as e:
      raise UserError(f"{path} can't be read: {files.reason(e)}.") from e
    self._file: Any = gzip.open(self._raw) if is_packed else self._raw
    self._end = 0 if is_packed else path.stat().st_size
    self.position = 0  # Of the next byte, decompressed.
    self.close = self._raw.close
    self.bytes_done = self._raw.tell  # Of the file as it is on disk.

  def read(self, size: int, at_most: bool = False) -> bytes:
    """`size` bytes; only if `at_most`, fewer at the end."""
    parts: list[bytes] = []
    end = self.position + size
    while self.position < end:  # Memory follows the bytes that are there.
      try:
        part = self._file.read(min(end - self.position, _PIECE))
        if not (part or at_most):
          raise EOFError("its end is missing")
      except (OSError, EOFError, zlib.error) as e:
        where = f"at or before byte {self.bytes_done():,}"
        raise BrokenError(f"its data are damaged {where} ({e})") from e
      if not part:
        break
      parts.append(part)
      self.position += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)

  def skip_to(self, position: int) -> None:
    """Goes forward, without reading if the file isn't compressed."""
    if self.position < position <= self._end:
      self.position = self._raw.seek(position)
    while self.position < position:
      self.read(min(_PIECE, position - self.position))


def entries(
  stream: Stream, end: int | None = None
) -> Iterator[tuple[str, int, str]]:
  """Name, size, and any problem, of each file of the archive in a stream.

  The stream stands at the first byte of the file. `end` is the place in the
  stream where an archive within another one ends. A DamagedError: a header is
  damaged, or there is no end mark before `end`.
  """

  def read(size: int) -> bytes:
    if not 0 <= size <= _MAX_HEADER:
      raise DamagedError(f"a header claims to have {size:,} bytes")
    if end is not None and stream.position + size > end:
      raise DamagedError("it ends without an end mark")
    return stream.read(size)

  headers: Any = types.SimpleNamespace(
    fileobj=types.SimpleNamespace(read=read, tell=lambda: stream.position),
    encoding="utf-8", errors="surrogateescape", pax_headers={}, offset=0,
  )  # fmt: skip
  name = "its first file"
  while True:
    try:
      info = tarfile.TarInfo.fromtarfile(headers)
    # Damaged extended headers make `tarfile` raise any of these.
    except (tarfile.HeaderError, ValueError, LookupError, RecursionError) as e:
      if type(e).__name__ == "EOFHeaderError":  # Which has no public name.
        break
      raise DamagedError(f"there is no header behind {name} ({e})") from e
    name, is_link = info.name, info.islnk() or info.issym()
    if info.size < 0 or headers.offset < stream.position:
      raise DamagedError(f"the header of {name} has a size of {info.size}")
    after = min(info.offset_data + info.size, headers.offset)
    if end is not None and after > end:
      raise DamagedError(f"it ends in the middle of {name}")
    if is_link or info.issparse():
      problem = "a link or sparse file; pack it anew as a plain file"
      yield name, 0 if is_link else info.size, problem
    elif info.isreg():
      yield name, info.size, ""
    stream.skip_to(headers.offset if end is None else min(headers.offset, end))
  # Zeros follow, and any checksum of a compressed file.
  left = _PIECE
  while left:
    most = left if end is None else min(left, end - stream.position)
    block = stream.read(most, at_most=True)
    if block.strip(b"\0"):
      raise DamagedError("it goes on behind its end mark")
    left = len(block)


def _members(
  stream: Stream,
  layout: Layout,
  fill: Fill,
  passed_over: Counter[str],
  end: int | None = None,
) -> Iterator[Member]:
  """The images of an archive, and of the tars of classes in it."""
  for name, size, problem in entries(stream, end):
    path = PurePosixPath(name)
    is_tar = path.suffix == ".tar" and not image_files.is_hidden(path.name)
    if not (is_tar or image_files.is_image(path.name, passed_over)):
      continue
    if (member := layout(path)) is None:
      continue
    if not (is_tar and member.class_name and not problem):
      member = member._replace(error=problem)
      yield fill(member, functools.partial(stream.read, size), size)
      continue
    inner, after = _of_class(member.class_name), stream.position + size
    try:
      yield from _members(stream, inner, fill, passed_over, after)
    except DamagedError as e:
      error = f"a tar that is cut off or damaged: {e}; the rest is lost"
      yield fill(member._replace(error=error), bytes, 0)


def _of_class(class_name: str) -> Layout:
  """The layout of a tar of one class."""

  def layout(path: PurePosixPath) -> Member:
    return Member(f"{class_name}/{path.name}", class_name)

  return layout


def source(
  paths: Sequence[Path],
  layout: Layout,
  classes: Collection[str] | None,
  accept_truncated: bool = False,
  *more: object,
  samples: Samples | None = None,
) -> Source:
  """Archives and folders of one layout, read one after the other.

  A damaged archive ends the preparation, unless `accept_truncated`, or if it is
  the tar of a class. `more` is what else the fingerprint tells; `samples` reads
  archives in place of `layout`.
  """
  sizes = [path.stat().st_size for path in paths if path.is_file()]

  def read(start: int) -> Iterator[tuple[Member, int]]:
    numbers, done = itertools.count(), 0

    def fill(member: Member, data: Callable[[], bytes], size: int) -> Member:
      member = member._replace(name=sources.readable(member.name))
      if size > images.MAX_BYTES and not member.error:
        error = f"{size:,} bytes, more than {images.MAX_BYTES:,}"
        member = member._replace(error=error)
      return member if next(numbers) < start else member.read(data)

    for path in paths:
      if path.is_dir():
        for way, entry in image_files.find(str(path), found.passed_over):
          if member := layout(PurePosixPath(way)):
            done += 1
            data = functools.partial(images.read, entry.path)
            yield fill(member, data, 0), done
        continue
      last, wnid = "its begin", sources.wnid_of_tar(path.name)
      how = _of_class(wnid) if wnid else layout
      with contextlib.closing(Stream(path)) as stream:
        try:
          each = _members(stream, how, fill, found.passed_over)
          for member in samples(stream, path, fill) if samples else each:
            last = member.name
            yield member, done + stream.bytes_done()
        except BrokenError as e:
          what = f"{path} is no whole tar archive: behind {last}, {e}"
          if not (wnid or accept_truncated):
            raise UserError(
              f"{what}. Get the file again (compare its size with the "
              "original's), or take what is there with --accept_truncated."
            ) from e
          found.warnings.append(what)
      done += path.stat().st_size

  folders = [f for p in paths if p.is_dir() for f in sources.inside(p)[0]]
  parts = [f for f in folders if f.name.lower() in sources.SPLITS]
  folders += [f for part in parts for f in sources.inside(part)[0]]
  mark = sources.fingerprint([*paths, *folders], *(classes or ()), *more)
  total = sum(sizes) if len(sizes) == len(paths) else 0
  found = Source(sources.some(paths), mark, read, total, sum(sizes), classes)
  return found
