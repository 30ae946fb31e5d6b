"""Weights as pictures and as distances.

Figures 5 and 6 of the paper (arXiv 2105.01601) show hidden units of token
mixing: the weights with which one reads each token, laid out as the tokens are
in the image; low frequencies first, each unit beside its closest inverse.
Figure 7 shows the stem's kernels in colour. The paper (appendix D) gives no
formulas, so those here are ours.
"""

import dataclasses
import math
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
      "the model permutes all pixels of its images (data.permute=pixels), so "
      "its tokens have no place in them."
    )
  count = math.prod(grid)
  return model.random_order(count, seed) if permute else np.arange(count)


def frequencies(images: np.ndarray) -> np.ndarray:
  """The mean spatial frequency |f|, weighted by power |X|^2, float64 `[N]`.

  X is the two-dimensional Fourier transform of `[N, h, w]` or `[N, h, w, 3]`,
  whose powers are added; |f| the length of (fy, fx) in cycles per sample: 0 for
  a constant, sqrt(1/2) for a chequerboard.
  """
  h, w = images.shape[1:3]
  power = np.abs(np.fft.fft2(images.astype(np.float64), axes=(1, 2))) ** 2
  power = power.reshape(len(images), h * w, -1).sum(axis=-1)
  radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)).ravel()
  total = power.sum(axis=1)
  return power @ radius / np.where(total > 0, total, 1)


def pair_order(images: np.ndarray) -> np.ndarray:
  """Low frequencies first, each beside its closest inverse; int `[N]`.

  Of images `[N, h, w]`, by the lowest cosine. Ties go to the lower index.
  """
  flat = images.reshape(len(images), -1).astype(np.float64)
  norms = np.linalg.norm(flat, axis=1, keepdims=True)
  flat /= np.where(norms > 0, norms, 1)
  # Rounded, so that what is equal is equal on any machine.
  cosine = np.round(flat @ flat.T, 9)
  out: list[int] = []
  left = np.ones(len(images), bool)
  for i in np.argsort(np.round(frequencies(images), 9), kind="stable"):
    if left[i]:
      left[i] = False
      inverse = np.argmin(np.where(left, cosine[i], np.inf))
      out += [i, inverse] if left.any() else [i]
      left[inverse] = False
  return np.array(out, int)


def token_units(
  params: weights.Params, block: int, grid: tuple[int, int], places: np.ndarray
) -> np.ndarray:
  """Hidden units of a block's token mixing, float32 `[T, rows, columns]`."""
  mlp: Any = params[f"MixerBlock_{block}"]["token_mixing"]
  kernel = np.asarray(mlp["Dense_0"]["kernel"], np.float32)
  if kernel.shape[:-1] != places.shape:
    raise UserError(
      f"units of block {block} don't read the {grid[0]} x {grid[1]} tokens of "
      "the image, each once: token mixing is untied, mixes groups of channels "
      "as well, or is that of a pyramid."
    )
  if not np.isfinite(kernel).all():
    raise UserError(f"units of block {block} are not finite.")
  units = np.empty_like(kernel.T)
  units[:, places] = kernel.T
  units = units.reshape(-1, *grid)
  return units[pair_order(units)]


def stem_kernels(params: weights.Params) -> np.ndarray:
  """Colours float32 `[C, P, P, 3]` in [0, 1] of the stem; 0.5 is weight 0."""
  kernels = np.moveaxis(np.asarray(params["stem"]["kernel"], np.float32), -1, 0)
  if not np.isfinite(kernels).all():
    raise UserError("the stem's kernels are not finite.")
  order = np.argsort(np.round(frequencies(kernels), 9), kind="stable")
  return 0.5 + 0.5 * _scaled(kernels[order])


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
  params: weights.Params, num_blocks: int, distance: np.ndarray
) -> list[tuple[float, np.ndarray]]:
  """How far token mixing reaches, for each block up to a pyramid's first step.

  The counterpart of ViT's mean attention distance (arXiv 2010.11929, figure
  7): the mean distance weighted by |W2 W1|, the token MLP without its GELU; and
  that of each hidden unit, `[T]`, weighted by the map of rank 1 through it.
  Grouped channels are taken together, untied MLPs averaged.
  """
  found = []
  for i in range(num_blocks):
    mlp: Any = params[f"MixerBlock_{i}"]["token_mixing"]
    w1, w2 = (np.asarray(mlp[f"Dense_{k}"]["kernel"]) for k in (0, 1))
    if w1.shape[-2] != w2.shape[-1]:
      break  # From here on tokens have no place.
    w1 = w1.reshape(-1, *w1.shape[-2:])
    w2 = w2.reshape(-1, *w2.shape[-2:])
    pairs = zip(w1, w2, strict=True)
    both = [_mixing_distance(a, b, distance) for a, b in pairs]
    wholes, units = zip(*both, strict=True)
    found.append((float(np.mean(wholes)), np.concatenate(units)))
  return found


def _mixing_distance(
  w1: np.ndarray, w2: np.ndarray, distance: np.ndarray
) -> tuple[float, np.ndarray]:
  """Of one MLP with weights `[G S, T]` and `[T, G S]`."""
  s, t = len(distance), len(w2)
  g = len(w1) // s
  both = np.abs(w1 @ w2).reshape(g, s, g, s).sum((0, 2)).astype(np.float64)
  into = np.abs(w1).reshape(g, s, t).sum(0, dtype=np.float64)
  out = np.abs(w2).reshape(t, g, s).sum(1, dtype=np.float64)
  units = _mean(((distance @ into).T * out).sum(1), into.sum(0) * out.sum(1))
  # The mean over the tokens that are written, but those without weights.
  whole = _mean((both * distance).sum(0), both.sum(0))
  known = whole[np.isfinite(whole)]
  return float(known.mean()) if known.size else math.nan, units


def _mean(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
  """Quotients; NaN where there is no weight."""
  return np.where(weight, total / np.where(weight, weight, 1), np.nan)


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
