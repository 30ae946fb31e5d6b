"""LayerNorm whose gradient keeps nothing but its input and two numbers a row.

JAX's own derivative keeps float32 arrays as large as the input: twice its bytes
each where that is bfloat16.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer import linear

EPSILON = 1e-6


class LayerNorm(nn.Module):
  """LayerNorm over the last axis; parameters are those of `nn.LayerNorm`.

  Statistics and parameters are float32, what comes out has the dtype of what
  goes in.

  Attributes:
    grad_dtype: None for derivatives that are JAX's own; see `mixer.linear`.
  """

  grad_dtype: jnp.dtype | None = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., C]` -> `[..., C]`."""
    shape = (x.shape[-1],)
    scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
    normal = linear.with_gradient(layer_norm, self.grad_dtype)
    return normal(x, scale, bias)


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
  """`(x - mean) / sqrt(variance + 1e-6) * scale + bias` (arXiv 1607.06450).

  Args:
    x: `[..., C]`.
    scale: float32 `[C]`.
    bias: float32 `[C]`.

  Returns:
    `[..., C]` in the dtype of `x`.
  """
  return _forward(x, scale, bias)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
  wide = x.astype(jnp.float32)
  # Both means in one pass over x, as Flax takes them.
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  variance = jnp.maximum(square - jnp.square(mean), 0.0)
  rate = jax.lax.rsqrt(variance + EPSILON)
  y = (wide - mean) * (rate * scale) + bias
  return y.astype(x.dtype), (x, scale, mean, rate)


def _backward(saved: Any, dy: jax.Array) -> Any:
  x, scale, mean, rate = saved
  wide = dy.astype(jnp.float32)
  normal = (x.astype(jnp.float32) - mean) * rate
  rows = tuple(range(x.ndim - 1))
  weighted = wide * scale
  along = jnp.mean(weighted * normal, axis=-1, keepdims=True)
  dx = rate * (
    weighted - jnp.mean(weighted, axis=-1, keepdims=True) - normal * along
  )
  dscale, dbias = jnp.sum(wide * normal, axis=rows), jnp.sum(wide, axis=rows)
  return dx.astype(x.dtype), dscale, dbias


layer_norm.defvjp(_forward, _backward)
