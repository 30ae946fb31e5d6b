"""How alike the representations of a Mixer's layers are.

Linear CKA (Kornblith et al. 2019, arXiv 1905.00414) compares what two layers
say of which images are alike, whatever their bases and scales. It is made of
HSIC, here with the unbiased estimator of Song et al. 2012 averaged over
batches, which Nguyen et al. 2021 (arXiv 2010.15327) introduced: it doesn't
depend on the size of a batch. The cosine compares tokens directly, which makes
sense in a residual stream, as all its layers share one basis.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import model as model_lib
from mixer.insight import activations

# HSIC's estimator divides by n - 3.
LEAST = 4
_MOST = 64


def hsic(grams: np.ndarray) -> np.ndarray:
  """Unbiased HSIC of every pair of layers (Song et al. 2012, equation 4).

  Args:
    grams: float64 `[L, n, n]`, inner products of n examples; n at least 4.

  Returns:
    float64 `[L, L]`.
  """
  n = grams.shape[-1]
  off = grams * (1 - np.eye(n))
  flat = off.reshape(len(off), -1)
  sums = off.sum(axis=(1, 2))
  rows = off.sum(axis=2)
  return (
    flat @ flat.T
    + np.outer(sums, sums) / ((n - 1) * (n - 2))
    - rows @ rows.T * 2 / (n - 2)
  ) / (n * (n - 3))


def cka(hsics: np.ndarray) -> np.ndarray:
  """HSIC, of one batch or averaged over several, -> linear CKA `[L, L]`."""
  own = np.sqrt(np.maximum(np.diagonal(hsics), 0))
  scale = np.outer(own, own)
  return np.where(scale > 0, hsics / np.where(scale > 0, scale, 1), np.nan)


def layers(
  module: model_lib.MlpMixer, params: Any, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Compares the stem's and all blocks' outputs.

  Args:
    module: one whose blocks keep the number of tokens.
    params: nested dict.
    images: uint8 `[N, H, W, 3]`, at least 4. Those beyond whole batches of
      equal size are left out.

  Returns:
    Linear CKA of the tokens of an image, taken as one vector; and the mean
    cosine between a token and itself in the other layer. Both float64
    `[num_blocks + 1, num_blocks + 1]`.
  """
  most = activations.batch_size(module, images.shape[1:3], _MOST)
  batches = min(-(-len(images) // most), len(images) // LEAST)
  size = len(images) // batches

  @jax.jit
  def compare(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    _, found = activations.layers(module, params, x.astype(module.dtype))
    x_LBSC = [layer.astype(jnp.float32) for layer in found]
    grams = jnp.stack([_gram(x_BSC) for x_BSC in x_LBSC])
    unit = [_unit(x_BSC) for x_BSC in x_LBSC]
    rows = [jnp.stack([jnp.vdot(a, b) for b in unit]) for a in unit]
    return grams, jnp.stack(rows) / (x_LBSC[0].shape[0] * x_LBSC[0].shape[1])

  run = activations.with_params(compare, params)
  hsics, cosines = [], []
  for start in range(0, batches * size, size):
    part = model_lib.scale(
      jnp.asarray(images[start : start + size]), jnp.float32
    )
    grams, cosine = jax.device_get(run(part))
    hsics.append(hsic(grams.astype(np.float64)))
    cosines.append(cosine.astype(np.float64))
  return cka(np.mean(hsics, axis=0)), np.mean(cosines, axis=0)


def _gram(x_BSC: jax.Array) -> jax.Array:
  """Inner products of examples without their mean, which CKA ignores."""
  x = x_BSC.reshape(x_BSC.shape[0], -1)
  x = x - x.mean(axis=0)  # Else they cancel to rounding.
  return jnp.matmul(x, x.T, precision="highest")


def _unit(x_BSC: jax.Array) -> jax.Array:
  return x_BSC / jnp.maximum(
    jnp.linalg.norm(x_BSC, axis=-1, keepdims=True), 1e-12
  )
