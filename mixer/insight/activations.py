"""What a Mixer does with images: its layers, and what they depend on."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import model as model_lib
from mixer import trained

# Bytes that the activations of a batch may take, about.
_BUDGET = 2e9
# SmoothGrad's noise, as a share of the span of the inputs; and the windows
# that cover a side of the image, two of them side by side at a place.
_NOISE, _PLACES = 0.15, 8


def layers(
  module: model_lib.MlpMixer, params: Any, x: jax.Array
) -> list[jax.Array]:
  """Tokens `[B, S, C]` after the stem and after every block.

  Of images x, float `[B, H, W, 3]` in [-1, 1].
  """
  module = module.clone(layout="batch_major")
  names = ["stem", *(f"MixerBlock_{i}" for i in range(module.num_blocks))]
  _, state = module.apply(
    {"params": params},
    x,
    capture_intermediates=lambda inner, method: inner.name in names,
  )
  found: Any = state["intermediates"]
  stem, *blocks = (found[name]["__call__"][0] for name in names)
  return [stem.reshape(stem.shape[0], -1, stem.shape[-1]), *blocks]


def batch_size(model: trained.Trained) -> int:
  """Images at once that keep within some GB, gradients included."""
  m, (height, width) = model.module, model.image_size
  tokens = height * width // m.patch_size**2
  # Both MLPs' hidden layers before and after GELU, and what surrounds them.
  numbers = tokens * (5 * m.hidden_dim + 2 * m.channels_mlp_dim)
  numbers += 2 * m.hidden_dim * m.tokens_mlp_dim
  return int(np.clip(_BUDGET // (4 * numbers * m.num_blocks), 1, 64))


def in_batches(
  function: Callable[[Any, Any], Any], state: Any, rows: np.ndarray, size: int
) -> Any:
  """A jitted `(state, rows) -> tree` over rows; the last batch is filled up."""
  state, parts = jax.device_put(state), []
  size = min(size, len(rows))
  for start in range(0, len(rows), size):
    part = rows[start : start + size]
    full = np.concatenate([part, part[:1].repeat(size - len(part), 0)])
    parts.append(jax.device_get(function(state, full)))
  return jax.tree.map(lambda *x: np.concatenate(x)[: len(rows)], *parts)


def features(model: trained.Trained, images: np.ndarray) -> np.ndarray:
  """Pre-logits float32 `[N, C]` of uint8 images `[N, H, W, 3]`."""

  @jax.jit
  def run(params: Any, images: jax.Array) -> jax.Array:
    x = model_lib.scale(images, model.module.dtype)
    return model_lib.apply(model.module, params, x, pre_logits=True)

  return in_batches(run, model.params, images, batch_size(model))


def plane(features: np.ndarray, method: str) -> tuple[np.ndarray, list[str]]:
  """Features `[N, C]` in two dimensions, always alike; and the axes' labels.

  Of "tsne" (van der Maaten and Hinton 2008) and "umap" (arXiv 1802.03426)
  neighbourhoods mean something, distances and axes little.
  """
  import threadpoolctl  # Of scikit-learn.
  from sklearn import decomposition, manifold

  x, last = features.astype(np.float64), len(features) - 1
  if method == "pca":
    pca = decomposition.PCA(2, svd_solver="full")
    points, label = (
      pca.fit_transform(x),
      "component {} ({:.0%} of the variance)",
    )
    shares = enumerate(pca.explained_variance_ratio_, 1)
    return points, [label.format(i, share) for i, share in shares]
  # Several threads would add up in any order.
  alone: Any = {"random_state": 0, "n_jobs": 1}
  if method == "tsne":
    near = min(30.0, last / 3)
    mapper: Any = manifold.TSNE(perplexity=near, init="pca", **alone)
  else:
    import umap  # pyright: ignore[reportMissingImports]

    mapper = umap.UMAP(n_neighbors=min(15, last), **alone)
  with threadpoolctl.threadpool_limits(1):
    points = mapper.fit_transform(x).astype(np.float64)
  return points, [f"{method} {i} (no unit)" for i in (1, 2)]


def central(grid: tuple[int, int]) -> int:
  """The patch in the middle; of an even number, the later one."""
  return grid[0] // 2 * grid[1] + grid[1] // 2


def receptive_fields(
  model: trained.Trained,
  images: np.ndarray,
  depths: Sequence[int],
  places: np.ndarray,
) -> np.ndarray:
  """|d |x| / d pixel| of the central token x, float64 `[depths, H, W]`.

  The effective receptive field (Luo et al. 2016, arXiv 1701.04128), where |x|
  is the length of the token's vector in the residual stream. Colours are added
  up; each image's field is divided by its sum before the mean over images. Of
  uint8 `[N, H, W, 3]`, after so many blocks, 0 for the stem.
  """
  module = model.module.clone(remat="block", dtype=jnp.float32)
  p, (height, width) = module.patch_size, model.image_size
  token = np.flatnonzero(places == central((height // p, width // p))).item()
  picks = np.eye(module.num_blocks + 1, dtype=np.float32)[list(depths)]

  @jax.jit
  def gradients(params: Any, images: jax.Array) -> jax.Array:
    def lengths(x: jax.Array) -> jax.Array:
      found = layers(module, params, x)
      return jnp.stack([_length(x_BSC[:, token]) for x_BSC in found])

    _, pull = jax.vjp(lengths, model_lib.scale(images, jnp.float32))

    def of_depth(pick: jax.Array) -> jax.Array:
      (dx,) = pull(jnp.broadcast_to(pick[:, None], (len(pick), len(images))))
      return jnp.abs(dx).sum(axis=-1)

    return jnp.swapaxes(jax.lax.map(of_depth, jnp.asarray(picks)), 0, 1)

  size = min(batch_size(model), 8)
  found = in_batches(gradients, model.params, images, size).astype(np.float64)
  sums = found.sum(axis=(2, 3), keepdims=True)
  return (found / np.where(sums > 0, sums, 1)).mean(axis=0)


def _length(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1))


def radius(field: np.ndarray, patch_size: int) -> float:
  """The mean distance in pixels from the centre of the central patch.

  Weighted by the field `[H, W]`; NaN if that is 0.
  """
  height, width = field.shape
  grid = height // patch_size, width // patch_size
  row, column = divmod(central(grid), grid[1])
  y = np.arange(height)[:, None] - ((row + 0.5) * patch_size - 0.5)
  x = np.arange(width) - ((column + 0.5) * patch_size - 0.5)
  total = field.sum()
  return float((field * np.hypot(y, x)).sum() / total) if total else np.nan


def hsic(grams: np.ndarray) -> np.ndarray:
  """Unbiased HSIC of every pair of layers, float64 `[L, n, n]` -> `[L, L]`.

  Song et al. 2012, equation 4, of inner products of n >= 4 examples.
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


def similarity(
  model: trained.Trained, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Compares the outputs of the stem and of all blocks, float64 `[L, L]`.

  Linear CKA (Kornblith et al. 2019, arXiv 1905.00414) of an image's tokens,
  taken as one vector, with the unbiased estimator of HSIC averaged over
  batches (Nguyen et al. 2021, arXiv 2010.15327); and the mean cosine between a
  token and itself in the other layer. Of uint8 images `[N, H, W, 3]`, at least
  4; those beyond whole batches of equal size are left out.
  """
  batches = -(-len(images) // batch_size(model))
  # The estimator of HSIC divides by n - 3.
  size = len(images) // min(batches, len(images) // 4)

  @jax.jit
  def compare(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = model_lib.scale(images, model.module.dtype)
    found = [x.astype(jnp.float32) for x in layers(model.module, params, x)]
    unit = [x / jnp.maximum(_length(x)[..., None], 1e-12) for x in found]
    rows = [jnp.stack([jnp.vdot(a, b) for b in unit]) for a in unit]
    grams = jnp.stack([_gram(x_BSC) for x_BSC in found])
    return grams, jnp.stack(rows) / (size * found[0].shape[1])

  params, hsics, cosines = jax.device_put(model.params), [], []
  for start in range(0, len(images) - size + 1, size):
    part = images[start : start + size]
    grams, cosine = jax.device_get(compare(params, part))
    hsics.append(hsic(grams.astype(np.float64)))
    cosines.append(cosine.astype(np.float64))
  return cka(np.mean(hsics, axis=0)), np.mean(cosines, axis=0)


def _gram(x_BSC: jax.Array) -> jax.Array:
  """Inner products of examples without their mean, which CKA ignores."""
  x = x_BSC.reshape(x_BSC.shape[0], -1)
  x = x - x.mean(axis=0)  # Else they cancel to rounding.
  return jnp.matmul(x, x.T, precision="highest")


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


def saliency(
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
  size = min(batch_size(model), 32)

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
    out, scores = in_batches(covered, (params, x), with_none, size)
    label = int(out[0].argmax())
    score, *after = scores[:, label].astype(np.float64)
    fall = np.tensordot(score - np.array(after), masks, 1) / masks.sum(axis=0)
    noise = np.zeros((1, *x.shape), np.float32)
    if smooth:
      scale = _NOISE * float(x.max() - x.min())
      noise = rng.normal(0, scale, (smooth, *x.shape)).astype(np.float32)
    slope = in_batches(slopes, (params, x, label), noise, size)
    slope = np.abs(slope.mean(axis=0, dtype=np.float64)).max(axis=-1)
    found.append((label, float(score), slope, fall))
  return found
