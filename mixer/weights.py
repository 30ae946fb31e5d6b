"""Trees of weights, the shape of their model, and .npz files of them.

Names are those of the released checkpoints, '/'-joined:
`MixerBlock_0/token_mixing/Dense_0/kernel`; an older dialect of the authors' is
read as well. A file is read with mistrust: no pickles, every CRC-32 compared,
no more memory than its arrays take.
"""

import contextlib
import dataclasses
import hashlib
import io
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mixer import files
from mixer.errors import UserError

# A nested dict of arrays.
Params = Mapping[str, Any]

_LARGEST_RATIO = 1_032  # Deflate makes no more bytes than that of one.
_MIXING = r"Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_\d+/(\w+)"
# Names that the authors' loader knows (big_vision, models/mlp_mixer.py).
_OLDER = {
  "embedding/(.+)": r"stem/\1",
  "Mixer/encoder_norm/(.+)": r"pre_head_layer_norm/\1",
  r"Mixer/encoderblock_(\d+)/(LayerNorm_.+)": r"MixerBlock_\1/\2",
  f"{_MIXING}1": r"MixerBlock_\1/\2_mixing/Dense_0/\3",
  f"{_MIXING}2": r"MixerBlock_\1/\2_mixing/Dense_1/\3",
}


@dataclasses.dataclass(frozen=True)
class Shape:
  """The shape of a Mixer, as its weights have it."""

  patch_size: int  # P, in pixels.
  num_blocks: int
  hidden_dim: int  # C
  tokens_mlp_dim: int  # T
  channels_mlp_dim: int  # F
  num_tokens: int  # S
  num_classes: int  # K; 0 without a head.


def flatten(params: Params) -> dict[str, Any]:
  """`{"stem/kernel": array, ...}` of a nested dict."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The nested dict of which `flatten` gives `flat`."""
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *groups, last = name.split("/")
    place = tree
    for group in groups:
      place = place.setdefault(group, {})
    place[last] = leaf
  return tree


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
  """`{"stem/kernel": (4, 4, 3, 128), ...}` of a tree of arrays or the like."""
  return {k: tuple(v.shape) for k, v in flatten(params).items()}


def mismatches(
  found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> list[str]:
  """One line for each parameter that is missing, unexpected or misshapen."""
  lines = []
  for k in sorted(found.keys() | wanted.keys()):
    if k not in found:
      lines.append(f"{k} {wanted[k]} is missing")
    elif k not in wanted:
      lines.append(f"{k} {found[k]} is unexpected")
    elif found[k] != wanted[k]:
      lines.append(f"{k} is {found[k]} there and {wanted[k]} here")
  return lines


def shorten(lines: list[str]) -> str:
  """The first eight, and how many more there are."""
  more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
  return "; ".join(lines[:8]) + more


def expected(shape: Shape) -> dict[str, tuple[int, ...]]:
  """Name and shape of every parameter of a model."""
  p, c, k = shape.patch_size, shape.hidden_dim, shape.num_classes
  s, t, f = shape.num_tokens, shape.tokens_mlp_dim, shape.channels_mlp_dim
  groups = {"stem": (p, p, 3, c), "pre_head_layer_norm": (c,)}
  for i in range(shape.num_blocks):
    groups |= {
      f"MixerBlock_{i}/LayerNorm_0": (c,),
      f"MixerBlock_{i}/token_mixing/Dense_0": (s, t),
      f"MixerBlock_{i}/token_mixing/Dense_1": (t, s),
      f"MixerBlock_{i}/LayerNorm_1": (c,),
      f"MixerBlock_{i}/channel_mixing/Dense_0": (c, f),
      f"MixerBlock_{i}/channel_mixing/Dense_1": (f, c),
    }
  groups |= {"head": (c, k)} if k else {}
  found = {f"{name}/bias": axes[-1:] for name, axes in groups.items()}
  for name, axes in groups.items():
    found[f"{name}/{'kernel' if len(axes) > 1 else 'scale'}"] = axes
  return found


def shape_of(params: Params, where: str = "these weights") -> Shape:
  """The shape of the Mixer of which these are all weights; else UserError."""
  found = shapes(params)
  blocks = {k.split("/")[0] for k in found if k.startswith("MixerBlock_")}
  lines = [f"there are {shorten(sorted(found)) or 'none'}"]
  with contextlib.suppress(KeyError, ValueError):
    p, _, _, c = found["stem/kernel"]
    s, t = found["MixerBlock_0/token_mixing/Dense_0/kernel"]
    _, f = found["MixerBlock_0/channel_mixing/Dense_0/kernel"]
    _, k = found.get("head/kernel", (c, 0))
    shape = Shape(p, len(blocks), c, t, f, s, k)
    if not (lines := mismatches(found, expected(shape))):
      return shape
  raise UserError(
    f"{where} are not those of a whole MLP-Mixer: {shorten(lines)}."
  )


def not_finite(params: Params) -> list[str]:
  """The names of the parameters that hold a NaN or an infinity."""
  leaves = flatten(params).items()
  return [k for k, leaf in leaves if not np.isfinite(np.asarray(leaf)).all()]


def check_finite(params: Params, where: str) -> None:
  """Refuses NaNs and infinities, naming the parameters."""
  if broken := not_finite(params):
    raise UserError(
      f"{where}: there are NaNs or infinities in {shorten(broken)}; take "
      "weights of an earlier checkpoint."
    )


def digest(params: Params) -> str:
  """SHA-256 over all parameters, in a stated order.

  For each leaf, ordered by its '/'-joined name: the name, its dtype and its
  shape as `name dtype (shape)` in UTF-8, a zero byte, then its values in C
  order, little-endian.
  """
  sha = hashlib.sha256()
  for name, leaf in sorted(flatten(params).items()):
    leaf = np.asarray(leaf)
    leaf = np.asarray(leaf, leaf.dtype.newbyteorder("<"), order="C")
    sha.update(f"{name} {leaf.dtype.name} {leaf.shape}".encode() + b"\0")
    sha.update(leaf.tobytes())
  return sha.hexdigest()


def load(path: files.Path) -> dict[str, Any]:
  """Loads the weights in an .npz file of either dialect.

  Args:
    path: of the file, whatever its name ends in.

  Returns:
    Nested dict of float32 numpy arrays, under the current names.

  Raises:
    UserError: not readable, not the weights of a whole Mixer, or not finite.
  """
  arrays, where = _current(read(path)), f"the weights in {path}"
  shape_of(arrays, where)
  check_finite(arrays, where)
  return unflatten(arrays)


def save(params: Params, path: files.Path) -> None:
  """Writes an .npz file under the current names; equal weights, equal bytes.

  Args:
    params: nested dict of arrays, of a whole Mixer; written as float32.
    path: of the file; it is there whole or not at all.

  Raises:
    UserError: other weights; the disk refuses.
  """
  flat = {k: np.asarray(v, np.float32) for k, v in flatten(params).items()}
  shape_of(flat, where := f"the weights for {path}")
  check_finite(flat, where)
  write(os.path.expanduser(path), flat)


def _current(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays under current names, without the older MLPs' singleton axes."""
  if not any(name.startswith("Mixer/") for name in arrays):
    return arrays
  found = {}
  for name, array in arrays.items():
    for older, current in _OLDER.items():
      name = re.sub(f"^{older}$", current, name)
    found[name] = array.squeeze() if "_mixing/" in name else array
  # Flax's older interface counted a block's modules of all kinds together.
  norm = re.compile(r"/LayerNorm_(\d+)/")
  numbers = {int(n) for name in found for n in norm.findall(name)}
  rank = {str(n): f"/LayerNorm_{i}/" for i, n in enumerate(sorted(numbers))}
  return {norm.sub(lambda m: rank[m[1]], k): v for k, v in found.items()}


def read(path: files.Path) -> dict[str, np.ndarray]:
  """All arrays of an .npz file; UserError where it isn't whole."""
  with _opened(path) as file:
    return {
      info.filename.removesuffix(".npy"): _array(file, info)
      for info in file.infolist()
    }


def _array(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  with file.open(info) as member:
    start = io.BytesIO(member.read(10_000))  # More is no header to numpy.
  np.lib.format.read_magic(start)
  shape, _, dtype = np.lib.format.read_array_header_1_0(start)
  size = start.tell() + math.prod(shape) * 4
  if dtype.newbyteorder("=") != np.float32 or size != info.file_size:
    raise ValueError(f"{info.filename} is {dtype.name} of {info.file_size} B")
  with file.open(info) as member:
    array = np.lib.format.read_array(member, allow_pickle=False)
    member.read(1)  # The CRC is compared where the end is reached.
  return array.astype(np.float32, order="K", copy=False)


def write(path: files.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a file; the same arrays give the same bytes: sorted, undated."""
  with files.atomic_write(path) as f, zipfile.ZipFile(f, "w") as file:
    for name in sorted(arrays):
      info = zipfile.ZipInfo(f"{name}.npy")
      info.create_system = 3  # Else the bytes say where they were written.
      info.external_attr = 0o644 << 16
      with file.open(info, "w", force_zip64=True) as member:
        array = np.ascontiguousarray(arrays[name])
        np.lib.format.write_array(member, array, allow_pickle=False)


def fingerprint(path: files.Path) -> str:
  """16 hex digits over the names and CRCs of a file's arrays."""
  with _opened(path) as file:
    members = [(m.filename, m.file_size, m.CRC) for m in file.infolist()]
    return hashlib.sha256(repr(sorted(members)).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _opened(path: files.Path) -> Iterator[zipfile.ZipFile]:
  """Opens the zip; whatever goes wrong while it is open is one sentence."""
  try:
    with files.open_regular(path) as f, zipfile.ZipFile(f) as file:
      left = os.fstat(f.fileno()).st_size
      for info in file.infolist():  # Before memory is taken.
        left -= info.compress_size
        most = _LARGEST_RATIO * (info.compress_size + 1)
        packed = info.compress_type not in (0, zipfile.ZIP_DEFLATED)
        if left < 0 or info.file_size > most or packed:
          raise ValueError(f"{info.filename} claims more than there is")
      yield file
  # zipfile and numpy raise anything at bytes that aren't as they should be.
  except Exception as e:
    raise UserError(
      f"{path} is no .npz file of float32 arrays, or it is damaged "
      f"({files.reason(e)}); fetch or write it anew."
    ) from e
