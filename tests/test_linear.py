"""Against flax.linen, numpy in float64, and what XLA is told to sum."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import block, layers, model
from tests import conftest

FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def twins(kind, dtype):
  """(ours, flax.linen's, an input)."""
  if kind == "patches":
    theirs = nn.Conv(7, (4, 4), strides=(4, 4), padding="VALID", dtype=dtype)
    return layers.PatchConv(7, 4, dtype), theirs, normal(2, 8, 12, 3)
  bias, x = kind == "dense", normal(3, 4, 5)
  return layers.Dense(7, bias, dtype), nn.Dense(7, bias, dtype), x


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("kind", ["dense", "no bias", "patches"])
def test_parameters_and_outputs_are_flax_s_to_the_bit(kind, dtype):
  ours, theirs, x = twins(kind, dtype)
  params = ours.init(jax.random.key(3), x)
  jax.tree.map(
    np.testing.assert_array_equal, params, theirs.init(jax.random.key(3), x)
  )
  params = jax.tree.map(lambda p: p + 0.5, params)
  got: Any = ours.apply(params, x)
  assert got.dtype == dtype
  np.testing.assert_array_equal(got, theirs.apply(params, x))


@pytest.mark.parametrize("kind", ["dense", "no bias", "patches"])
def test_gradients_in_float32_are_flax_s(kind):
  ours, theirs, x = twins(kind, FLOAT32)
  params = ours.init(jax.random.key(3), x)

  def gradients(module):
    def loss(params, x):
      return jnp.sum(jnp.sin(module.apply(params, x)))

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    gradients(ours),
    gradients(theirs),
  )


def test_rows_beyond_whole_patches_are_left_out():
  module, images = layers.PatchConv(3, 4), normal(2, 9, 14, 3)
  params = module.init(jax.random.key(0), images)

  def loss(params, images):
    out: Any = module.apply(params, images)
    return jnp.sum(out**2)

  whole = jax.value_and_grad(loss)(params, images)
  cut = jax.value_and_grad(loss)(params, images[:, :8, :12])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, cut
  )
  assert not jax.grad(loss, argnums=1)(params, images)[:, 8:].any()


def exactly_bfloat16(*shape, seed):
  return normal(*shape, seed=seed).astype(BFLOAT16)


@settings(deadline=None, max_examples=3)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 99))
def test_sums_over_many_rows_are_float32_in_a_bfloat16_model(i, o, seed):
  rows = 2048
  x = exactly_bfloat16(rows, i, seed=seed)
  dy = exactly_bfloat16(rows, o, seed=seed + 1)
  wide, dy_wide = x.astype(np.float64), dy.astype(np.float64)
  errors = {}
  for grad_dtype in (FLOAT32, BFLOAT16):
    module = layers.Dense(o, True, BFLOAT16, grad_dtype)
    params = module.init(jax.random.key(seed), x)
    _, back = jax.vjp(lambda p, m=module: m.apply(p, x), params)
    (found,) = back(jnp.asarray(dy))
    found = found["params"]
    assert found["kernel"].dtype == found["bias"].dtype == FLOAT32
    expected = wide.T @ dy_wide
    errors[grad_dtype] = np.abs(found["kernel"] - expected).max()
    # Of about sqrt(rows) = 45: bfloat16 would be off by up to 0.1.
    np.testing.assert_allclose(found["bias"], dy_wide.sum(axis=0), atol=1e-3)
    rounded = np.asarray(found["kernel"]).astype(BFLOAT16).astype(np.float32)
    if grad_dtype == BFLOAT16:
      np.testing.assert_array_equal(found["kernel"], rounded)
  assert errors[FLOAT32] < 1e-3
  assert errors[BFLOAT16] < 2.0**-8 * np.abs(expected).max() + 1e-3


@pytest.mark.parametrize(
  ("dtype", "grad_dtype"),
  [(BFLOAT16, FLOAT32), (BFLOAT16, BFLOAT16), (FLOAT32, BFLOAT16)],
)
def test_gradients_of_a_model_have_been_in_the_stated_precision(
  dtype, grad_dtype
):
  # Every kind of layer: stem, blocks, head, untied and grouped token mixing,
  # a pyramid's shortcut.
  mixing = block.TokenMixing(
    untied=True, groups=2, projection=True, pyramid=((0, 4),)
  )
  module = model.build(
    "S/4",
    7,
    num_blocks=1,
    hidden_dim=8,
    tokens_mlp_dim=12,
    channels_mlp_dim=40,
    mixing=mixing,
    dtype=dtype,
    grad_dtype=grad_dtype,
  )
  images = normal(16, 16, 16, 3).astype(dtype)
  params = jax.jit(module.init)(jax.random.key(0), images)["params"]
  params = jax.tree.map(
    lambda p: p + 0.1 * normal(*p.shape, seed=p.size), params
  )

  def loss(params):
    out: Any = module.apply({"params": params}, images)
    return jnp.sum(out**2)

  # Not jitted, as XLA may leave such rounding out where nothing is summed.
  found = jax.grad(loss)(params)
  for name, gradient in conftest.leaves(found):
    assert gradient.dtype == FLOAT32
    rounded = np.asarray(gradient).astype(BFLOAT16).astype(np.float32)
    narrow = np.array_equal(rounded, gradient)
    assert narrow == ("kernel" in name and grad_dtype == BFLOAT16), name


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("width", [5, 8, 15])
def test_the_first_axis_is_the_last_one_turned(width, dtype):
  x, first = normal(width, 6), layers.Dense(7, dtype=dtype, axis=0)
  last = layers.Dense(7, dtype=dtype)
  params = jax.tree.map(lambda p: p + 0.5, last.init(jax.random.key(3), x.T))

  def run(module, params, x):
    y, pull = jax.vjp(module.apply, params, x)
    return y, pull(jnp.cos(y))

  y, (of_params, dx) = jax.jit(run, static_argnums=0)(first, params, x)
  turned, (expected, dx_turned) = jax.jit(run, static_argnums=0)(
    last, params, x.T
  )
  assert y.dtype == dtype and dx.dtype == FLOAT32
  bound = 40 * float(jnp.finfo(dtype).eps)
  for got, want in ((y, turned.T), (dx, dx_turned.T)):
    np.testing.assert_allclose(got, want, rtol=bound, atol=bound)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=bound, atol=bound),
    of_params,
    expected,
  )
  assert {p.dtype for p in jax.tree.leaves(of_params)} == {FLOAT32}
