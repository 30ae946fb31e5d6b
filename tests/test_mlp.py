"""The MLP and its GELU against their closed forms in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import layers

ROOT = math.sqrt(2 / math.pi)
POINTS = np.concatenate([np.linspace(-12, 12, 4801), [-1e3, -40, 0, 40, 1e3]])


def double(x):
  """GELU's tanh form and its derivative in float64."""
  x = np.asarray(x, np.float64)
  t = np.tanh(ROOT * (x + 0.044715 * x**3))
  slope = ROOT * (1 + 3 * 0.044715 * x**2)
  return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * slope


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_and_its_derivative(dtype):
  x = jnp.asarray(POINTS, dtype)
  y, pull = jax.vjp(layers.gelu, x)
  (dx,) = pull(jnp.ones_like(y))
  assert y.dtype == dx.dtype == dtype
  value, derivative = double(np.asarray(x))
  # 1 + tanh and 1 - tanh^2 lose digits, which x multiplies.
  eps = float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(y, value, rtol=2 * eps, atol=8 * eps)
  np.testing.assert_allclose(dx, derivative, rtol=4 * eps, atol=32 * eps)


def test_gelu_is_jax_s():
  x = POINTS.astype(np.float32)
  np.testing.assert_allclose(
    layers.gelu(x), jax.nn.gelu(x, approximate=True), rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize("axis", [-1, 0])
def test_the_axis_that_it_acts_on(axis):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((4, 15)).astype(np.float32)
  module = layers.MlpBlock(7, out_dim=6, axis=axis)
  params = module.init(jax.random.key(0), x)["params"]
  params = jax.tree.map(lambda p: p + 0.1, params)
  one, two = (
    {k: np.asarray(v, np.float64) for k, v in params[f"Dense_{i}"].items()}
    for i in range(2)
  )
  assert one["kernel"].shape == (x.shape[axis], 7)
  rows = np.moveaxis(x, axis, -1).astype(np.float64)
  hidden, _ = double(rows @ one["kernel"] + one["bias"])
  expected = np.moveaxis(hidden @ two["kernel"] + two["bias"], -1, axis)
  got = module.apply({"params": params}, x)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_dropout_needs_a_key():
  x = np.ones((64, 3), np.float32)
  module = layers.MlpBlock(9, dropout=0.5)
  params = module.init(jax.random.key(0), x)
  plain = module.apply(params, x)
  np.testing.assert_array_equal(plain, module.apply(params, x))
  dropped = module.apply(params, x, jax.random.key(1))
  assert (np.asarray(dropped) == 0).mean() == pytest.approx(0.5, abs=0.2)
