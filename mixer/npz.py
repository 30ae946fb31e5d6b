"""Files of float32 arrays (.npz): read with mistrust, written whole.

An .npz file is a zip of .npy files. What is read never runs code (no pickles),
is checked against the zip's CRC-32, and takes no more memory than the arrays.
"""

import contextlib
import hashlib
import math
import os
import pathlib
import stat
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, BinaryIO

import numpy as np

from mixer import files, weights
from mixer.errors import UserError, first_line

# A header of numpy's has about 100 bytes; numpy itself refuses over 10,000.
_LONGEST_HEADER = 10_000
# Deflate makes no more bytes than that of one.
_LARGEST_RATIO = 1_032


def shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
  """`{"stem/kernel": (16, 16, 3, 768), ...}`, without reading the values.

  Args:
    path: of the file, whatever its name ends in.

  Raises:
    UserError: not there, no .npz, cut off, or of other arrays than float32.
  """
  with _opened(path) as file:
    return _shapes(path, file)


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads all arrays, in the file's order.

  Raises:
    UserError: as for `shapes`; or a value isn't what was written.
  """
  arrays = {}
  with _opened(path) as file:
    for name in _shapes(path, file):
      with file.open(f"{name}.npy") as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        array = array.astype(np.float32, order="K", copy=False)  # Byte order.
        # The CRC is compared at the end, which must have been reached.
        if member.read(1):
          raise ValueError(f"{name} has bytes behind its values")
      arrays[name] = array
  return arrays


def fingerprint(path: pathlib.Path) -> str:
  """Tells files of other arrays apart, by the zip's own CRCs: 16 hex digits.

  The bytes of every array count, but not how they are packed.

  Raises:
    UserError: it can't be read, or is no zip.
  """
  with _opened(path) as file:
    members = [(m.filename, m.file_size, m.CRC) for m in file.infolist()]
    return hashlib.sha256(repr(sorted(members)).encode()).hexdigest()[:16]


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a file that is there whole or not at all.

  The same arrays give the same bytes: sorted by name, without a date.

  Args:
    path: of the file; one that is there is replaced.
    arrays: by name.

  Raises:
    UserError: its folder isn't there, or the disk refuses.
  """
  with files.atomic_write(path) as f, zipfile.ZipFile(f, "w") as file:
    for name in sorted(arrays):
      info = zipfile.ZipInfo(f"{name}.npy")
      info.create_system = 3  # Else the bytes say where they were written.
      info.external_attr = 0o644 << 16
      with file.open(info, "w", force_zip64=True) as member:
        np.lib.format.write_array(
          member, np.ascontiguousarray(arrays[name]), allow_pickle=False
        )


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
  """Opens the zip; makes sentences of what goes wrong while it is open."""
  try:
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # A pipe may hang.
      raise OSError("it is no regular file")
    with open(path, "rb") as f, warnings.catch_warnings():
      # Of numpy and the parser that it uses, about headers of older kinds.
      warnings.simplefilter("ignore")
      start = f.read(64)
      try:
        with zipfile.ZipFile(f) as file:
          _check_count(f, file)
          yield file
      except (UserError, OSError):
        raise
      except MemoryError as e:
        raise UserError(
          f"{path} can't be read: its arrays take more memory than there is."
        ) from e
      # zipfile and numpy raise anything at bytes that aren't as they should be.
      except Exception as e:
        raise UserError(f"{path} {_what(start)}: {first_line(e)}.") from e
  except OSError as e:
    raise UserError(
      f"{path} can't be read: {e.strerror or e}. Expected an .npz file."
    ) from e


def _check_count(f: BinaryIO, file: zipfile.ZipFile) -> None:
  # zipfile doesn't: a flipped bit in the length of a member's comment can
  # swallow the member behind it.
  f.seek(-22 - len(file.comment), os.SEEK_END)
  (count,) = struct.unpack("<10xH10x", f.read(22))
  if count not in (len(file.infolist()), 0xFFFF):  # The latter in zip64.
    raise ValueError(f"{len(file.infolist())} of {count} arrays are found")


def _what(start: bytes) -> str:
  """What is wrong with a file that begins so."""
  if start.startswith(b"PK"):
    return "is cut off or damaged; fetch or write it anew"
  if start.startswith(b"\x93NUMPY"):
    return "is a single array (.npy) where an .npz file was expected"
  if start.lstrip().startswith(b"<"):
    return "is a web page where an .npz file was expected"
  if not start:
    return "is empty where an .npz file was expected"
  return f"is no .npz file, as it begins with {start[:16]!r}"


def _shapes(
  path: pathlib.Path, file: zipfile.ZipFile
) -> dict[str, tuple[int, ...]]:
  """Reads every array's header; refuses what `read` wouldn't take."""
  members = file.namelist()
  others = [m for m in members if not m.endswith(".npy")]
  if others or not members:
    holds = weights.shorten(others) or "nothing"
    raise UserError(
      f"{path} is a zip file, but not of arrays (.npz): it holds {holds}."
    )
  twice = sorted({m for m in members if members.count(m) > 1})
  if twice:
    raise UserError(
      f"{path} holds arrays of the same name: {weights.shorten(twice)}."
    )
  found, wrong = {}, []
  for info in file.infolist():
    name = info.filename.removesuffix(".npy")
    # Before memory is taken for what may be a flipped bit, or is meant to fill
    # it.
    if info.file_size > _LARGEST_RATIO * (info.compress_size + 1):
      raise ValueError(f"{name} can't be as long as it claims")
    with file.open(info) as member:
      shape, dtype = _header(member, name)
      size = member.tell() + math.prod(shape) * dtype.itemsize
      if dtype.hasobject:
        raise UserError(
          f"{path} holds Python objects ({name}), which are never loaded: "
          "they could run code. Expected float32 arrays."
        )
      if dtype.newbyteorder("=") != np.float32:
        wrong.append(f"{name} is {_dtype(dtype)}")
      elif size != info.file_size:
        raise ValueError(
          f"{name} has {info.file_size} bytes, and {size} for its shape {shape}"
        )
      found[name] = shape
  if wrong:
    raise UserError(
      f"{path} holds arrays that are not float32: {weights.shorten(wrong)}. "
      "Weights are loaded as they are, so convert them first, as with "
      "numpy.float32."
    )
  return found


def _header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and dtype of an array; goes on to its values."""
  version = np.lib.format.read_magic(member)
  short = version == (1, 0)
  start = member.tell()
  (length,) = struct.unpack("<H" if short else "<I", member.read(4 - 2 * short))
  if length > _LONGEST_HEADER:
    raise ValueError(f"{name} claims a header of {length:,} bytes")
  member.seek(start)
  read = (
    np.lib.format.read_array_header_1_0
    if short
    else np.lib.format.read_array_header_2_0
  )
  shape, _, dtype = read(member)
  if version > (3, 0) or min(shape, default=0) < 0:
    raise ValueError(f"{name} has the header {version}, {shape}")
  return shape, dtype


def _dtype(dtype: np.dtype) -> str:
  # .npz files don't know bfloat16: it comes as two bytes of unknown meaning.
  return "bfloat16 or the like" if dtype.str == "|V2" else dtype.name
