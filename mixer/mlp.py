"""The MLP that mixes tokens as well as channels (section 2 of the paper)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mixer import linear

# What an MLP's first matmul gives out, for policies of rematerialisation.
PRE_ACTIVATIONS = "pre_activations"
# Of GELU, x / 2 (1 + tanh(ROOT (x + CUBE x^3))).
GELU_ROOT = math.sqrt(2.0 / math.pi)
GELU_CUBE = 0.044715


class MlpBlock(nn.Module):
  """Dense -> GELU -> dropout -> Dense -> dropout on one axis.

  GELU is the tanh approximation, as in the released models.

  Attributes:
    mlp_dim: hidden width.
    dropout: rate, after the GELU and at the end.
    dtype: of the computation.
    out_dim: width of the output; 0: that of the input.
    grad_dtype: of the kernels' gradients; see `mixer.linear`.
    axis: on which it acts: the last, -1, or the first, 0.
  """

  mlp_dim: int
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  out_dim: int = 0
  grad_dtype: jnp.dtype | None = jnp.float32
  axis: int = -1

  @nn.compact
  def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Computes the MLP.

    Args:
      x: `[..., D]`, or `[D, ...]` where `axis` is 0.
      key: for dropout, which acts only where it is given.

    Returns:
      `[..., out_dim or D]`, or `[out_dim or D, ...]`.
    """
    out_dim = self.out_dim or x.shape[self.axis]
    keys = (None, None) if key is None else jax.random.split(key)
    shared: Any = dict(
      dtype=self.dtype, grad_dtype=self.grad_dtype, axis=self.axis
    )
    x = linear.Dense(self.mlp_dim, **shared)(x)
    activation = linear.with_gradient(gelu, self.grad_dtype)
    x = activation(checkpoint_name(x, PRE_ACTIVATIONS))
    x = self._drop(x, keys[0])
    x = linear.Dense(out_dim, **shared)(x)
    return self._drop(x, keys[1])

  def _drop(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
    drop = nn.Dropout(self.dropout, deterministic=key is None)
    return drop(x, rng=key)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """GELU by its tanh approximation (arXiv 1606.08415).

  Its gradient keeps `x` alone and computes the tanh again: less to move than
  what JAX's own derivative keeps.

  Args:
    x: any shape.

  Returns:
    In the shape and dtype of `x`.
  """
  # So written, and in the matmul's own dtype, XLA's compiler for GPUs makes it
  # the end of the matmul before it, which has float32 there (BIAS_GELU_AUX).
  cubic = x + GELU_CUBE * (x * x * x)
  return x * (0.5 * (1.0 + jnp.tanh(GELU_ROOT * cubic)))


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  return gelu(x), x


def _gelu_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
  # Else XLA takes this tanh and that of the forward pass for one, and keeps it.
  x = jax.lax.optimization_barrier(x)
  square = x * x
  t = jnp.tanh(GELU_ROOT * (x + GELU_CUBE * (square * x)))
  slope = GELU_ROOT * (1.0 + 3.0 * GELU_CUBE * square)
  # In the dtype of x: were it float32, XLA would write that for the sum that is
  # the bias's gradient. Inside of a kernel it has float32 all the same.
  return (dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope),)


gelu.defvjp(_gelu_forward, _gelu_backward)
