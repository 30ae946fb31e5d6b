"""The token MLP of one image inside of a TPU's kernel, and its gradients.

An image is [S, C] with tokens along the rows, so that both layers are plain
matmuls from the left, W1^T [T, S] and then W2^T [S, T]. The kernels come
transposed by XLA, once a call. The whole C is there: 512 to 1280
columns keep the matrix unit busy whatever S and T are. Matmul operands have
the dtype of the activations; sums, GELU (the tanh form) and the gradients of
kernels and biases are float32.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mixer.mlp import GELU_CUBE, GELU_ROOT

_LINEAR, _CUBIC = GELU_ROOT, GELU_ROOT * GELU_CUBE

Parameters = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def mlp(
  y_SC: jax.Array,
  w1_TS: jax.Array,
  b1_T1: jax.Array,
  w2_ST: jax.Array,
  b2_S1: jax.Array,
) -> jax.Array:
  """One image's output, float32 `[S, C]`; kernels are transposed."""
  h_TC = _matmul(w1_TS, y_SC) + b1_T1
  tanh_TC = jnp.tanh(h_TC * (_LINEAR + _CUBIC * (h_TC * h_TC)))
  g_TC = h_TC * (0.5 * tanh_TC + 0.5)
  return _matmul(w2_ST, g_TC.astype(y_SC.dtype)) + b2_S1


def mlp_gradients(
  y_SC: jax.Array,
  dout_SC: jax.Array,
  w1_TS: jax.Array,
  b1_T1: jax.Array,
  w1_ST: jax.Array,
  w2_TS: jax.Array,
) -> tuple[jax.Array, Parameters]:
  """One image's gradients, all float32.

  Returns:
    Of the input, `[S, C]`; of kernels and biases, `[S, T]`, `[T, 1]`,
    `[T, S]`, `[S, 1]`.
  """
  dtype = y_SC.dtype
  h_TC = _matmul(w1_TS, y_SC) + b1_T1
  square_TC = h_TC * h_TC
  tanh_TC = jnp.tanh(h_TC * (_LINEAR + _CUBIC * square_TC))
  gate_TC = 0.5 * tanh_TC + 0.5
  inner_TC = 0.5 * _LINEAR + 1.5 * _CUBIC * square_TC
  slope_TC = gate_TC + h_TC * (1 - tanh_TC * tanh_TC) * inner_TC
  g_TC = (h_TC * gate_TC).astype(dtype)
  dh_TC = _matmul(w2_TS, dout_SC) * slope_TC
  dbias1_T1 = jnp.sum(dh_TC, axis=1, keepdims=True)
  dbias2_S1 = jnp.sum(dout_SC.astype(jnp.float32), axis=1, keepdims=True)
  dh_TC = dh_TC.astype(dtype)
  return _matmul(w1_ST, dh_TC), (
    _matmul_columns(y_SC, dh_TC),
    dbias1_T1,
    _matmul_columns(g_TC, dout_SC),
    dbias2_S1,
  )


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _matmul_columns(a: jax.Array, b: jax.Array) -> jax.Array:
  """A b^T, the sum over the columns of both."""
  dims = (((1,), (1,)), ((), ()))
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def transposed(
  kernel1_ST: jax.Array,
  bias1_T: jax.Array,
  kernel2_TS: jax.Array,
  bias2_S: jax.Array,
  dtype: Any,
) -> Parameters:
  """What `mlp` takes of the parameters."""
  w1_TS, w2_ST = kernel1_ST.T.astype(dtype), kernel2_TS.T.astype(dtype)
  return w1_TS, bias1_T[:, None], w2_ST, bias2_S[:, None]


def both_ways(
  kernel1_ST: jax.Array, bias1_T: jax.Array, kernel2_TS: jax.Array, dtype: Any
) -> Parameters:
  """What `mlp_gradients` takes of the parameters."""
  w1_ST, w2_TS = kernel1_ST.astype(dtype), kernel2_TS.astype(dtype)
  return w1_ST.T, bias1_T[:, None], w1_ST, w2_TS


def sum_shapes(kernel1_ST: jax.Array) -> Sequence[tuple[int, int]]:
  """Of the parameters' gradients, as `mlp_gradients` gives them."""
  s, t = kernel1_ST.shape
  return (s, t), (t, 1), (t, s), (s, 1)
