"""Weights of a trained model for images of another size.

The patch size stays; only token mixing depends on the number of tokens S:
`Dense_0/kernel` (S, T), `Dense_1/kernel` (T, S) and `Dense_1/bias` (S,) of
every block; tokens are in raster order. Three methods:

- "tiles": the paper's (appendix C), for sizes that are whole multiples. Each
  Ky x Kx tile of the new image has a copy of the old token MLP to itself:
  block-diagonal kernels, T times Ky * Kx. Pre-logits are the mean of those of
  the tiles in the old model.
- "interleaved": ours. As above, but copy (a, b) sees the tokens of rows a,
  a + Ky, ... and columns b, b + Kx, ...: the whole image, coarsely.
- "resample": ours, for every size. T stays. The new token MLP is the old one
  with its input resampled to the old grid, and its output to the new one.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mixer import weights
from mixer.errors import UserError

METHODS = {
  "tiles": "tiled from {} tokens (paper, appendix C)",
  "interleaved": "interleaved from {} tokens (ours, not the paper's)",
  "resample": "resampled from {} tokens (ours, not in the paper)",
}

# Pixels: a side of a square, or (height, width).
Size = int | Sequence[int]
Grid = tuple[int, int]  # Rows and columns of tokens.


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
  return fit(params, image_size, method, from_size)[0]


def fit(
  params: weights.Params,
  image_size: Size,
  method: str = "",
  from_size: Size | None = None,
) -> tuple[dict[str, Any], str]:
  """As `resize`, with a sentence about what is done; "" if nothing."""
  shape = weights.shape_of(params)
  side, t = math.isqrt(shape.num_tokens), shape.tokens_mlp_dim
  new = _grid(shape, image_size, "image_size")
  old = _grid(shape, from_size or side * shape.patch_size, "from_size")
  if from_size is None and math.prod(new) == shape.num_tokens != side**2:
    old = new  # The new size may well be the old one.
  if math.prod(old) != shape.num_tokens:
    raise UserError(
      f"the weights are for {shape.num_tokens} tokens, and from_size="
      f"{from_size} has another number: give the size of their images."
    )
  whole = new[0] % old[0] == new[1] % old[1] == 0
  method = method or ("tiles" if whole else "resample")
  grids = " to ".join(f"{rows} x {cols}" for rows, cols in (old, new))
  if method not in METHODS or not (whole or method == "resample"):
    raise UserError(
      f"init_resize={method} can't fit image_size={image_size}, from {grids} "
      "tokens: tiles and interleaved need whole multiples, "
      "--config.init_resize=resample does not."
    )
  out = {
    k: np.asarray(v, np.float32) for k, v in weights.flatten(params).items()
  }
  if old == new:
    return weights.unflatten(out), ""
  for name in out:
    if "/token_mixing/" in name:
      kind = name.split("/token_mixing/")[1]
      if method == "resample":
        out[name] = _resampled(kind, out[name], old, new)
      else:
        out[name] = _copied(kind, out[name], old, new, method == "tiles")
  copies = 1 if method == "resample" else math.prod(new) // math.prod(old)
  width = f"{t} -> {t * copies}" if copies > 1 else f"stays {t}"
  how = METHODS[method].format(grids)
  message = f"token mixing {how}: token MLP width {width}"
  return weights.unflatten(out), message


def _grid(shape: weights.Shape, size: Size, name: str) -> Grid:
  """Rows and columns of tokens of an image."""
  sides, patch = pixels(size, name), shape.patch_size
  if any(side % patch for side in sides):
    near = " x ".join(str(-(-side // patch) * patch) for side in sides)
    raise UserError(
      f"{name}={size}: sides must be multiples of the model's patch, {patch} "
      f"px, as {near}."
    )
  return sides[0] // patch, sides[1] // patch


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


def _copied(
  name: str, array: np.ndarray, old: Grid, new: Grid, tiles: bool
) -> np.ndarray:
  """One parameter of a token MLP, `name` as `Dense_0/kernel`, in copies."""
  rows, cols = old
  ky, kx = new[0] // rows, new[1] // cols
  # [copies, S]: where each copy's tokens are in the new raster order.
  raster = np.arange(math.prod(new))
  if tiles:
    grid = raster.reshape(ky, rows, kx, cols).transpose(0, 2, 1, 3)
  else:
    grid = raster.reshape(rows, ky, cols, kx).transpose(1, 3, 0, 2)
  places = grid.reshape(ky * kx, rows * cols)
  if name == "Dense_0/bias":
    return np.tile(array, ky * kx)
  if name == "Dense_1/bias":
    out = np.empty(places.size, np.float32)
    out[places] = array
    return out
  # Hidden units of a copy are side by side.
  kernel = array if name == "Dense_0/kernel" else array.T
  out = np.zeros((places.size, ky * kx, kernel.shape[1]), np.float32)
  out[places, np.arange(ky * kx)[:, None]] = kernel
  out = out.reshape(places.size, -1)
  return out if name == "Dense_0/kernel" else np.ascontiguousarray(out.T)


def _resampled(
  name: str, array: np.ndarray, old: Grid, new: Grid
) -> np.ndarray:
  """One parameter of a token MLP, `name` as `Dense_0/kernel`, resampled."""
  if name == "Dense_0/bias":
    return array
  first = name == "Dense_0/kernel"
  pairs = zip(old, new, strict=True)
  # The first layer's inputs are resampled to the old grid before they meet it.
  y, x = (_along(b, a).T if first else _along(a, b) for a, b in pairs)
  field = (array.T if first else array).reshape(-1, *old)
  out = np.einsum("ri,cj,tij->trc", y, x, field, optimize=True)
  out = out.astype(np.float32).reshape(len(field), -1)
  if first:
    return np.ascontiguousarray(out.T)
  return out.reshape(*array.shape[:-1], -1)


def _along(old: int, new: int) -> np.ndarray:
  """`[new, old]`: takes the values of a field along one axis to a new grid.

  To a finer grid by cubic interpolation; to a coarser one by its
  pseudo-inverse, least squares: so that there and back again is the identity,
  as FlexiViT resizes patches (arXiv 2212.08013, section 3.4). Rows sum to 1.
  """
  if new < old:
    return np.linalg.pinv(_along(new, old))
  eye = Image.fromarray(np.eye(old, dtype=np.float32))
  taps = eye.resize((old, new), Image.Resampling.BICUBIC)
  return np.asarray(taps, np.float64)
