"""Layers against flax.linen and their closed forms, gradients included."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import block, layers, model
from tests import conftest

FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")


def gradients(module, params, x):
  """Outputs, and what a cosine of them gives back to parameters and inputs."""
  y, pull = jax.vjp(module.apply, params, x)
  return y, pull(jnp.cos(y))


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def twins(kind, dtype):
  """(ours, flax.linen's, an input)."""
  if kind == "patches":  # Rows and columns beyond whole patches are left out.
    theirs = nn.Conv(7, (4, 4), strides=(4, 4), padding="VALID", dtype=dtype)
    return layers.PatchConv(7, 4, dtype), theirs, normal(2, 9, 14, 3)
  if kind == "norm":
    return layers.LayerNorm(), nn.LayerNorm(), 3 * normal(3, 4, 5) + 1
  bias, x = kind == "dense", normal(3, 4, 5)
  return layers.Dense(7, bias, dtype), nn.Dense(7, bias, dtype), x


@pytest.mark.parametrize("kind", ["dense", "no bias", "patches", "norm"])
def test_parameters_outputs_and_gradients_are_flax_s(kind):
  ours, theirs, x = twins(kind, FLOAT32)
  params: Any = ours.init(jax.random.key(3), x)
  jax.tree.map(
    np.testing.assert_array_equal, params, theirs.init(jax.random.key(3), x)
  )
  params = jax.tree.map(lambda p: p + 0.5, params)

  compiled = jax.jit(gradients, static_argnums=0)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4),
    compiled(ours, params, x),
    compiled(theirs, params, x),
  )


@pytest.mark.parametrize("kind", ["dense", "no bias", "patches"])
def test_bfloat16_outputs_are_flax_s_to_the_bit(kind):
  ours, theirs, x = twins(kind, BFLOAT16)
  params: Any = ours.init(jax.random.key(3), x)
  got: Any = ours.apply(params, x)
  assert got.dtype == BFLOAT16
  np.testing.assert_array_equal(got, theirs.apply(params, x))


def test_layer_norm_of_bfloat16_goes_through_float32():
  x, dy = normal(2, 6, 64).astype(BFLOAT16)
  scale, bias = normal(2, 64)

  def run(x, dy, dtype):
    y, pull = jax.vjp(layers.layer_norm, x.astype(dtype), scale, bias)
    return y, *pull(jnp.asarray(dy, dtype))

  for got, want in zip(run(x, dy, BFLOAT16), run(x, dy, FLOAT32), strict=True):
    narrow = got.shape == x.shape
    assert got.dtype == (BFLOAT16 if narrow else FLOAT32)
    np.testing.assert_allclose(
      got.astype(np.float32), want, rtol=2**-8 if narrow else 1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_gelu_and_its_derivative(dtype):
  ends = [-1e3, -40, 0, 40, 1e3]
  x = jnp.asarray(np.concatenate([np.linspace(-12, 12, 481), ends]), dtype)
  y, pull = jax.vjp(layers.gelu, x)
  (dx,) = pull(jnp.ones_like(y))
  assert y.dtype == dx.dtype == dtype
  point = np.asarray(x, np.float64)
  root = np.sqrt(2 / np.pi)
  t = np.tanh(root * (point + 0.044715 * point**3))
  slope = root * (1 + 3 * 0.044715 * point**2)
  # 1 + tanh and 1 - tanh^2 lose digits, which x multiplies.
  eps = float(jnp.finfo(dtype).eps)
  for got, want, digits in (
    (y, 0.5 * point * (1 + t), 8),
    (dx, 0.5 * (1 + t) + 0.5 * point * (1 - t**2) * slope, 32),
  ):
    np.testing.assert_allclose(got, want, rtol=4 * eps, atol=digits * eps)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("width", [5, 8])  # Filled up to 8, and as it is.
def test_the_first_axis_is_the_last_one_turned(width, dtype):
  x = normal(width, 6)
  first, last = (layers.MlpBlock(7, axis=axis, dtype=dtype) for axis in (0, -1))
  params = jax.tree.map(lambda p: p + 0.5, last.init(jax.random.key(3), x.T))

  y, (of_params, dx) = jax.jit(gradients, static_argnums=0)(first, params, x)
  turned, (expected, dx_turned) = jax.jit(gradients, static_argnums=0)(
    last, params, x.T
  )
  bound = 100 * float(jnp.finfo(dtype).eps)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=bound, atol=bound * np.abs(b).max()
    ),
    (y, of_params, dx),
    (turned.T, expected, dx_turned.T),
  )
  assert {p.dtype for p in jax.tree.leaves(of_params)} == {FLOAT32}


@pytest.mark.parametrize("grad_dtype", [FLOAT32, BFLOAT16])
def test_sums_over_many_rows_are_float32_in_a_bfloat16_model(grad_dtype):
  x, dy = normal(2, 2048, 7).astype(BFLOAT16)
  wide, dy_wide = x.astype(np.float64), dy.astype(np.float64)
  module = layers.Dense(7, True, BFLOAT16, grad_dtype)
  params = module.init(jax.random.key(0), x)
  found = jax.vjp(lambda p: module.apply(p, x), params)[1](jnp.asarray(dy))
  found = found[0]["params"]
  assert found["kernel"].dtype == found["bias"].dtype == FLOAT32
  # Of about sqrt(rows) = 45: bfloat16 would be off by up to 0.1.
  np.testing.assert_allclose(found["bias"], dy_wide.sum(axis=0), atol=1e-3)
  expected = wide.T @ dy_wide
  digits = 2.0**-8 * np.abs(expected).max() if grad_dtype == BFLOAT16 else 0
  np.testing.assert_allclose(found["kernel"], expected, atol=digits + 1e-3)


@pytest.mark.parametrize(
  ("dtype", "grad_dtype"),
  [(BFLOAT16, FLOAT32), (BFLOAT16, BFLOAT16), (FLOAT32, BFLOAT16)],
)
def test_gradients_of_a_model_have_been_in_the_stated_precision(
  dtype, grad_dtype
):
  # Every kind of layer: stem, blocks, head, untied and grouped token mixing,
  # a pyramid's shortcut.
  mixing = block.TokenMixing(True, 2, True, ((0, 4),))
  module = model.MlpMixer(
    *(4, 1, 8, 12, 40, 7), mixing=mixing, dtype=dtype, grad_dtype=grad_dtype
  )
  images = normal(16, 16, 16, 3).astype(dtype)
  params = jax.jit(module.init)(jax.random.key(0), images)["params"]
  params = jax.tree.map(
    lambda p: p + 0.1 * normal(*p.shape, seed=p.size), params
  )

  def loss(params):
    return jnp.sum(model.apply(module, params, jnp.asarray(images)) ** 2)

  # Not jitted, as XLA may leave such rounding out where nothing is summed.
  for name, gradient in conftest.leaves(jax.grad(loss)(params)):
    assert gradient.dtype == FLOAT32
    rounded = np.asarray(gradient).astype(BFLOAT16).astype(np.float32)
    narrow = np.array_equal(rounded, gradient)
    assert narrow == ("kernel" in name and grad_dtype == BFLOAT16), name
