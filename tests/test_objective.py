import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import smoke
from mixer import model as model_lib
from mixer import train_step


def test_scale_covers_minus_one_to_one():
  images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  got = model_lib.scale(jnp.asarray(images), jnp.dtype("float32"))
  expected = images.astype(np.float64) / 127.5 - 1
  np.testing.assert_allclose(got, expected, atol=1e-6)
  assert got.min() == -1
  assert got.max() == 1
  half = model_lib.scale(jnp.asarray(images), jnp.dtype("bfloat16"))
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
    train_step.one_hot(jnp.asarray(labels), 6, smoothing), np.float64
  )
  np.testing.assert_allclose(targets.sum(axis=-1), 1, rtol=1e-6)
  expected = np.full((4, 6), smoothing / 6)
  expected[np.arange(4), labels] += 1 - smoothing
  np.testing.assert_allclose(targets, expected, atol=1e-6)
  for name, reference in (
    ("softmax", numpy_softmax_loss),
    ("sigmoid", numpy_sigmoid_loss),
  ):
    got = train_step.example_losses(
      name, jnp.asarray(logits), jnp.asarray(targets, jnp.float32)
    )
    np.testing.assert_allclose(got, reference(logits, targets), rtol=1e-4)


def test_sigmoid_loss_at_the_initial_head_bias():
  # With a bias of -log(K - 1) the loss starts near log(K) + 1 - that of
  # guessing the frequency of each class, the reason for the recipes' bias.
  k = 1000
  bias = -np.log(k - 1.0)
  loss = train_step.example_losses(
    "sigmoid", jnp.full((1, k), bias, jnp.float32), jax.nn.one_hot([3], k)
  )
  expected = np.log(k) + (k - 1) * -np.log1p(-1 / k)
  np.testing.assert_allclose(loss, expected, rtol=1e-4)


def make_batch(size=5, num_classes=5, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "image": rng.integers(0, 256, (size, 4, 4, 3), dtype=np.uint8),
    "label": rng.integers(0, num_classes, size, dtype=np.int32),
  }


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_mixes_neighbours_with_one_weight(smoothing):
  config = smoke.get_config()
  config.loss.label_smoothing = smoothing
  batch = make_batch()
  mixed, soft = train_step.training_inputs(
    train_step.with_neighbours(jax.tree.map(jnp.asarray, batch)),
    config,
    5,
    jnp.float32(0.7),
  )
  images = batch["image"] / 127.5 - 1
  targets = np.eye(5)[batch["label"]] * (1 - smoothing) + smoothing / 5
  for i in range(5):
    np.testing.assert_allclose(
      mixed[i], 0.7 * images[i] + 0.3 * images[i - 1], atol=1e-6
    )
    np.testing.assert_allclose(
      soft[i], 0.7 * targets[i] + 0.3 * targets[i - 1], atol=1e-6
    )


def test_neighbours_are_bytes():
  batch = train_step.with_neighbours(jax.tree.map(jnp.asarray, make_batch()))
  kinds = {k: v.dtype.name for k, v in batch.items()}
  assert kinds == {
    "image": "uint8",
    "label": "int32",
    "neighbour_image": "uint8",
    "neighbour_label": "int32",
  }


def test_mixup_weights_follow_the_folded_beta_distribution():
  p, n = 0.5, 4000
  weights = jax.vmap(lambda key: train_step.mixup_weight(key, p))(
    jax.random.split(jax.random.key(0), n)
  )
  assert 0.5 <= weights.min() <= weights.max() <= 1
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
  config.loss.label_smoothing = 0.1
  batch = make_batch(2) | {"label": np.array([1, 0], np.int32)}
  images, targets = train_step.training_inputs(
    jax.tree.map(jnp.asarray, batch), config, 4
  )
  assert images.dtype == jnp.dtype(dtype)
  assert targets.dtype == jnp.float32
  np.testing.assert_allclose(targets[0], [0.025, 0.925, 0.025, 0.025])
  np.testing.assert_allclose(
    images.astype(jnp.float32), batch["image"] / 127.5 - 1, atol=2**-8
  )
