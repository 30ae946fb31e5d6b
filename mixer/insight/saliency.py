"""Which pixels a prediction rests on: by its gradient, and by covering them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import model as model_lib
from mixer import trained
from mixer.insight import activations

# SmoothGrad's noise, as a share of the span of the inputs; and the windows
# that cover a side of the image, two of them side by side at a place.
_NOISE, _PLACES = 0.15, 8


def window(size: Sequence[int], patch_size: int) -> tuple[int, int]:
  """(side, stride) in pixels of the window that covers parts of an image."""
  stride = max(1, round(max(size) / patch_size / _PLACES)) * patch_size
  return min(2 * stride, *size), stride


def covers(size: Sequence[int], patch_size: int) -> np.ndarray:
  """The windows, bool `[N, H, W]`; four cover a pixel away from edges."""
  side, stride = window(size, patch_size)

  def along(length: int) -> np.ndarray:
    start = np.arange(stride - side, length, stride)[:, None]
    return (np.arange(length) >= start) & (np.arange(length) < start + side)

  rows, columns = map(along, size)
  both = rows[:, None, :, None] & columns[None, :, None, :]
  return both.reshape(-1, *size)


def explain(
  model: trained.Trained, images: np.ndarray, smooth: int
) -> list[tuple[int, float, np.ndarray, np.ndarray]]:
  """Explains the class with the highest logit of uint8 images `[N, H, W, 3]`.

  By its gradient (Simonyan et al. 2013, arXiv 1312.6034), averaged over
  `smooth` noisy copies if any (SmoothGrad, 1706.03825; always the same noise);
  and by covering windows with mid-grey (Zeiler and Fergus 2013, 1311.2901).
  Gives the class; its probability (or sigmoid); the largest |d logit / d
  colour| of each pixel, `[H, W]`; and by how much the probability falls, the
  mean over the windows that cover the pixel.
  """
  module = model.module
  size = min(activations.batch_size(model), 32)

  def logits(params: Any, x: jax.Array) -> jax.Array:
    return model_lib.apply(module, params, x.astype(module.dtype))

  @jax.jit
  def slopes(state: Any, noise: jax.Array) -> jax.Array:
    params, x, label = state
    return jax.grad(lambda x: logits(params, x)[:, label].sum())(x + noise)

  @jax.jit
  def covered(state: Any, masks: jax.Array) -> tuple[jax.Array, jax.Array]:
    params, x = state
    out = logits(params, jnp.where(masks[..., None], jnp.float32(0), x))
    softmax = model.loss == "softmax"
    return out, jax.nn.softmax(out) if softmax else jax.nn.sigmoid(out)

  params = jax.device_put(model.params)
  masks = covers(images.shape[1:3], module.patch_size)
  with_none = np.concatenate([np.zeros_like(masks[:1]), masks])
  rng = np.random.Generator(np.random.Philox(key=[0, 0]))
  found = []
  for image in images:
    x = (image.astype(np.float32) / 127.5 - 1).astype(np.float32)
    out, scores = activations.in_batches(covered, (params, x), with_none, size)
    label = int(out[0].argmax())
    score, *after = scores[:, label].astype(np.float64)
    fall = np.tensordot(score - np.array(after), masks, 1) / masks.sum(axis=0)
    noise = np.zeros((1, *x.shape), np.float32)
    if smooth:
      scale = _NOISE * float(x.max() - x.min())
      noise = rng.normal(0, scale, (smooth, *x.shape)).astype(np.float32)
    slope = activations.in_batches(slopes, (params, x, label), noise, size)
    slope = np.abs(slope.mean(axis=0, dtype=np.float64)).max(axis=-1)
    found.append((label, float(score), slope, fall))
  return found
