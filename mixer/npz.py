"""Files of float32 arrays (.npz): read with mistrust, written whole.

An .npz file is a zip of .npy files. What is read never runs code (no pickles),
is checked against the zip's CRC-32, and takes no more memory than the arrays.
"""

import contextlib
import lzma
import math
import os
import pathlib
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np

from mixer import weights
from mixer.errors import UserError

# What zipfile and numpy raise at bytes that aren't as they should be.
_DAMAGE = (
  zipfile.BadZipFile,
  zlib.error,
  lzma.LZMAError,
  struct.error,
  EOFError,
  ValueError,
  NotImplementedError,
  RuntimeError,  # An encrypted member.
)


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
        # The CRC is compared at the end, which must have been reached.
        if member.read(1):
          raise ValueError(f"{name} has bytes behind its values")
      arrays[name] = array
  return arrays


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a file that is there whole or not at all.

  The same arrays give the same bytes: sorted by name, without a date.

  Args:
    path: of the file; one that is there is replaced.
    arrays: by name.

  Raises:
    UserError: its folder isn't there, or the disk refuses.
  """
  part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
  try:
    with open(part, "xb") as f:
      with zipfile.ZipFile(f, "w") as file:
        for name in sorted(arrays):
          info = zipfile.ZipInfo(f"{name}.npy")
          info.create_system = 3  # Else the bytes say where they were written.
          info.external_attr = 0o644 << 16
          with file.open(info, "w", force_zip64=True) as member:
            np.lib.format.write_array(
              member, np.ascontiguousarray(arrays[name]), allow_pickle=False
            )
      f.flush()
      os.fsync(f.fileno())
    part.replace(path)
  except OSError as e:
    why = e.strerror or str(e)
    if not path.parent.is_dir():
      why = f"there is no folder {path.parent}; make it first"
    raise UserError(f"{path} can't be written: {why}.") from e
  finally:
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)
  sync(path.parent)


def sync(folder: pathlib.Path) -> None:
  """Waits until a folder's names are on the disk, if that can be waited for."""
  with contextlib.suppress(OSError):
    handle = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
  """Opens the zip; makes sentences of what goes wrong while it is open."""
  try:
    with open(path, "rb") as f:
      start = f.read(64)
      try:
        with zipfile.ZipFile(f) as file:
          _check_count(f, file)
          yield file
      except _DAMAGE as e:
        raise UserError(f"{path} {_what(start)}: {_says(e)}.") from e
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


def _says(error: Exception) -> str:
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200].rstrip(".")


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
    with file.open(info) as member:
      version = np.lib.format.read_magic(member)
      if version == (1, 0):
        header = np.lib.format.read_array_header_1_0(member)
      else:
        header = np.lib.format.read_array_header_2_0(member)
      shape, _, dtype = header
      size = member.tell() + math.prod(shape) * dtype.itemsize
      if dtype.hasobject:
        raise UserError(
          f"{path} holds Python objects ({name}), which are never loaded: "
          "they could run code. Expected float32 arrays."
        )
      if dtype != np.float32:
        wrong.append(f"{name} is {_dtype(dtype)}")
      elif size != info.file_size:
        # Before memory is taken for a shape that may be a flipped bit.
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


def _dtype(dtype: np.dtype) -> str:
  # .npz files don't know bfloat16: it comes as two bytes of unknown meaning.
  return "bfloat16 or the like" if dtype.str == "|V2" else dtype.name
