"""What a Mixer computes on the way: its tokens after each block."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixer import model as model_lib

# Bytes that the activations of a batch may take, about.
_BUDGET = 2e9


def layers(
  module: model_lib.MlpMixer, params: Any, images: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
  """The output, and the residual stream that leads to it.

  Args:
    module: with or without a head.
    params: nested dict.
    images: float `[B, H, W, 3]` in [-1, 1].

  Returns:
    What the module returns; and its tokens, `[B, S, C]` in the model's dtype,
    after the stem and after every block: num_blocks + 1 arrays.
  """
  module = module.clone(layout="batch_major")
  names = [f"MixerBlock_{i}" for i in range(module.num_blocks)]

  def wanted(inner: nn.Module, method: str) -> bool:
    return method == "__call__" and inner.name in ("stem", *names)

  out, state = module.apply(
    {"params": params}, images, capture_intermediates=wanted
  )
  found: Any = state["intermediates"]
  stem, *blocks = (found[name]["__call__"][0] for name in ("stem", *names))
  return out, [stem.reshape(stem.shape[0], -1, stem.shape[-1]), *blocks]


def batch_size(
  module: model_lib.MlpMixer, image_size: tuple[int, int], most: int
) -> int:
  """So many images at once keep within some GB, gradients included.

  Args:
    module: the model.
    image_size: (height, width) in pixels.
    most: upper bound.
  """
  m = module
  tokens = image_size[0] * image_size[1] // m.patch_size**2
  # Both MLPs' hidden layers before and after GELU, and what surrounds them.
  numbers = tokens * (5 * m.hidden_dim + 2 * m.channels_mlp_dim)
  numbers += 2 * m.hidden_dim * m.tokens_mlp_dim
  return int(np.clip(_BUDGET // (4 * numbers * m.num_blocks), 1, most))


def in_batches(
  function: Callable[[jax.Array], Any], images: np.ndarray, size: int
) -> Any:
  """`function` over images, a batch at a time; the last one is filled up.

  Args:
    function: jitted, float `[size, H, W, 3]` in [-1, 1] -> array or a tree of
      arrays `[size, ...]`.
    images: uint8 `[N, H, W, 3]`.
    size: of a batch.

  Returns:
    A tree of numpy arrays `[N, ...]`.
  """
  size = min(size, len(images))
  parts = []
  for start in range(0, len(images), size):
    batch = images[start : start + size]
    full = np.concatenate([batch, batch[:1].repeat(size - len(batch), 0)])
    out = jax.device_get(
      function(model_lib.scale(jnp.asarray(full), jnp.float32))
    )
    parts.append(out)
  return jax.tree.map(lambda *x: np.concatenate(x)[: len(images)], *parts)


def with_params(run: Callable[..., Any], params: Any) -> Callable[..., Any]:
  """A jitted function whose weights lie on the device, and are no constants."""
  return functools.partial(run, jax.device_put(params))


def features(
  module: model_lib.MlpMixer, params: Any, images: np.ndarray
) -> np.ndarray:
  """Pre-logits float32 `[N, C]` of uint8 images `[N, H, W, 3]`."""

  @jax.jit
  def run(params: Any, x: jax.Array) -> jax.Array:
    return model_lib.apply(
      module, params, x.astype(module.dtype), pre_logits=True
    )

  size = batch_size(module, images.shape[1:3], 64)
  return in_batches(with_params(run, params), images, size)
