"""Reads tar archives in one pass, also one within the other, in flat memory.

Python's `tarfile` keeps every header that it has seen, takes a damaged header
for the end of the archive, and doesn't tell an archive that was cut off between
two files from a whole one. Here its headers are parsed by `TarInfo.frombuf`,
and all of these are told.
"""

import dataclasses
import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from mixer.datasets.sources import byte_stream

_BLOCK = 512
_END = bytes(_BLOCK)
# Of names and the like; longer ones are taken for damage.
_MAX_HEADER = 1 << 20
# How a record of an extended header begins.
_LENGTH = re.compile(rb"([0-9]{1,7}) ")


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
    problem: why its bytes aren't those of the file, "" if they are.
  """

  name: str
  size: int
  end: int
  problem: str = ""


class _Said(NamedTuple):
  """What special headers say of the next entry."""

  name: str = ""
  size: int = -1
  sparse: bool = False


def entries(
  stream: byte_stream.Stream, end: int | None = None
) -> Iterator[Entry]:
  """The files of the archive that begins where the stream stands.

  Archives may follow one another, as `cat a.tar b.tar` has them: behind an end
  mark there is nothing but zeros, or the next one.

  When an entry is handed out the stream stands at its first byte; the next one
  is found from wherever in the entry the stream has been moved to.

  Args:
    stream: read forward.
    end: place in the stream where an archive within another one ends.

  Raises:
    DamagedError: a damaged header, or the archive goes on beyond `end`.
    BrokenError: the stream ends or breaks in the middle.
  """
  said = _Said()
  while True:
    block = _block(stream, end, "it ends without an end mark")
    where = ""
    if block == _END:
      if said != _Said():
        raise DamagedError("it ends behind the long name of a file", said.name)
      where = ", behind an end mark,"
      while not block.strip(b"\0"):
        most = _BLOCK if end is None else min(_BLOCK, end - stream.position)
        block = stream.read_some(most)
        if not block:
          return
    try:
      info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as e:
      raise DamagedError(
        f"there is no header of a file{where} at byte "
        f"{stream.position - len(block):,}, but {block[:16]!r}"
      ) from e
    if where:
      stream.joined = stream.joined or stream.position - _BLOCK
    if info.type in _SPECIAL:
      said = _special(stream, info, end, said)
      continue
    more = info.type == tarfile.GNUTYPE_SPARSE and block[482]
    while more:  # Its map goes on in blocks of its own.
      more = _block(stream, end, "it ends in the middle of a header")[504]
    name = said.name or info.name
    # Directories, links and devices may claim a size and have no content.
    has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
    size = (info.size if said.size < 0 else said.size) if has_data else 0
    after = stream.position + size
    if size < 0:
      raise DamagedError(f"a header gives a size of {size}", name)
    _check_room(after, end, f"it ends in the middle of {name}", name)
    if info.isreg() or info.islnk() or info.issym():
      problem = ""
      if not info.isreg():
        problem = "a link inside of the archive, without content of its own"
      elif said.sparse or info.type == tarfile.GNUTYPE_SPARSE:
        problem = "stored as a sparse file; pack it anew without --sparse"
      yield Entry(name, size, after, problem)
    said = _Said()
    padded = after + -size % _BLOCK
    stream.skip_to(padded if end is None else min(padded, end))


_SPECIAL = (
  tarfile.GNUTYPE_LONGNAME,
  tarfile.GNUTYPE_LONGLINK,
  tarfile.XHDTYPE,
  tarfile.XGLTYPE,
  tarfile.SOLARIS_XHDTYPE,
)


def _block(stream: byte_stream.Stream, end: int | None, sentence: str) -> bytes:
  _check_room(stream.position + _BLOCK, end, sentence)
  return stream.read(_BLOCK)


def _check_room(
  position: int, end: int | None, sentence: str, name: str = ""
) -> None:
  if end is not None and position > end:
    raise DamagedError(sentence, name)


def _special(
  stream: byte_stream.Stream,
  info: tarfile.TarInfo,
  end: int | None,
  said: _Said,
) -> _Said:
  """Reads what is said of the next entry: its long name, its large size."""
  padded = info.size + -info.size % _BLOCK
  if not 0 <= info.size <= _MAX_HEADER:
    raise DamagedError(f"a header claims to have {info.size:,} bytes")
  _check_room(
    stream.position + padded, end, "it ends in the middle of a header"
  )
  content = stream.read(padded)[: info.size]
  if info.type == tarfile.GNUTYPE_LONGNAME:
    return said._replace(name=_text(content.partition(b"\0")[0]))
  if info.type not in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
    return said
  records = _pax(content)
  path = records.get(b"GNU.sparse.name") or records.get(b"path", b"")
  size = records.get(b"size")
  # Of Python's int, which takes spaces, signs and underscores, too.
  if size is not None and not re.fullmatch(rb"[0-9]{1,20}", size):
    raise DamagedError(f"a header has a size that is no number: {size[:20]!r}")
  return _Said(
    _text(path) or said.name,
    said.size if size is None else int(size),
    any(key.startswith(b"GNU.sparse.") for key in records),
  )


def _text(name: bytes) -> str:
  return name.decode("utf-8", "surrogateescape")


def _pax(content: bytes) -> dict[bytes, bytes]:
  """The records "LENGTH KEY=VALUE" of an extended header."""
  records, at = {}, 0
  content = content.rstrip(b"\0")
  while at < len(content):
    found = _LENGTH.match(content, at)
    end = at + int(found[1]) if found else 0
    if not found or not found.end() <= end <= len(content):
      raise DamagedError("an extended header is damaged")
    key, _, value = content[found.end() : end - 1].partition(b"=")
    records[key] = value
    at = end
  return records
