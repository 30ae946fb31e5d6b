"""Weights as pictures: figures 5 to 7 of the paper (arXiv 2105.01601).

Figures 5 and 6 show hidden units of token-mixing MLPs: the weights with which
one takes in each token, laid out as the tokens lie in the image. A heuristic
puts low frequencies first, and each unit is followed by its closest inverse.
Figure 7 shows the stem's kernels as patches of colour. The paper (appendix D)
gives no formulas, so those here are ours; and each unit is shown once.
"""

import math

import numpy as np

from mixer import weights
from mixer.errors import UserError

# ColorBrewer's RdBu, which the colour-blind tell apart as well: from -1 to 1.
_DIVERGING = np.array(
  [
    (5, 48, 97),
    (33, 102, 172),
    (67, 147, 195),
    (146, 197, 222),
    (209, 229, 240),
    (247, 247, 247),
    (253, 219, 199),
    (244, 165, 130),
    (214, 96, 77),
    (178, 24, 43),
    (103, 0, 31),
  ],
  np.float32,
)
_GAP = 255  # Between pictures: white.


def frequencies(images: np.ndarray) -> np.ndarray:
  """The mean spatial frequency of pictures, weighted by power.

  Of a picture's two-dimensional discrete Fourier transform X this is
  sum(|X|^2 |f|) / sum(|X|^2), where |f| is the length of (fy, fx) in cycles
  per sample, each in [-1/2, 1/2). Colours' powers are added. It is 0 for a
  constant, sqrt(1/2) for a chequerboard, and doesn't depend on scale or sign.

  Args:
    images: float `[N, h, w]` or `[N, h, w, 3]`.

  Returns:
    float64 `[N]`, in cycles per sample; 0 where a picture is all 0.
  """
  h, w = images.shape[1:3]
  power = np.abs(np.fft.fft2(images.astype(np.float64), axes=(1, 2))) ** 2
  if power.ndim == 4:
    power = power.sum(axis=-1)
  radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w))
  total = power.sum(axis=(1, 2))
  return (power * radius).sum(axis=(1, 2)) / np.where(total > 0, total, 1)


def pair_order(images: np.ndarray) -> np.ndarray:
  """Low frequencies first, each beside its closest inverse.

  The picture of the lowest frequency that is left comes next, and after it,
  of those left, the one that is nearest to its negative when both are scaled
  to length 1: the one with the lowest cosine. Ties go to the lower index.

  Args:
    images: float `[N, h, w]`.

  Returns:
    int `[N]`: the order, a permutation. Pairs are 0 and 1, 2 and 3, ...; with
    an odd N the last has none.
  """
  flat = images.reshape(len(images), -1).astype(np.float64)
  norms = np.linalg.norm(flat, axis=1, keepdims=True)
  flat /= np.where(norms > 0, norms, 1)
  # Rounded, so that what is equal is equal on any machine.
  cosine = np.round(flat @ flat.T, 9)
  out: list[int] = []
  left = np.ones(len(images), bool)
  for i in np.argsort(np.round(frequencies(images), 9), kind="stable"):
    if not left[i]:
      continue
    left[i] = False
    out.append(int(i))
    if left.any():
      inverse = int(np.argmin(np.where(left, cosine[i], np.inf)))
      left[inverse] = False
      out.append(inverse)
  return np.array(out, int)


def unsorted_token_units(
  params: weights.Params, block: int, grid: tuple[int, int]
) -> np.ndarray:
  """As `token_units`, in the order of the weights.

  Raises:
    UserError: as `token_units`.
  """
  name = f"MixerBlock_{block}"
  if name not in params:
    raise UserError(
      f"there is no block {block}: the model has "
      f"{sum(k.startswith('MixerBlock_') for k in params)}, counted from 0."
    )
  kernel = np.asarray(params[name]["token_mixing"]["Dense_0"]["kernel"])
  tokens = math.prod(grid)
  if kernel.ndim != 2:
    raise UserError(
      f"block {block} has a token MLP for each of {len(kernel)} channels or "
      "groups (model.token_mixing=untied): its units are too many for one "
      "picture. Those of a model with model.token_mixing=shared can be shown."
    )
  if kernel.shape[0] != tokens:
    raise UserError(
      f"units of block {block} take in {kernel.shape[0]} numbers, and the "
      f"image has {grid[0]} x {grid[1]} = {tokens} tokens: behind a pyramid's "
      "step (model.pyramid_blocks), or with groups of channels "
      "(model.token_groups), weights don't lie on the image's grid."
    )
  return kernel.T.reshape(-1, *grid).astype(np.float32)


def token_units(
  params: weights.Params, block: int, grid: tuple[int, int]
) -> np.ndarray:
  """Hidden units of a token-mixing MLP, as in the paper's figures 5 and 6.

  Args:
    params: nested dict of a Mixer's weights.
    block: counted from 0.
    grid: (rows, columns) of tokens: height and width of the images that the
      weights are for, in patches.

  Returns:
    float32 `[T, rows, columns]`: the columns of
    `MixerBlock_i/token_mixing/Dense_0/kernel`, ordered as `pair_order` says.

  Raises:
    UserError: no such block, or its weights don't lie on that grid: a grouped,
      an untied or a pyramid's token mixing.
  """
  units = unsorted_token_units(params, block, grid)
  return units[pair_order(units)]


def stem_kernels(params: weights.Params) -> np.ndarray:
  """The stem's kernels as patches of colour, as in the paper's figure 7.

  Each is scaled by its own largest absolute weight, so that mid-grey, 0.5, is
  a weight of 0 and the largest is 0 or 1. Low frequencies come first.

  Args:
    params: nested dict of a Mixer's weights.

  Returns:
    float32 `[C, P, P, 3]` in [0, 1].
  """
  kernels = np.moveaxis(np.asarray(params["stem"]["kernel"], np.float32), -1, 0)
  order = np.argsort(np.round(frequencies(kernels), 9), kind="stable")
  return 0.5 + 0.5 * _scaled(kernels[order])


def montage(
  images: np.ndarray,
  columns: int,
  pad: int = 1,
  limit: float | None = None,
) -> np.ndarray:
  """Tiles pictures; a sample is a pixel of the result.

  Args:
    images: float `[N, h, w, 3]` in [0, 1], colours; or `[N, h, w]`, numbers of
      either sign: red above 0, blue below, almost white at 0.
    columns: how many side by side.
    pad: pixels of white between them.
    limit: the absolute number that is drawn in full colour; None for each
      picture's own largest.

  Returns:
    uint8 `[H, W, 3]`.
  """
  if images.ndim == 3:
    scaled = _scaled(images) if limit is None else images / (limit or 1.0)
    colours = diverging(scaled)
  else:
    colours = np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
  n, h, w = images.shape[:3]
  rows = -(-n // columns)
  out = np.full(
    (rows * (h + pad) - pad, columns * (w + pad) - pad, 3), _GAP, np.uint8
  )
  for i, colour in enumerate(colours):
    y, x = i // columns * (h + pad), i % columns * (w + pad)
    out[y : y + h, x : x + w] = colour
  return out


def diverging(values: np.ndarray) -> np.ndarray:
  """Numbers from -1 (blue) to 1 (red) as colours, uint8 `[..., 3]`."""
  places = np.linspace(-1, 1, len(_DIVERGING))
  channels = [np.interp(values, places, c) for c in _DIVERGING.T]
  return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def _scaled(images: np.ndarray) -> np.ndarray:
  """Each by its largest absolute number."""
  largest = np.abs(images).max(axis=tuple(range(1, images.ndim)), keepdims=True)
  return images / np.where(largest > 0, largest, 1)
