import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import smoke
from mixer import objective


def test_scale_covers_minus_one_to_one():
  images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  got = objective.scale(jnp.asarray(images), jnp.dtype("float32"))
  expected = images.astype(np.float64) / 127.5 - 1
  np.testing.assert_allclose(got, expected, atol=1e-6)
  assert got.min() == -1
  assert got.max() == 1
  half = objective.scale(jnp.asarray(images), jnp.dtype("bfloat16"))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=2**-8)


def numpy_softmax_loss(logits, targets):
  logits = logits.astype(np.float64)
  shifted = logits - logits.max(axis=-1, keepdims=True)
  log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
  return -(targets * log_p).sum(axis=-1)


def numpy_sigmoid_loss(logits, targets):
  p = 1 / (1 + np.exp(-logits.astype(np.float64)))
  return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(axis=-1)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0, 0.9))
def test_losses_equal_numpy(seed, smoothing):
  rng = np.random.default_rng(seed)
  logits = (3 * rng.standard_normal((4, 6))).astype(np.float32)
  labels = rng.integers(0, 6, 4)
  targets = np.asarray(
    objective.one_hot(jnp.asarray(labels), 6, smoothing), np.float64
  )
  np.testing.assert_allclose(targets.sum(axis=-1), 1, rtol=1e-6)
  expected = np.full((4, 6), smoothing / 6)
  expected[np.arange(4), labels] += 1 - smoothing
  np.testing.assert_allclose(targets, expected, atol=1e-6)
  for name, reference in (
    ("softmax", numpy_softmax_loss),
    ("sigmoid", numpy_sigmoid_loss),
  ):
    got = objective.losses(
      name, jnp.asarray(logits), jnp.asarray(targets, jnp.float32)
    )
    np.testing.assert_allclose(got, reference(logits, targets), rtol=1e-4)


def test_sigmoid_loss_at_the_initial_head_bias():
  # With a bias of -log(K - 1) the loss starts near log(K) + 1 - that of
  # guessing the frequency of each class, the reason for the recipes' bias.
  k = 1000
  bias = -np.log(k - 1.0)
  loss = objective.losses(
    "sigmoid", jnp.full((1, k), bias, jnp.float32), jax.nn.one_hot([3], k)
  )
  expected = np.log(k) + (k - 1) * -np.log1p(-1 / k)
  np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_mixup_mixes_neighbours_with_one_weight_above_a_half():
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (5, 4, 4, 3)).astype(np.float32)
  targets = np.eye(5, dtype=np.float32)
  mixed, soft = objective.mixup(
    jax.random.key(7), jnp.asarray(images), jnp.asarray(targets), 0.5
  )
  a = float(soft[0, 0])
  assert 0.5 <= a < 1
  for i in range(5):
    np.testing.assert_allclose(
      mixed[i], a * images[i] + (1 - a) * images[i - 1], atol=1e-6
    )
    np.testing.assert_allclose(
      soft[i], a * targets[i] + (1 - a) * targets[i - 1], atol=1e-6
    )


def test_mixup_weights_follow_the_folded_beta_distribution():
  p, n = 0.5, 4000
  one = jnp.asarray([[1.0], [0.0]])
  weights = jax.vmap(lambda key: objective.mixup(key, one, one, p)[1][0, 0])(
    jax.random.split(jax.random.key(0), n)
  )
  # Independent: numpy's own draws of the same law.
  draws = np.random.default_rng(0).beta(p, p, n)
  folded = np.maximum(draws, 1 - draws)
  quantiles = np.linspace(0.05, 0.95, 10)
  np.testing.assert_allclose(
    np.quantile(weights, quantiles), np.quantile(folded, quantiles), atol=0.03
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_inputs(dtype):
  config = smoke.get_config()
  config.model.dtype = dtype
  config.loss.mixup = 0.0
  config.loss.label_smoothing = 0.1
  rng = np.random.default_rng(0)
  batch = {
    "image": jnp.asarray(rng.integers(0, 256, (2, 4, 4, 3)), jnp.uint8),
    "label": jnp.asarray([1, 0], jnp.int32),
  }
  images, targets = objective.training_inputs(
    jax.random.key(0), batch, config, 4
  )
  assert images.dtype == jnp.dtype(dtype)
  assert targets.dtype == jnp.float32
  np.testing.assert_allclose(targets[0], [0.025, 0.925, 0.025, 0.025])
