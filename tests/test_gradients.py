"""Accumulation and SAM's ascent, on losses that can be written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import train_step


def make(examples, seed=0):
  """A linear model's weights and a batch for it, in float64."""
  rng = np.random.default_rng(seed)
  params = {"w": rng.standard_normal((3, 2)), "b": rng.standard_normal(2)}
  batch = {
    "x": rng.standard_normal((examples, 3)),
    "y": rng.standard_normal((examples, 2)),
  }
  return params, batch


def as_float32(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def squares(params, batch, part):
  """Half the squared error of each example."""
  error = batch["x"] @ params["w"] + params["b"] - batch["y"]
  return 0.5 * (error**2).sum(axis=-1)


def by_hand(params, batch):
  """Mean loss and gradient of `squares`, in numpy."""
  error = batch["x"] @ params["w"] + params["b"] - batch["y"]
  n = len(error)
  grads = {"w": batch["x"].T @ error / n, "b": error.mean(axis=0)}
  return 0.5 * (error**2).sum() / n, grads


def assert_close(got, expected, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, expected
  )


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 1000))
def test_any_number_of_parts_gives_the_gradient_of_the_whole(parts, seed):
  params, batch = make(12, seed)
  loss, grads = train_step.accumulated(
    squares, as_float32(params), as_float32(batch), parts
  )
  expected_loss, expected = by_hand(params, batch)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  assert_close(grads, expected, rtol=1e-4, atol=1e-5)


def test_parts_are_strided_and_numbered():
  # Part i has examples i, i + parts, ...: those of a device stay with it.
  def loss(params, batch, part):
    return params * batch["x"] * jnp.asarray([1.0, 10.0, 100.0])[part]

  batch = {"x": jnp.arange(12, dtype=jnp.float32)}
  value, grad = train_step.accumulated(loss, jnp.float32(2), batch, 3)
  expected = np.mean([0 + 3 + 6 + 9, 10 * (1 + 4 + 7 + 10), 100 * 26]) / 4
  np.testing.assert_allclose(grad, expected)
  np.testing.assert_allclose(value, 2 * expected)


def test_a_whole_batch_has_no_part_number():
  seen = []

  def loss(params, batch, part):
    seen.append(part)
    return params * batch

  train_step.accumulated(loss, jnp.float32(1), jnp.ones(4), 1)
  assert seen == [None]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(1e-3, 10))
def test_ascent_goes_rho_along_the_gradient(seed, rho):
  params, grads = make(3, seed)[0], make(3, seed + 1)[0]
  got = train_step.ascended(as_float32(params), as_float32(grads), rho)
  norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
  assert_close(
    got,
    jax.tree.map(lambda p, g: p + rho * g / norm, params, grads),
    atol=1e-5 * max(1, rho),
  )


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-15, 1e15, 1e30])
def test_ascent_from_very_flat_and_very_steep_places(size):
  # A zero gradient has no direction; the squares of some leave float32.
  params = {"w": jnp.ones(4)}
  got = train_step.ascended(params, {"w": jnp.full(4, size)}, 0.5)["w"]
  distance = np.sqrt(((np.asarray(got, np.float64) - 1) ** 2).sum())
  expected = 0.5 if size in (1e-15, 1e15) else 0.0
  np.testing.assert_allclose(distance, expected, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_two_passes_equal_sam_by_hand(parts):
  params, batch = make(12)
  single, examples, rho = as_float32(params), as_float32(batch), 0.3

  def gradient(params):
    return train_step.accumulated(squares, params, examples, parts)

  _, first = gradient(single)
  loss, second = gradient(train_step.ascended(single, first, rho))
  _, first = by_hand(params, batch)
  norm = np.sqrt(sum((g**2).sum() for g in first.values()))
  up = {k: params[k] + rho * first[k] / norm for k in params}
  expected_loss, expected = by_hand(up, batch)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  assert_close(second, expected, rtol=1e-4, atol=1e-5)
