"""A file read forward, unpacked on the way if it is compressed."""

import bz2
import errno
import lzma
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CHUNK = 1 << 17
# No more is unpacked at once, however well it was packed.
_UNPACKED = 1 << 20
# A header of xz may ask for up to 4 GiB; `xz -9` asks for 65 MiB.
_XZ_BYTES = 256 << 20
_COMPRESSIONS: dict[bytes, tuple[str, Callable[[], Any]]] = {
  b"\x1f\x8b\x08": ("gzip", lambda: zlib.decompressobj(31)),
  b"BZh": ("bzip2", bz2.BZ2Decompressor),
  b"\xfd7zXZ\0": (
    "xz",
    lambda: lzma.LZMADecompressor(memlimit=_XZ_BYTES),
  ),
}


class BrokenError(Exception):
  """The file can't be read on; the message says why."""


class Stream:
  """The bytes of a file, unpacked if it is compressed, from first to last.

  Attributes:
    position: of the next byte, in the unpacked file.
    compression: "gzip", "bzip2", "xz", or "" for none; by the content.
    joined: where a tar went on behind an end mark first, 0 if none has.
  """

  def __init__(self, path: Path):
    """Opens the file.

    Raises:
      OSError: it can't be opened, or is no file.
    """
    self.position = self.joined = 0
    status = path.stat()
    # One that waits for a pipe would wait forever.
    if not stat.S_ISREG(status.st_mode):
      raise OSError(errno.EINVAL, "it is no regular file")
    self._size = status.st_size
    # Unbuffered: what is skipped over is not to be read, and the system reads
    # ahead.
    self._file = open(path, "rb", buffering=0)
    begin = self._file.read(8)
    self._file.seek(0)
    self.compression, self._chunks = "", None
    for magic, (name, make) in _COMPRESSIONS.items():
      if begin.startswith(magic):
        self.compression = name
        self._chunks = self._unpack(magic, make)
    self._buffer, self._at = b"", 0

  def __enter__(self) -> "Stream":
    return self

  def __exit__(self, *unused: object) -> None:
    self._file.close()

  @property
  def bytes_done(self) -> int:
    """Of the file as it lies on disk."""
    return self._file.tell()

  def read(self, size: int) -> bytes:
    """Exactly so many bytes.

    Raises:
      BrokenError: there are fewer, or they can't be read.
    """
    parts, missing = [], size
    if self._chunks is None and self.position + size > self._size:
      # Before there is memory for what a damaged header claims.
      raise BrokenError(f"it ends after {self._size:,} bytes")
    while missing:
      part = self._some(missing)
      if not part:
        raise BrokenError(f"it ends after {self._file.tell():,} bytes")
      parts.append(part)
      missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)

  def read_some(self, most: int) -> bytes:
    """Up to so many bytes, fewer only at the end.

    Raises:
      BrokenError: they can't be read.
    """
    found = b""
    while len(found) < most and (part := self._some(most - len(found))):
      found += part
    return found

  def skip_to(self, position: int) -> None:
    """Goes forward, without reading if the file isn't compressed.

    Raises:
      BrokenError: the file ends before.
    """
    if self._chunks is None and position > self.position:
      if position > self._size:
        raise BrokenError(f"it ends after {self._size:,} bytes")
      self.position = self._file.seek(position)
    while self.position < position:
      self.read(min(_CHUNK, position - self.position))

  def drain(self) -> None:
    """Goes to the end of a compressed file, as its checksum is there.

    Raises:
      BrokenError: the checksum isn't that of the content.
    """
    while self._chunks is not None and self._some(_CHUNK):
      pass

  def _some(self, most: int) -> bytes:
    """From 1 to `most` bytes, none at the end."""
    if self._chunks is None:
      try:
        part = self._file.read(most)
      except OSError as e:
        raise BrokenError(f"it can't be read on: {e.strerror}") from e
    else:
      if self._at == len(self._buffer):
        self._buffer, self._at = next(self._chunks, b""), 0
      part = self._buffer[self._at : self._at + most]
      self._at += len(part)
    self.position += len(part)
    return part

  def _unpack(self, magic: bytes, make: Callable[[], Any]) -> Iterator[bytes]:
    unpacker = make()
    try:
      while packed := self._file.read(_CHUNK):
        full = False
        while packed or full:
          if unpacker is None:
            # After the end: another part, or padding.
            packed = packed.lstrip(b"\0")
            if not packed:
              break
            packed += self._file.read(max(0, len(magic) - len(packed)))
            if not packed.startswith(magic):
              raise BrokenError(
                f"behind its {self.compression} data there is something else, "
                f"which begins with {packed[:16]!r}"
              )
            unpacker = make()
          if unpacked := unpacker.decompress(packed, _UNPACKED):
            yield unpacked
          full = len(unpacked) == _UNPACKED
          # What wasn't needed yet: zlib hands it back, the others keep it.
          packed = getattr(unpacker, "unconsumed_tail", b"")
          if unpacker.eof:
            packed, unpacker, full = unpacker.unused_data, None, False
    except OSError as e:
      if e.strerror:
        raise BrokenError(f"it can't be read on: {e.strerror}") from e
      raise BrokenError(self._corrupted(e)) from e  # From bz2.
    except (zlib.error, lzma.LZMAError, EOFError) as e:
      raise BrokenError(self._corrupted(e)) from e
    if unpacker is not None:
      raise BrokenError(
        f"its {self.compression} data end in the middle, after "
        f"{self._file.tell():,} bytes"
      )

  def _corrupted(self, error: Exception) -> str:
    return (
      f"its {self.compression} data are corrupted at or before byte "
      f"{self._file.tell():,} ({error})"
    )
