"""Reads tar archives in one pass, also one within the other, in flat memory.

Python's `tarfile` keeps every header that it has seen, takes a damaged header
for the end of the archive, and doesn't tell an archive that was cut off between
two files from a whole one. Here its headers are parsed by `TarInfo.frombuf`,
and all of these are told.
"""

import dataclasses
import tarfile
from collections.abc import Iterator

from mixer.datasets.sources import byte_stream

_BLOCK = 512
_END = bytes(_BLOCK)
# Of names and the like; longer ones are taken for damage.
_MAX_HEADER = 1 << 20


class DamagedError(Exception):
  """The archive's structure is damaged; the message says how.

  Attributes:
    name: of the file in it that is lost, if one is known.
  """

  def __init__(self, message: str, name: str = ""):
    super().__init__(message)
    self.name = name


@dataclasses.dataclass(frozen=True)
class Entry:
  """A file in an archive; what is no file is passed over.

  Attributes:
    name: with folders; bytes that aren't UTF-8 by surrogates.
    size: bytes.
    end: place in the stream after its last byte.
    is_link: a hard or symbolic link, without content.
  """

  name: str
  size: int
  end: int
  is_link: bool


def entries(
  stream: byte_stream.Stream, end: int | None = None
) -> Iterator[Entry]:
  """The files of the archive that begins where the stream stands.

  When an entry is handed out the stream stands at its first byte; the next one
  is found from wherever in the entry the stream has been moved to.

  Args:
    stream: read forward.
    end: place in the stream where an archive within another one ends.

  Raises:
    DamagedError: a damaged header, or the archive goes on beyond `end`.
    BrokenError: the stream ends or breaks in the middle.
  """
  long_name, long_size = "", -1
  while True:
    start = stream.position
    _check_room(start + _BLOCK, end, "it ends without an end mark")
    block = stream.read(_BLOCK)
    if block == _END:
      return
    try:
      info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as e:
      raise DamagedError(
        f"there is no header of a file at byte {start:,}, but {block[:16]!r}"
      ) from e
    if info.type in _SPECIAL:
      long_name, long_size = _special(stream, info, end, long_name, long_size)
      continue
    name = long_name or info.name
    # Directories, links and devices may claim a size and have no content.
    has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
    size = (info.size if long_size < 0 else long_size) if has_data else 0
    long_name, long_size = "", -1
    after = stream.position + size
    if size < 0:
      raise DamagedError(f"a header gives a size of {size}", name)
    _check_room(after, end, f"it ends in the middle of {name}", name)
    if info.isreg() or info.islnk() or info.issym():
      yield Entry(name, size, after, not info.isreg())
    padded = after + -size % _BLOCK
    stream.skip_to(padded if end is None else min(padded, end))


_SPECIAL = (
  tarfile.GNUTYPE_LONGNAME,
  tarfile.GNUTYPE_LONGLINK,
  tarfile.XHDTYPE,
  tarfile.XGLTYPE,
  tarfile.SOLARIS_XHDTYPE,
)


def _check_room(
  position: int, end: int | None, sentence: str, name: str = ""
) -> None:
  if end is not None and position > end:
    raise DamagedError(sentence, name)


def _special(
  stream: byte_stream.Stream,
  info: tarfile.TarInfo,
  end: int | None,
  name: str,
  size: int,
) -> tuple[str, int]:
  """Reads what is said of the next entry: its long name, its large size."""
  padded = info.size + -info.size % _BLOCK
  if not 0 <= info.size <= _MAX_HEADER:
    raise DamagedError(f"a header claims to have {info.size:,} bytes")
  _check_room(
    stream.position + padded, end, "it ends in the middle of a header"
  )
  content = stream.read(padded)[: info.size]
  if info.type == tarfile.GNUTYPE_LONGNAME:
    name = _text(content.partition(b"\0")[0])
  elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
    records = _pax(content)
    name = _text(records.get(b"path", b"")) or name
    try:
      size = int(records.get(b"size", size))
    except ValueError as e:
      raise DamagedError("a header has a size that is no number") from e
  return name, size


def _text(name: bytes) -> str:
  return name.decode("utf-8", "surrogateescape")


def _pax(content: bytes) -> dict[bytes, bytes]:
  """The records "LENGTH KEY=VALUE" of an extended header."""
  records = {}
  while content.strip(b"\0"):
    length, _, _ = content.partition(b" ")
    if not length.isdigit() or not len(length) < int(length) <= len(content):
      raise DamagedError("an extended header is damaged")
    key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
    records[key] = value
    content = content[int(length) :]
  return records
