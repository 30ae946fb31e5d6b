"""What a Mixer does with images: its layers, and what they depend on."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import model as model_lib
from mixer import trained
from mixer.errors import UserError

_BUDGET = 2e9  # Bytes that the activations of a batch may take, about.
_NOISE = 0.15  # SmoothGrad's, as a share of the range of the input.
_PLACES = 8  # Occlusion windows along a side; each overlaps the next by half.


def layers(
  module: model_lib.MlpMixer, params: Any, x: jax.Array
) -> list[jax.Array]:
  """Tokens `[B, S, C]` after the stem and every block, of x `[B, H, W, 3]`."""
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
  """Images at once that keep within _BUDGET, gradients included."""
  m, (height, width) = model.module, model.image_size
  tokens = height * width // m.patch_size**2
  # Both MLPs' hidden layers before and after GELU, and what surrounds them.
  numbers = tokens * (5 * m.hidden_dim + 2 * m.channels_mlp_dim)
  numbers += 2 * m.hidden_dim * m.tokens_mlp_dim
  return int(np.clip(_BUDGET // (4 * numbers * m.num_blocks), 1, 64))


def in_batches(
  function: Callable[[Any, Any], Any], state: Any, rows: np.ndarray, size: int
) -> np.ndarray:
  """Jitted `(state, rows) -> array` over rows; the last batch is filled up."""
  state, parts = jax.device_put(state), []
  size = min(size, len(rows))
  for start in range(0, len(rows), size):
    part = rows[start : start + size]
    full = np.concatenate([part, part[:1].repeat(size - len(part), 0)])
    parts.append(np.asarray(function(state, full)))
  return np.concatenate(parts)[: len(rows)]


def features(model: trained.Trained, images: np.ndarray) -> np.ndarray:
  """Pre-logits float32 `[N, C]` of uint8 images `[N, H, W, 3]`."""

  @jax.jit
  def run(params: Any, images: jax.Array) -> jax.Array:
    x = model_lib.scale(images, model.module.dtype)
    return model_lib.apply(model.module, params, x, pre_logits=True)

  return in_batches(run, model.params, images, batch_size(model))


def plane(features: np.ndarray, method: str) -> tuple[np.ndarray, list[str]]:
  """Features `[N, C]` as reproducible points `[N, 2]`; the axes' labels."""
  import threadpoolctl  # Of scikit-learn.
  from sklearn import decomposition, manifold

  x, last = features.astype(np.float64), len(features) - 1
  if method == "pca":
    pca = decomposition.PCA(2, svd_solver="full")
    points = pca.fit_transform(x)
    label = "component {} ({:.0%} of the variance)"
    shares = enumerate(pca.explained_variance_ratio_, 1)
    return points, [label.format(*share) for share in shares]
  # Several threads would add up in any order.
  alone: Any = {"random_state": 0, "n_jobs": 1}
  if method == "tsne":
    near = min(30.0, last / 3)
    mapper: Any = manifold.TSNE(perplexity=near, init="pca", **alone)
  else:
    try:
      import umap  # pyright: ignore[reportMissingImports]
    except ImportError as e:
      raise UserError("install it: python -m pip install umap-learn.") from e
    mapper = umap.UMAP(n_neighbors=min(15, last), **alone)
  with threadpoolctl.threadpool_limits(1):
    points = mapper.fit_transform(x).astype(np.float64)
  return points, [f"{method} {i} (no unit)" for i in (1, 2)]


def receptive_fields(
  model: trained.Trained,
  images: np.ndarray,
  depths: Sequence[int],
  places: np.ndarray,
) -> np.ndarray:
  """|d |x| / d pixel| of the central token x, float64 `[depths, H, W]`.

  The effective receptive field (arXiv 1701.04128) after so many blocks, 0 for
  the stem. Colours are added up; images have equal weight.
  """
  module = model.module.clone(remat="block", dtype=jnp.float32)
  rows, columns = (n // module.patch_size for n in model.image_size)
  middle = rows // 2 * columns + columns // 2
  token = np.flatnonzero(places == middle).item()

  @jax.jit
  def gradients(params: Any, images: jax.Array) -> jax.Array:
    def lengths(x: jax.Array) -> jax.Array:
      found = layers(module, params, x)
      x_LBC = jnp.stack([found[i][:, token] for i in depths])
      return jnp.linalg.norm(x_LBC, axis=-1).sum(axis=-1)

    _, pull = jax.vjp(lengths, model_lib.scale(images, jnp.float32))
    one_by_one = jnp.eye(len(depths))
    fields = jax.lax.map(lambda x: jnp.abs(pull(x)[0]).sum(-1), one_by_one)
    return jnp.swapaxes(fields, 0, 1)

  size = min(batch_size(model), 8)
  found = in_batches(gradients, model.params, images, size).astype(np.float64)
  sums = found.sum(axis=(2, 3), keepdims=True)
  return (found / np.where(sums > 0, sums, 1)).mean(axis=0)


def radius(field: np.ndarray, patch_size: int) -> float:
  """The field's mean distance from the central patch in pixels; NaN if 0."""
  y, x = (
    np.arange(n) - (n // patch_size // 2 + 0.5) * patch_size + 0.5
    for n in field.shape
  )
  total = field.sum() or np.nan
  return float((field * np.hypot(y[:, None], x)).sum() / total)


def hsic(grams: np.ndarray) -> np.ndarray:
  """Unbiased HSIC of each pair of L layers, of Gram matrices `[L, n, n]`.

  Song et al. 2012, equation 4; n >= 4.
  """
  n = grams.shape[-1]
  off = grams * (1 - np.eye(n))
  flat, rows = off.reshape(len(off), -1), off.sum(axis=2)
  sums = off.sum(axis=(1, 2))
  means = np.outer(sums, sums) / ((n - 1) * (n - 2))
  return (flat @ flat.T + means - rows @ rows.T * 2 / (n - 2)) / (n * (n - 3))


def cka(hsics: np.ndarray) -> np.ndarray:
  """HSIC, of one batch or averaged over several, -> linear CKA `[L, L]`."""
  own = np.sqrt(np.maximum(np.diagonal(hsics), 0))
  scale = np.outer(own, own)
  return hsics / np.where(scale > 0, scale, np.nan)


def similarity(
  model: trained.Trained, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Linear CKA and mean cosine of each pair of layers, float64 `[L, L]`.

  CKA (arXiv 1905.00414) of images' tokens as one vector, with unbiased HSIC
  averaged over batches of equal size (2010.15327); cosines of single tokens.
  """
  batches = -(-len(images) // batch_size(model))
  # The estimator of HSIC divides by n - 3.
  size = len(images) // min(batches, len(images) // 4)

  @jax.jit
  def compare(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = model_lib.scale(images, model.module.dtype)
    x_LBSC = jnp.stack(layers(model.module, params, x)).astype(jnp.float32)
    lengths = jnp.linalg.norm(x_LBSC, axis=-1, keepdims=True)
    unit = x_LBSC / jnp.maximum(lengths, 1e-12)
    cosine = jnp.einsum("lbsc,mbsc->lm", unit, unit) / lengths[0].size
    # CKA ignores the mean; with it products cancel to rounding.
    x = x_LBSC - x_LBSC.mean(axis=1, keepdims=True)
    x = x.reshape(len(x), size, -1)
    return jnp.matmul(x, x.swapaxes(1, 2), precision="highest"), cosine

  params, hsics, cosines = jax.device_put(model.params), [], []
  for start in range(0, len(images) - size + 1, size):
    found = compare(params, images[start : start + size])
    grams, cosine = (np.asarray(x, np.float64) for x in found)
    hsics.append(hsic(grams))
    cosines.append(cosine)
  return cka(np.mean(hsics, axis=0)), np.mean(cosines, axis=0)


def windows(size: Sequence[int], patch_size: int) -> tuple[int, np.ndarray]:
  """Windows to cover: their side in pixels, bool `[N, H, W]`."""
  stride = max(1, round(max(size) / patch_size / _PLACES)) * patch_size
  side = min(2 * stride, *size)

  def along(length: int) -> np.ndarray:
    start = np.arange(stride - side, length, stride)[:, None]
    return (np.arange(length) >= start) & (np.arange(length) < start + side)

  rows, columns = map(along, size)
  both = rows[:, None, :, None] & columns[None, :, None, :]
  return side, both.reshape(-1, *size)


def saliency(
  model: trained.Trained, images: np.ndarray, smooth: int
) -> list[tuple[int, float, np.ndarray, np.ndarray]]:
  """Explains the top class of each image: (class, its score, slope, fall).

  `[H, W]` slope: the largest |d logit / d colour| (arXiv 1312.6034) averaged
  over `smooth` noisy copies if any (1706.03825). `[H, W]` fall of the score:
  the mean over the mid-grey windows that cover a pixel (1311.2901).
  """
  module, size = model.module, min(batch_size(model), 32)
  activate = jax.nn.softmax if model.loss == "softmax" else jax.nn.sigmoid

  def logits(params: Any, x: jax.Array) -> jax.Array:
    return model_lib.apply(module, params, x.astype(module.dtype))

  @jax.jit
  def slopes(state: Any, noise: jax.Array) -> jax.Array:
    params, x, label = state
    return jax.grad(lambda x: logits(params, x)[:, label].sum())(x + noise)

  @jax.jit
  def covered(state: Any, masks: jax.Array) -> jax.Array:
    params, x = state
    return logits(params, jnp.where(masks[..., None], jnp.float32(0), x))

  params, found = jax.device_put(model.params), []
  _, masks = windows(images.shape[1:3], module.patch_size)
  with_none = np.concatenate([np.zeros_like(masks[:1]), masks])
  rng = np.random.Generator(np.random.Philox(key=[0, 0]))
  for image in images:
    x = (image.astype(np.float32) / 127.5 - 1).astype(np.float32)
    out = in_batches(covered, (params, x), with_none, size)
    label = int(out[0].argmax())
    score, *after = np.asarray(activate(out), np.float64)[:, label]
    fall = np.tensordot(score - np.array(after), masks, 1) / masks.sum(axis=0)
    scale = _NOISE * float(x.max() - x.min()) if smooth else 0
    noise = rng.normal(0, scale, (max(smooth, 1), *x.shape))
    noise = noise.astype(np.float32)
    slope = in_batches(slopes, (params, x, label), noise, size)
    slope = np.abs(slope.mean(axis=0, dtype=np.float64)).max(axis=-1)
    found.append((label, float(score), slope, fall))
  return found
