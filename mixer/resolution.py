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

# Pixels: a side of a square, or (height, width).
Size = int | Sequence[int]
# Rows and columns of tokens.
Grid = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Change:
  """What is to be done: the grid of tokens before and after, and how."""

  method: str
  old: Grid
  new: Grid

  @property
  def whole(self) -> bool:
    """Whether the new grid is a whole multiple of the old one."""
    return not any(n % o for n, o in zip(self.new, self.old, strict=True))

  @property
  def factors(self) -> Grid:
    """(Ky, Kx) of "tiles" and "interleaved"."""
    return self.new[0] // self.old[0], self.new[1] // self.old[1]

  @property
  def copies(self) -> int:
    """By how much T grows."""
    return 1 if self.method == "resample" else math.prod(self.factors)


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
    method: one of `METHODS`; "" for what `choose` says.
    from_size: the size that the weights are for; None for a square.

  Returns:
    Nested dict of float32 numpy arrays. Those that stay as they are share
    memory with `params` where they were float32 numpy arrays there.

  Raises:
    UserError: no Mixer's weights, or a size or method that can't be.
  """
  flat = weights.flatten(params)
  change = _plan(weights.shape_of(params), image_size, method, from_size)
  out = {}
  for name, leaf in flat.items():
    array = np.asarray(leaf, np.float32)
    if change.old != change.new and "/token_mixing/" in name:
      array = _resized(name.split("/token_mixing/")[1], array, change)
    out[name] = array
  return weights.unflatten(out)


def choose(
  shape: weights.Shape, image_size: Size, from_size: Size | None = None
) -> str:
  """The method for a size: "tiles" where it can be, as in the paper.

  Args: as for `resize`; `shape` is that of the weights.

  Raises:
    UserError: a size that can't be.
  """
  return _plan(shape, image_size, "", from_size).method


def tokens_mlp_dim(
  shape: weights.Shape,
  image_size: Size,
  method: str = "tiles",
  from_size: Size | None = None,
) -> int:
  """T of the model that `resize` makes, for the same arguments.

  Raises:
    UserError: a size or method that can't be.
  """
  change = _plan(shape, image_size, method, from_size)
  return shape.tokens_mlp_dim * change.copies


def describe(
  shape: weights.Shape,
  image_size: Size,
  method: str = "tiles",
  from_size: Size | None = None,
) -> str:
  """A sentence on what `resize` does; "" where nothing changes.

  Raises:
    UserError: a size or method that can't be.
  """
  change = _plan(shape, image_size, method, from_size)
  if change.old == change.new:
    return ""
  how, source = {
    "tiles": ("tiled", "paper, appendix C"),
    "interleaved": ("interleaved", "ours, not the paper's"),
    "resample": ("resampled", "ours, not in the paper"),
  }[change.method]
  width = shape.tokens_mlp_dim
  mlp = (
    f"token MLP width stays {width}"
    if change.copies == 1
    else f"token MLP width {width} -> {width * change.copies}"
  )
  return (
    f"token mixing {how} from {_text(change.old)} to {_text(change.new)} "
    f"tokens ({source}): {mlp}"
  )


def check_patch(
  shape: weights.Shape, patch_size: int, where: str = "these weights"
) -> None:
  """Refuses weights of another patch size, which no method here changes.

  Args:
    shape: of the weights.
    patch_size: that the model is to have, in pixels.
    where: what to call the weights.

  Raises:
    UserError: they have another.
  """
  if shape.patch_size != patch_size:
    raise UserError(
      f"{where} have patches of {shape.patch_size} px and the model is to have "
      f"{patch_size} px: weights can be fitted to another image size, but not "
      f"to another patch size. Take a model.variant that ends in "
      f"/{shape.patch_size}, or weights with patches of {patch_size} px."
    )


def _plan(
  shape: weights.Shape, image_size: Size, method: str, from_size: Size | None
) -> _Change:
  """What `resize` is to do; refuses what it can't."""
  if method not in ("", *METHODS):
    raise UserError(
      f"init_resize={method!r} is no method to fit weights to another image "
      f"size; it is one of {', '.join(METHODS)}, or empty for the one that "
      "suits the size."
    )
  new = _grid(shape, image_size, "image_size")
  change = _Change(method, _old_grid(shape, new, from_size), new)
  if not method:
    method = "tiles" if change.whole else "resample"
  elif method != "resample" and not change.whole:
    raise UserError(
      f"init_resize={method} needs an image_size that is a whole multiple, on "
      f"either axis, of the one that the weights are for: they have "
      f"{_text(change.old)} tokens ({_pixels(shape, change.old)} px), and "
      f"image_size={_side(image_size)} has {_text(new)}. Any size works with "
      f"--config.init_resize=resample."
    )
  return dataclasses.replace(change, method=method)


def _old_grid(shape: weights.Shape, new: Grid, from_size: Size | None) -> Grid:
  """Rows and columns of tokens that the weights are for."""
  tokens = shape.num_tokens
  if from_size is not None:
    old = _grid(shape, from_size, "from_size")
    if math.prod(old) != tokens:
      raise UserError(
        f"from_size={_side(from_size)} is {_text(old)} patches of "
        f"{shape.patch_size} px, but the weights are for {tokens} tokens: give "
        "the image size that they were trained at."
      )
    return old
  side = math.isqrt(tokens)
  if side * side == tokens:
    return side, side
  # Of as many tokens, the new size is the likeliest one to be the old one.
  if math.prod(new) == tokens:
    return new
  raise UserError(
    f"the weights are for {tokens} tokens, which no square image has: give the "
    "(height, width) in pixels that they were trained at as from_size."
  )


def _grid(shape: weights.Shape, size: Size, name: str) -> Grid:
  """Rows and columns of tokens of an image."""
  try:
    sides = [operator.index(size)] * 2  # type: ignore[arg-type]
  except TypeError:
    sides = list(size) if isinstance(size, Sequence) else []
  if len(sides) != 2 or not all(_is_side(side) for side in sides):
    raise UserError(
      f"{name}={size!r} is no image size; it is a positive number of pixels, "
      "or a pair of them, height and width."
    )
  patch = shape.patch_size
  for axis, side in zip(("height", "width"), sides, strict=True):
    if side % patch:
      below = side // patch * patch
      near = f"{below} or {below + patch}" if below else str(patch)
      raise UserError(
        f"{name}={_side(size)}: the {axis}, {side} px, is no multiple of the "
        f"model's patch, {patch} px. Nearest: {near}."
      )
  return sides[0] // patch, sides[1] // patch


def _is_side(side: Any) -> bool:
  return isinstance(side, int | np.integer) and bool(side > 0)


def _resized(name: str, array: np.ndarray, change: _Change) -> np.ndarray:
  """One parameter of a token MLP, `name` as `Dense_0/kernel`."""
  if change.method == "resample":
    return _resampled(name, array, change)
  copies = change.copies
  if name == "Dense_0/bias":
    return np.tile(array, copies)
  places = _places(change)
  if name == "Dense_1/bias":
    out = np.empty(places.size, np.float32)
    out[places] = array
    return out
  # Hidden units of a copy lie side by side.
  if name == "Dense_0/kernel":
    out = np.zeros((places.size, copies, array.shape[1]), np.float32)
    for k in range(copies):
      out[places[k], k] = array
    return out.reshape(places.size, -1)
  out = np.zeros((copies, array.shape[0], places.size), np.float32)
  for k in range(copies):
    out[k][:, places[k]] = array
  return out.reshape(-1, places.size)


def _places(change: _Change) -> np.ndarray:
  """`[Ky * Kx, S]`: where each copy's tokens lie in the new raster order."""
  (rows, cols), (ky, kx) = change.old, change.factors
  raster = np.arange(math.prod(change.new))
  if change.method == "tiles":
    grid = raster.reshape(ky, rows, kx, cols).transpose(0, 2, 1, 3)
  else:
    grid = raster.reshape(rows, ky, cols, kx).transpose(1, 3, 0, 2)
  return grid.reshape(ky * kx, rows * cols)


def _resampled(name: str, array: np.ndarray, change: _Change) -> np.ndarray:
  """`_resized` of the method "resample"."""
  if name == "Dense_0/bias":
    return array
  pairs = tuple(zip(change.old, change.new, strict=True))
  if name == "Dense_0/kernel":
    # Transposed: its inputs are resampled to the old grid before they meet it.
    y, x = (_along(new, old).T for old, new in pairs)
    field = array.T.reshape(-1, *change.old)
  else:
    y, x = (_along(old, new) for old, new in pairs)
    field = array.reshape(-1, *change.old)
  out = np.einsum("ri,cj,tij->trc", y, x, field, optimize=True)
  out = out.astype(np.float32)
  if name == "Dense_0/kernel":
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


def _side(size: Size) -> str:
  """Pixels as the user wrote them."""
  return str(tuple(size) if isinstance(size, Sequence) else size)


def _text(grid: Grid) -> str:
  return f"{grid[0]} x {grid[1]}"


def _pixels(shape: weights.Shape, grid: Grid) -> str:
  return _text((grid[0] * shape.patch_size, grid[1] * shape.patch_size))
