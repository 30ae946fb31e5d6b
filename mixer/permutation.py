"""Fixed permutations of the input: section 3.4 of the paper, figure 4.

Mixer-B/16 was trained there on images of which either the 16 x 16 patches were
shuffled and the pixels inside every patch as well, by one permutation that all
patches share ("patches"), or all pixels of the image were ("pixels"). One
permutation serves all images, in training and evaluation. A pixel moves as a
whole, with its three colours.
"""

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("", "patches", "pixels")


def order(count: int, seed: int, purpose: int = 0) -> np.ndarray:
  """A random order of `count` things, int32 `[count]`.

  Args:
    count: how many.
    seed: with `purpose` decides; the same on all machines and versions.
    purpose: tells apart orders of one seed.
  """
  # Ranks of raw numbers: NumPy promises these for ever, unlike its own
  # permutations (NEP 19).
  key = np.array([seed, purpose], np.uint64)
  raw = np.random.Philox(key=key).random_raw(count)
  return np.argsort(raw, kind="stable").astype(np.int32)


def permute(
  images: jax.Array, kind: str, patch_size: int, seed: int
) -> jax.Array:
  """Permutes pixels of images, all alike.

  Args:
    images: `[B, H, W, 3]` of any dtype.
    kind: of `KINDS`; "" leaves the images as they are.
    patch_size: P, in pixels, which divides H and W; for "patches".
    seed: the one thing, beside the sizes, that the permutation depends on.

  Returns:
    As `images`: new patch i is an old one, and so is its pixel p an old pixel.
  """
  if not kind:
    return images
  b, h, w, c = images.shape
  if kind == "pixels":
    flat = images.reshape(b, h * w, c)
    return jnp.take(flat, order(h * w, seed), axis=1).reshape(images.shape)
  p = patch_size
  x = images.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3)
  x = x.reshape(b, (h // p) * (w // p), p * p, c)
  x = jnp.take(x, order(x.shape[1], seed), axis=1)
  x = jnp.take(x, order(p * p, seed, purpose=1), axis=2)
  x = x.reshape(b, h // p, w // p, p, p, c).swapaxes(2, 3)
  return x.reshape(images.shape)
