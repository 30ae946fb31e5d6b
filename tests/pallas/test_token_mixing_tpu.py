"""The kernels for TPUs in Pallas' interpreter, against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.pallas import grid_tpu, token_mixing_tpu
from tests.pallas import formulas

# Of the largest value. bfloat16 rounds matmul operands once, by up to 1/512 of
# a value; what comes out is rounded once more.
TOLERANCE = {"float32": 3e-5, "bfloat16": 1.5e-2}


def compare(got, expected, dtype):
  for i, (g, e) in enumerate(zip(got, expected, strict=True)):
    assert g.shape == e.shape
    assert g.dtype == (dtype if i < 2 else "float32")
    # Terms of size 1 may cancel in a sum.
    limit = TOLERANCE[dtype] * max(1, np.abs(e).max())
    g = np.asarray(g, np.float64)
    np.testing.assert_allclose(g, e, rtol=0, atol=limit, err_msg=str(i))


def check(b, s, c, t, dtype):
  x, dout, keep, norm, *mlp = formulas.arrays(b, s, c, t)
  x, dout = jnp.asarray(x, dtype), jnp.asarray(dout, dtype)

  @jax.jit
  def both(x, dout, *args):
    out = token_mixing_tpu.forward(x, *args, interpret=True)
    return out, *token_mixing_tpu.backward(x, dout, *args, interpret=True)

  args = (keep, *norm, *mlp)
  expected = formulas.token_mixing_gradients(x, dout, *args)
  expected = formulas.token_mixing(x, *args), *expected
  compare(both(x, dout, *args), expected, dtype)


@pytest.mark.parametrize(
  ("dtype", "images"),
  [("bfloat16", 2), pytest.param("float32", 4, marks=pytest.mark.slow)],
)
def test_kernels_equal_the_formulas(dtype, images, monkeypatch):
  b, s, c, t = 4, 49, 8, 16
  size = s * c * jnp.dtype(dtype).itemsize
  # So sums go on over some steps of the grid.
  monkeypatch.setattr(grid_tpu, "_BLOCK_BYTES", images * size)
  assert grid_tpu.images_a_step(b, size) == images
  check(b, s, c, t, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  ("b", "s", "c", "t"), [(1, 196, 24, 48), (5, 16, 128, 8), (3, 49, 512, 256)]
)
def test_kernels_equal_the_formulas_at_more_sizes(b, s, c, t, dtype):
  check(b, s, c, t, dtype)


@pytest.mark.slow
@given(
  st.integers(1, 4), st.integers(1, 9), st.integers(3, 9), st.integers(1, 9)
)
@settings(max_examples=5, deadline=None)
def test_any_shape_will_do(b, s, c, t):
  check(b, s, c, t, "float32")


@given(st.integers(1, 5000), st.integers(1, 1 << 23))
def test_a_step_s_images_divide_the_batch(images, size):
  n = grid_tpu.images_a_step(images, size)
  assert images % n == 0
  assert n == 1 or n * size <= 3 << 19
