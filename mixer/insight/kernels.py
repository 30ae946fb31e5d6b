"""Weights as pictures and as distances.

Figures 5 and 6 of the paper (arXiv 2105.01601) show hidden units of token
mixing: the weights with which one reads each token, laid out as the tokens are
in the image. Figure 7 shows the stem's kernels in colour. The paper (appendix
D) gives no formulas, so those here are ours.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer import model, weights
from mixer.errors import UserError


def evenly(count: int, most: int) -> np.ndarray:
  """At most `most` of `count` places, evenly spaced from first to last."""
  return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def some_pairs(images: np.ndarray, most: int) -> np.ndarray:
  """At most `most` images, evenly spaced; 2 k and 2 k + 1 stay together."""
  pairs = evenly(-(-len(images) // 2), most // 2)
  return np.concatenate([images[2 * k : 2 * k + 2] for k in pairs])


def token_places(
  grid: tuple[int, int], permute: str = "", seed: int = 0
) -> np.ndarray:
  """int `[S]`: the patch that each token comes from, of (rows, columns)."""
  if permute == "pixels":
    raise UserError(
      "data.permute=pixels: tokens have no place in a permuted image."
    )
  count = math.prod(grid)
  return model.random_order(count, seed) if permute else np.arange(count)


def frequencies(images: np.ndarray) -> np.ndarray:
  """The mean |f| in cycles per sample, weighted by power, float64 `[N]`.

  Of the two-dimensional Fourier transform of `[N, h, w]` or `[N, h, w, 3]`.
  Rounded, so that what is equal is equal on any machine.
  """
  h, w = images.shape[1:3]
  power = np.abs(np.fft.fft2(images.astype(np.float64), axes=(1, 2))) ** 2
  power = power.reshape(len(images), h * w, -1).sum(axis=-1)
  radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)).ravel()
  total = power.sum(axis=1)
  return np.round(power @ radius / np.where(total > 0, total, 1), 9)


def token_units(
  kernel: np.ndarray, grid: Sequence[int], places: np.ndarray
) -> np.ndarray:
  """Hidden units of a token MLP with weights `[S, T]`, `[T, rows, columns]`.

  Low frequencies first, each followed by its closest inverse, which has the
  lowest cosine. Ties go to the lower index.
  """
  if kernel.shape[:-1] != places.shape or not np.isfinite(kernel).all():
    raise UserError(
      "its hidden units don't read each token once (untied, grouped, or after "
      "a pyramid's step), or are not finite."
    )
  flat = np.empty(kernel.T.shape, np.float32)
  flat[:, places] = kernel.T
  units = flat.reshape(-1, *grid)
  flat = flat.astype(np.float64)
  norms = np.linalg.norm(flat, axis=1, keepdims=True)
  flat /= np.where(norms > 0, norms, 1)
  cosine = np.round(flat @ flat.T, 9)
  order: list[int] = []
  left = np.ones(len(units), bool)
  for i in np.argsort(frequencies(units), kind="stable"):
    if left[i]:
      left[i] = False
      inverse = np.argmin(np.where(left, cosine[i], np.inf))
      order += [i, inverse] if left.any() else [i]
      left[inverse] = False
  return units[order]


def stem_kernels(kernel: np.ndarray) -> np.ndarray:
  """Colours float32 `[C, P, P, 3]` in [0, 1] of the stem; 0.5 is weight 0."""
  if not np.isfinite(kernel).all():
    raise UserError("the stem's kernels are not finite.")
  images = np.moveaxis(np.asarray(kernel, np.float32), -1, 0)
  order = np.argsort(frequencies(images), kind="stable")
  return 0.5 + 0.5 * _scaled(images[order])


def montage(images: np.ndarray, columns: int) -> np.ndarray:
  """Tiles images with a pixel of white between them, uint8 `[H, W, 3]`.

  They are colours `[N, h, w, 3]` in [0, 1]; or numbers `[N, h, w]`: red above
  0, blue below, each image scaled by its largest.
  """
  if images.ndim == 3:
    from matplotlib import colormaps  # Here, as it takes half a second.

    images = colormaps["RdBu_r"](0.5 + 0.5 * _scaled(images))[..., :3]
  n, h, w, _ = images.shape
  rows = -(-n // columns)
  full = np.ones((rows * columns, h + 1, w + 1, 3))
  full[:n, :h, :w] = images
  full = full.reshape(rows, columns, h + 1, w + 1, 3).swapaxes(1, 2)
  full = full.reshape(rows * (h + 1), columns * (w + 1), 3)[:-1, :-1]
  return np.round(full * 255).astype(np.uint8)


def _scaled(images: np.ndarray) -> np.ndarray:
  """Each by its largest absolute number."""
  largest = np.abs(images).max(axis=tuple(range(1, images.ndim)), keepdims=True)
  return images / np.where(largest > 0, largest, 1)


def token_distances(grid: tuple[int, int], places: np.ndarray) -> np.ndarray:
  """Between tokens in the image, float64 `[S, S]`, in patches."""
  rows, columns = np.divmod(places, grid[1])
  return np.hypot(rows[:, None] - rows, columns[:, None] - columns)


def mixing_distances(
  mlp: Any, distance: np.ndarray
) -> tuple[float, np.ndarray] | None:
  """How far a block's token mixing reaches; None where S changes.

  The counterpart of ViT's mean attention distance (arXiv 2010.11929, figure
  7): the mean distance weighted by |W2 W1|, the token MLP without its GELU; and
  that of each hidden unit, `[T]`, weighted by the map of rank 1 through it.
  Grouped channels are taken together, untied MLPs averaged.
  """
  w1, w2 = (mlp[f"Dense_{k}"]["kernel"] for k in (0, 1))
  (inputs, t), s = w1.shape[-2:], len(distance)
  if inputs != w2.shape[-1]:
    return None
  wholes, units, g = [], [], inputs // s
  mlps = w1.reshape(-1, inputs, t), w2.reshape(-1, t, inputs)
  for a, b in zip(*mlps, strict=True):
    both = np.abs(a @ b).reshape(g, s, g, s).sum((0, 2)).astype(np.float64)
    into = np.abs(a).reshape(g, s, t).sum(0, dtype=np.float64)
    out = np.abs(b).reshape(t, g, s).sum(1, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # NaN for what has no weight.
      reach = ((distance @ into).T * out).sum(1)
      units.append(reach / (into.sum(0) * out.sum(1)))
      whole = (both * distance).sum(0) / both.sum(0)
      known = np.isfinite(whole)
      wholes.append(whole[known].sum() / np.float64(known.sum()))
  return float(np.mean(wholes)), np.concatenate(units)


def model_name(params: weights.Params) -> str:
  """The model that weights are of, for people: "B/16", or its widths."""
  try:
    shape = dataclasses.asdict(weights.shape_of(params))
  except UserError:
    return "another model than the paper's"
  for name in model.VARIANTS:
    spec = dataclasses.asdict(model.parse_variant(name))
    spec.pop("tokens_mlp_dim")  # It grows with the resolution.
    if spec.items() <= shape.items():
      return f"{name}, {shape['num_tokens']} tokens"
  return (
    "{num_blocks} blocks, C {hidden_dim}, T {tokens_mlp_dim}, F "
    "{channels_mlp_dim}, patches of {patch_size} px, {num_tokens} tokens"
  ).format(**shape)
