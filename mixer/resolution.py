"""Weights of a trained model for images of another size.

The patch size stays, so another image size is another number of tokens S.
Only token mixing depends on S: `Dense_0/kernel` (S, T), `Dense_1/kernel`
(T, S) and `Dense_1/bias` (S,) of every block; tokens are in raster order.
Three methods:

- "tiles": the paper's (appendix C), for sizes that are whole multiples. The
  new image is cut into Ky x Kx tiles of the old size, and each has a copy of
  the old token MLP to itself: block-diagonal kernels, T times Ky * Kx.
  Pre-logits are the mean of those of the tiles in the old model.
- "interleaved": ours. As above, but copy (a, b) sees the tokens of rows a,
  a + Ky, ... and columns b, b + Kx, ...: the whole image, coarsely. Pre-logits
  are the mean of those of the images that are put together of such patches.
- "resample": ours, for every size, larger or smaller. T stays. The new token
  MLP is the old one, which gets its input resampled to the old grid, and whose
  output is resampled to the new one.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mixer import weights
from mixer.errors import UserError

METHODS = ("tiles", "interleaved", "resample")
_SAID = {
  "tiles": "tiled from {} to {} tokens (paper, appendix C)",
  "interleaved": "interleaved from {} to {} tokens (ours, not the paper's)",
  "resample": "resampled from {} to {} tokens (ours, not in the paper)",
}

# Pixels: a side of a square, or (height, width).
Size = int | Sequence[int]
# Rows and columns of tokens.
Grid = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Change:
  """What `resize` is to do: by a method, from a grid of tokens to another."""

  method: str
  old: Grid
  new: Grid

  @property
  def factors(self) -> Grid:
    """(Ky, Kx): T grows by their product."""
    if self.method == "resample":
      return 1, 1
    return self.new[0] // self.old[0], self.new[1] // self.old[1]

  def sentence(self, width: int) -> str:
    """What is done to a token MLP of that width; "" where nothing changes."""
    if self.old == self.new:
      return ""
    copies = math.prod(self.factors)
    change = (
      f" stays {width}" if copies == 1 else f" {width} -> {width * copies}"
    )
    how = _SAID[self.method].format(_text(self.old), _text(self.new))
    return f"token mixing {how}: token MLP width{change}"


def resize(
  params: weights.Params,
  image_size: Size = 448,
  method: str = "tiles",
  from_size: Size | None = None,
) -> dict[str, Any]:
  """The weights of the same model for images of another size.

  Args:
    params: nested dict of a whole Mixer's arrays, with or without a head.
    image_size: of the new model, in pixels: a side, or (height, width).
    method: one of `METHODS`; "" for "tiles" where it can be, else "resample".
    from_size: the size that the weights are for; None for a square.

  Returns:
    Nested dict of float32 numpy arrays. Those that stay as they are share
    memory with `params` where they were float32 numpy arrays there.

  Raises:
    UserError: no Mixer's weights, or a size or method that can't be.
  """
  change = plan(weights.shape_of(params), image_size, method, from_size)
  out = {}
  for name, leaf in weights.flatten(params).items():
    array = np.asarray(leaf, np.float32)
    if change.old != change.new and "/token_mixing/" in name:
      resized = _resampled if change.method == "resample" else _copied
      array = resized(name.split("/token_mixing/")[1], array, change)
    out[name] = array
  return weights.unflatten(out)


def plan(
  shape: weights.Shape,
  image_size: Size,
  method: str = "",
  from_size: Size | None = None,
) -> Change:
  """What `resize` does, for the same arguments; `shape` is the weights'."""
  if method not in ("", *METHODS):
    raise UserError(
      f"init_resize={method!r} is no method to fit weights to another image "
      f"size; it is one of {', '.join(METHODS)}, or empty for the one that "
      "suits the size."
    )
  new = _grid(shape, image_size, "image_size")
  side = math.isqrt(shape.num_tokens)
  old = side, side
  if from_size is not None:
    old = _grid(shape, from_size, "from_size")
  elif side * side != shape.num_tokens:
    old = new  # The new size may well be the old one.
  if math.prod(old) != shape.num_tokens:
    raise UserError(
      f"the weights are for {shape.num_tokens} tokens, and from_size="
      f"{from_size} has another number: give the size, or (height, width), in "
      "pixels that they were trained at as from_size."
    )
  whole = new[0] % old[0] == new[1] % old[1] == 0
  if method not in ("", "resample") and not whole:
    raise UserError(
      f"init_resize={method} needs an image_size that is a whole multiple, on "
      f"either axis, of the one that the weights are for: they have "
      f"{_text(old)} tokens of {shape.patch_size} px, and image_size="
      f"{image_size} has {_text(new)}. Any size works with "
      "--config.init_resize=resample."
    )
  return Change(method or ("tiles" if whole else "resample"), old, new)


def check_patch(
  shape: weights.Shape, patch_size: int, where: str = "these weights"
) -> None:
  """Refuses weights of another patch size, which no method here changes."""
  if shape.patch_size != patch_size:
    raise UserError(
      f"{where} have patches of {shape.patch_size} px and the model is to have "
      f"{patch_size} px: weights can be fitted to another image size, but not "
      f"to another patch size. Take a model.variant that ends in "
      f"/{shape.patch_size}, or weights with patches of {patch_size} px."
    )


def _grid(shape: weights.Shape, size: Size, name: str) -> Grid:
  """Rows and columns of tokens of an image."""
  height, width = pixels(size, name)
  patch = shape.patch_size
  for side in (height, width):
    if side % patch:
      below = side // patch * patch
      near = f"{below} or {below + patch}" if below else str(patch)
      raise UserError(
        f"{name}={size}: {side} px is no multiple of the model's patch, "
        f"{patch} px. Nearest: {near}."
      )
  return height // patch, width // patch


def pixels(size: Size, name: str = "image_size") -> tuple[int, int]:
  """(height, width) of a side, or of both; UserError on `name` if neither."""
  try:
    both = size if np.ndim(size) else (size, size)
    height, width = map(operator.index, both)  # type: ignore[arg-type]
  except (TypeError, ValueError):
    height = width = 0
  if min(height, width) < 1:
    raise UserError(
      f"{name}={size!r} is no image size: expected a number of pixels above 0, "
      "as 448, or (height, width)."
    )
  return height, width


def _copied(name: str, array: np.ndarray, change: Change) -> np.ndarray:
  """One parameter of a token MLP, `name` as `Dense_0/kernel`, in copies."""
  (rows, cols), (ky, kx) = change.old, change.factors
  copies = ky * kx
  # [copies, S]: where each copy's tokens are in the new raster order.
  raster = np.arange(math.prod(change.new))
  if change.method == "tiles":
    grid = raster.reshape(ky, rows, kx, cols).transpose(0, 2, 1, 3)
  else:
    grid = raster.reshape(rows, ky, cols, kx).transpose(1, 3, 0, 2)
  places = grid.reshape(copies, rows * cols)
  if name == "Dense_0/bias":
    return np.tile(array, copies)
  if name == "Dense_1/bias":
    out = np.empty(places.size, np.float32)
    out[places] = array
    return out
  # Hidden units of a copy are side by side.
  kernel = array if name == "Dense_0/kernel" else array.T
  out = np.zeros((places.size, copies, kernel.shape[1]), np.float32)
  for k in range(copies):
    out[places[k], k] = kernel
  out = out.reshape(places.size, -1)
  return out if name == "Dense_0/kernel" else np.ascontiguousarray(out.T)


def _resampled(name: str, array: np.ndarray, change: Change) -> np.ndarray:
  """One parameter of a token MLP, `name` as `Dense_0/kernel`, resampled."""
  if name == "Dense_0/bias":
    return array
  first = name == "Dense_0/kernel"
  pairs = zip(change.old, change.new, strict=True)
  # The first layer's inputs are resampled to the old grid before they meet it.
  y, x = (_along(b, a).T if first else _along(a, b) for a, b in pairs)
  field = (array.T if first else array).reshape(-1, *change.old)
  out = np.einsum("ri,cj,tij->trc", y, x, field, optimize=True)
  out = out.astype(np.float32)
  if first:
    return np.ascontiguousarray(out.reshape(len(out), -1).T)
  return out.reshape(*array.shape[:-1], -1)


def _along(old: int, new: int) -> np.ndarray:
  """`[new, old]`: takes the values of a field along one axis to a new grid.

  To a finer grid by cubic interpolation; to a coarser one by its
  pseudo-inverse, least squares: so that there and back again is the identity.
  FlexiViT (arXiv 2212.08013, section 3.4) resizes patches for the same reason
  in this way. Rows sum to 1.
  """
  if new < old:
    return np.linalg.pinv(_along(new, old))
  eye = Image.fromarray(np.eye(old, dtype=np.float32))
  taps = eye.resize((old, new), Image.Resampling.BICUBIC)
  return np.asarray(taps, np.float64)


def _text(grid: Grid) -> str:
  return f"{grid[0]} x {grid[1]}"
