"""Which pixels a prediction rests on: by its gradient, and by covering them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import model as model_lib
from mixer.insight import activations

# SmoothGrad's noise: this share of the span of the inputs.
_NOISE = 0.15
# Windows that cover a side of the image, two of them side by side at a place.
_PLACES = 8


@dataclasses.dataclass(frozen=True)
class Saliency:
  """Of one image.

  Attributes:
    label: the class with the highest logit.
    score: its probability (softmax), or its sigmoid.
    gradient: float64 `[H, W]`: the largest |d logit / d colour| of each pixel.
    occlusion: float64 `[H, W]`: by how much the score falls when the pixel is
      covered, the mean over the windows that cover it.
  """

  label: int
  score: float
  gradient: np.ndarray
  occlusion: np.ndarray


def window(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
  """(side, stride) of the covering window, in pixels.

  The stride is an eighth of the longer side in whole patches, so that on
  either axis there are about eight places; the side is twice that.
  """
  patches = max(image_size) / patch_size
  stride = max(1, round(patches / _PLACES)) * patch_size
  return min(2 * stride, *image_size), stride


def covers(image_size: tuple[int, int], patch_size: int) -> np.ndarray:
  """The windows, bool `[N, H, W]`, each True where it covers.

  They begin at every multiple of the stride, half a window outside the image
  at first, so that all pixels are covered, by four windows away from edges.
  """
  side, stride = window(image_size, patch_size)

  def along(length: int) -> np.ndarray:
    starts = np.arange(stride - side, length, stride)[:, None]
    place = np.arange(length)
    return (place >= starts) & (place < starts + side)

  rows, columns = map(along, image_size)
  both = rows[:, None, :, None] & columns[None, :, None, :]
  return both.reshape(-1, *image_size)


def explain(
  module: model_lib.MlpMixer,
  params: Any,
  loss: str,
  images: np.ndarray,
  smooth: int = 0,
) -> list[Saliency]:
  """Explains the class with the highest logit, for each image.

  Args:
    module: with a head.
    params: nested dict.
    loss: that it was trained with, "softmax" or "sigmoid".
    images: uint8 `[N, H, W, 3]`.
    smooth: noisy copies over which the gradient is averaged (SmoothGrad,
      Smilkov et al. 2017, arXiv 1706.03825; noise of 15 % of the inputs'
      span, always the same); 0 for the plain gradient (Simonyan et al. 2013,
      arXiv 1312.6034).
  """
  size = images.shape[1:3]
  most = activations.batch_size(module, size, 32)

  def logits(params: Any, x: jax.Array) -> jax.Array:
    return model_lib.apply(module, params, x.astype(module.dtype))

  def of_label(params: Any, x: jax.Array, label: jax.Array) -> jax.Array:
    return logits(params, x)[jnp.arange(len(x)), label].sum()

  params = jax.device_put(params)
  gradient = jax.jit(jax.grad(of_label, argnums=1))
  run = activations.with_params(jax.jit(logits), params)
  labels = np.argmax(activations.in_batches(run, images, most), axis=-1)
  masks = covers(size, module.patch_size)
  rng = np.random.Generator(np.random.Philox(key=[0, 0]))
  found = []
  for image, label in zip(images, labels, strict=True):
    x = (image[None].astype(np.float32) / 127.5 - 1).astype(np.float32)
    total = np.zeros(image.shape, np.float64)
    done = 0
    while done < max(smooth, 1):
      count = min(most, max(smooth, 1) - done)
      noise = np.zeros((count, *image.shape), np.float32)
      if smooth:
        span = float(x.max() - x.min())
        noise = rng.normal(0, _NOISE * span, noise.shape).astype(np.float32)
      here = np.full(count, label)
      total += np.asarray(gradient(params, x + noise, here), np.float64).sum(
        axis=0
      )
      done += count
    score, fallen = _occlusion(run, x, int(label), loss, masks, most)
    found.append(
      Saliency(int(label), score, np.abs(total / done).max(axis=-1), fallen)
    )
  return found


def _occlusion(
  run: Any, x: np.ndarray, label: int, loss: str, masks: np.ndarray, most: int
) -> tuple[float, np.ndarray]:
  """The score, and how it falls (Zeiler and Fergus 2013, arXiv 1311.2901)."""
  covered = np.concatenate([np.zeros_like(masks[:1]), masks])
  scores = []
  for start in range(0, len(covered), most):
    part = covered[start : start + most]
    filled = np.concatenate([part, part[:1].repeat(most - len(part), 0)])
    # 0 is mid-grey.
    out = run(np.where(filled[..., None], np.float32(0), x))
    scores.append(np.asarray(_scores(out, loss))[: len(part), label])
  whole, *rest = np.concatenate(scores).astype(np.float64)
  fallen = np.tensordot(whole - np.array(rest), masks, 1) / masks.sum(axis=0)
  return float(whole), fallen


def _scores(logits: jax.Array, loss: str) -> jax.Array:
  if loss == "softmax":
    return jax.nn.softmax(logits, axis=-1)
  return jax.nn.sigmoid(logits)
