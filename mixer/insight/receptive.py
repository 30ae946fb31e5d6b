"""The effective receptive field of a token, block by block.

After Luo et al. 2016 (arXiv 1701.04128): how much the input's pixels matter to
an output, by the gradient, averaged over images. The output here is the length
of one token's vector in the residual stream.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import model as model_lib
from mixer.insight import activations, tokens


def central(grid: tuple[int, int]) -> int:
  """The patch in the middle; of an even number, the later one."""
  return grid[0] // 2 * grid[1] + grid[1] // 2


def fields(
  module: model_lib.MlpMixer,
  params: Any,
  images: np.ndarray,
  depths: Sequence[int],
) -> np.ndarray:
  """|d |x| / d pixel| of the central token x, the mean over images.

  Colours are added up; each image counts as much as another, so that its field
  is divided by its sum before the mean.

  Args:
    module: one that doesn't permute all pixels.
    params: nested dict.
    images: uint8 `[N, H, W, 3]`.
    depths: after how many blocks; 0 for the stem. The tokens there must still
      be one a patch.

  Returns:
    float64 `[len(depths), H, W]`, each of which sums to 1 (or 0, where no
    image's token depends on its pixels).
  """
  module = module.clone(remat="block", dtype=jnp.float32)
  size = images.shape[1:3]
  where = tokens.places(module, size)
  assert where is not None
  (token,) = np.nonzero(where == central(tokens.grid_of(module, size)))[0]
  picks = np.eye(module.num_blocks + 1, dtype=np.float32)[list(depths)]

  def lengths(params: Any, x: jax.Array) -> jax.Array:
    _, found = activations.layers(module, params, x)
    return jnp.stack([_length(layer[:, token]) for layer in found])

  @jax.jit
  def gradients(params: Any, x: jax.Array) -> jax.Array:
    _, pull = jax.vjp(lambda x: lengths(params, x), x)

    def of_depth(pick: jax.Array) -> jax.Array:
      (dx,) = pull(jnp.broadcast_to(pick[:, None], (len(pick), len(x))))
      return jnp.abs(dx).sum(axis=-1)

    return jnp.swapaxes(jax.lax.map(of_depth, jnp.asarray(picks)), 0, 1)

  run = activations.with_params(gradients, params)
  size = activations.batch_size(module, images.shape[1:3], 8)
  total = np.zeros((len(picks), *images.shape[1:3]))
  for start in range(0, len(images), size):
    part = images[start : start + size]
    found = activations.in_batches(run, part, size).astype(np.float64)
    sums = found.sum(axis=(2, 3), keepdims=True)
    total += (found / np.where(sums > 0, sums, 1)).sum(axis=0)
  return total / len(images)


def _length(x_BC: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(jnp.square(x_BC), axis=-1))


def radius(field: np.ndarray, patch_size: int) -> float:
  """The mean distance of a field's pixels from the centre of its patch.

  Weighted by the field, from the centre of the central patch to the centres of
  pixels.

  Args:
    field: `[H, W]`, not negative.
    patch_size: P.

  Returns:
    In pixels; NaN if the field is 0.
  """
  height, width = field.shape
  grid = height // patch_size, width // patch_size
  row, column = divmod(central(grid), grid[1])
  y = np.arange(height)[:, None] - ((row + 0.5) * patch_size - 0.5)
  x = np.arange(width) - ((column + 0.5) * patch_size - 0.5)
  total = field.sum()
  return float((field * np.hypot(y, x)).sum() / total) if total else np.nan
