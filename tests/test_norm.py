"""LayerNorm against flax.linen and against numpy in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import layers


def double(x, scale, bias, dy):
  """LayerNorm and its gradients in float64, by the textbook."""
  x, scale, bias, dy = (np.asarray(a, np.float64) for a in (x, scale, bias, dy))
  n = x.shape[-1]
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  normal = (x - mean) / np.sqrt(variance + 1e-6)
  # The whole matrix of derivatives of a row.
  eye = np.eye(n)
  inner = normal[..., :, None] * normal[..., None, :]
  jacobian = (eye - 1 / n - inner / n) / np.sqrt(variance + 1e-6)[..., None]
  dx = np.einsum("...i,...ij->...j", dy * scale, jacobian)
  rows = tuple(range(x.ndim - 1))
  return normal * scale + bias, (
    dx,
    (dy * normal).sum(rows),
    dy.sum(rows),
  )


@settings(deadline=None, max_examples=6)
@given(
  st.lists(st.integers(1, 4), max_size=2),
  st.integers(2, 12),
  st.floats(0.1, 30),
  st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_float64(rows, c, size, seed):
  rng = np.random.default_rng(seed)
  x, dy = rng.standard_normal((2, *rows, c)).astype(np.float32)
  scale, bias = rng.standard_normal((2, c)).astype(np.float32)
  x = x * np.float32(size) + np.float32(1)
  y, pull = jax.vjp(layers.layer_norm, x, scale, bias)
  expected, gradients = double(x, scale, bias, dy)
  np.testing.assert_allclose(y, expected, rtol=1e-3, atol=2e-3)
  for got, want in zip(pull(jnp.asarray(dy)), gradients, strict=True):
    # A float32 variance of numbers far from 0 has few digits.
    bound = 5e-3 * (1 + np.abs(want).max())
    np.testing.assert_allclose(got, want, atol=bound)


def test_bfloat16_goes_through_float32():
  rng = np.random.default_rng(0)
  x, dy = rng.standard_normal((2, 6, 64)).astype(jnp.bfloat16)
  scale, bias = rng.standard_normal((2, 64)).astype(np.float32)
  y, pull = jax.vjp(layers.layer_norm, x, scale, bias)
  expected, gradients = double(x, scale, bias, dy)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(np.float32), expected, rtol=2**-8)
  dx, *others = pull(jnp.asarray(dy))
  assert dx.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    dx.astype(np.float32), gradients[0], rtol=2**-8, atol=1e-5
  )
  for got, want in zip(others, gradients[1:], strict=True):
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_and_output_are_flax_s(dtype):
  x = np.random.default_rng(1).standard_normal((2, 3, 8)).astype(dtype)
  ours, theirs = layers.LayerNorm(), nn.LayerNorm(dtype=jnp.float32)
  params = ours.init(jax.random.key(0), x)
  jax.tree.map(
    np.testing.assert_array_equal,
    params,
    theirs.init(jax.random.key(0), x.astype(np.float32)),
  )
  params = jax.tree.map(lambda p: p + 0.5, params)
  got = ours.apply(params, x)
  want = theirs.apply(params, x.astype(np.float32))
  assert got.dtype == dtype
  atol = 1e-6 if dtype == jnp.float32 else 2**-7
  np.testing.assert_allclose(
    got.astype(np.float32), want, rtol=float(jnp.finfo(dtype).eps), atol=atol
  )
