"""Weights in .npz files: the released ones, and those that are written here.

Older names, which the authors' loader knows (google-research/big_vision,
models/mlp_mixer.py), are read as well.

A file is read with mistrust: nothing in it is run (no pickles), everything is
compared with the zip's CRC-32, and takes no more memory than the arrays.
"""

import contextlib
import hashlib
import io
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mixer import files, weights
from mixer.errors import UserError, first_line

Path = str | os.PathLike[str]
_LARGEST_RATIO = 1_032  # Deflate makes no more bytes than that of one.
_LONGEST_HEADER = 10_000  # As numpy has it.
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
_MLP = r"Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_\d+/(\w+)"
# LayerNorms are numbered in their order, but not always from 0: Flax's older
# interface counted modules of all kinds together.
_NORM = re.compile(r"Mixer/encoderblock_(\d+)/LayerNorm_(\d+)/(.+)")
_OLDER = (
  ("embedding/(.+)", r"stem/\1"),
  ("Mixer/encoder_norm/(.+)", r"pre_head_layer_norm/\1"),
  (_MLP + "1", r"MixerBlock_\1/\2_mixing/Dense_0/\3"),
  (_MLP + "2", r"MixerBlock_\1/\2_mixing/Dense_1/\3"),
)


def load(path: Path) -> dict[str, Any]:
  """Loads the weights in an .npz file of either layout.

  Args:
    path: of the file, whatever its name ends in.

  Returns:
    Nested dict of float32 numpy arrays, in the current layout.

  Raises:
    UserError: not readable, not the weights of a whole Mixer, or not finite.
  """
  arrays, where = _current(read(path), path), f"the weights in {path}"
  weights.shape_of(arrays, where)
  weights.check_finite(arrays, where)
  return weights.unflatten(arrays)


def save(params: weights.Params, path: Path) -> None:
  """Writes an .npz file in the current layout; equal weights, equal bytes.

  Args:
    params: nested dict of float32 arrays, of a whole Mixer.
    path: of the file, ending in .npz; it is there whole or not at all.

  Raises:
    UserError: another name or other weights; the disk refuses.
  """
  path, where = os.path.expanduser(path), f"the weights for {path}"
  if not path.endswith(".npz"):
    raise UserError(f"{path} can't be written: expected a name ending in .npz.")
  weights.shape_of(params, where)
  flat = {k: np.asarray(v) for k, v in weights.flatten(params).items()}
  wrong = [f"{k} is {v.dtype}" for k, v in flat.items() if v.dtype != "float32"]
  if wrong:
    raise UserError(f"{where} are not all float32: {weights.shorten(wrong)}.")
  weights.check_finite(flat, where)
  write(path, flat)


def _current(arrays: dict[str, np.ndarray], path: Path) -> dict[str, Any]:
  """The arrays under current names, without the older MLPs' singleton axes."""
  if not any(k.startswith("Mixer/") for k in arrays):
    return arrays
  norms: dict[str, set[int]] = {}
  for m in filter(None, map(_NORM.fullmatch, arrays)):
    norms.setdefault(m[1], set()).add(int(m[2]))
  found: dict[str, np.ndarray] = {}
  for key, array in arrays.items():
    name = key
    for pattern, new in _OLDER:
      name = re.sub(f"^{pattern}$", new, name)
    if m := _NORM.fullmatch(key):
      rank = sorted(norms[m[1]]).index(int(m[2]))
      name = f"MixerBlock_{m[1]}/LayerNorm_{rank}/{m[3]}"
    if name in found:
      raise UserError(f"{path} holds {name} twice, once as {key}.")
    if "_mixing/" in name:  # Axes in excess, not all: a model may be 1 wide.
      excess = array.ndim - (2 if name.endswith("kernel") else 1)
      ones = [axis for axis, size in enumerate(array.shape) if size == 1]
      array = array.squeeze(tuple(ones[: max(excess, 0)]))
    found[name] = array
  return found


def read(path: Path) -> dict[str, np.ndarray]:
  """All arrays of a file; UserError where it isn't whole."""
  found: dict[str, np.ndarray] = {}
  with _opened(path) as file:
    for info in file.infolist():
      name = info.filename.removesuffix(".npy")
      if name == info.filename or name in found:
        raise UserError(
          f"{path} is a zip file, but not of arrays by name (.npz): it holds "
          f"{info.filename}{' twice' if name in found else ''}."
        )
      with file.open(info) as member:
        start = io.BytesIO(member.read(_LONGEST_HEADER))
      shape, _, dtype = _HEADERS[np.lib.format.read_magic(start)](start)
      if dtype.newbyteorder("=") != np.float32:
        # .npz files don't know bfloat16: it comes as two bytes of no meaning.
        kind = "bfloat16 or the like" if dtype.str == "|V2" else dtype.name
        raise UserError(
          f"{path} holds other arrays than float32: {name} is {kind}. Weights "
          "are loaded as they are; convert them, as by numpy.float32."
        )
      size = start.tell() + math.prod(shape) * dtype.itemsize
      if size != info.file_size or min(shape, default=0) < 0:
        raise ValueError(f"{name} has not the bytes of its shape {shape}")
      with file.open(info) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        member.read(1)  # The CRC is compared where the end is reached.
      # Of one byte order.
      found[name] = array.astype(np.float32, order="K", copy=False)
  if not found:
    raise UserError(f"{path} holds no arrays; expected those of a Mixer.")
  return found


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a file; the same arrays give the same bytes: sorted, undated."""
  with files.atomic_write(path) as f, zipfile.ZipFile(f, "w") as file:
    for name in sorted(arrays):
      info = zipfile.ZipInfo(f"{name}.npy")
      info.create_system = 3  # Else the bytes say where they were written.
      info.external_attr = 0o644 << 16
      with file.open(info, "w", force_zip64=True) as member:
        array = np.ascontiguousarray(arrays[name])
        np.lib.format.write_array(member, array, allow_pickle=False)


def fingerprint(path: Path) -> str:
  """16 hex digits over the names and CRCs of a file's arrays."""
  with _opened(path) as file:
    members = [(m.filename, m.file_size, m.CRC) for m in file.infolist()]
    return hashlib.sha256(repr(sorted(members)).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
  """Opens the zip; makes sentences of what goes wrong while it is open."""
  start = b""
  try:
    with files.open_regular(path) as f, warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Of numpy, about headers of older kinds.
      start = f.read(16)
      with zipfile.ZipFile(f) as file:
        left = os.fstat(f.fileno()).st_size
        for info in file.infolist():  # Before memory is taken.
          left -= info.compress_size
          most = _LARGEST_RATIO * (info.compress_size + 1)
          packed = info.compress_type not in (0, zipfile.ZIP_DEFLATED)
          if left < 0 or info.file_size > most or packed:
            raise ValueError(f"{info.filename} claims more than there is")
        yield file
  except UserError:
    raise
  except (OSError, MemoryError) as e:
    raise UserError(
      f"{path} can't be read: {files.reason(e)}. Expected an .npz file."
    ) from e
  # zipfile and numpy raise anything at bytes that aren't as they should be.
  except Exception as e:
    what = f"is no .npz file, as it begins with {start!r}"
    if start.startswith(b"PK"):
      what = "is cut off or damaged; fetch or write it anew"
    raise UserError(f"{path} {what}: {first_line(e)}.") from e
