"""Input scaling, mixup and losses, all on the device."""

import jax
import jax.numpy as jnp
import optax

from mixer import config as config_lib


def scale(images: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """uint8 `[B, H, W, 3]` in [0, 255] -> `dtype` in [-1, 1]."""
  return (images.astype(jnp.float32) / 127.5 - 1.0).astype(dtype)


def mixup(
  key: jax.Array, images: jax.Array, targets: jax.Array, p: float
) -> tuple[jax.Array, jax.Array]:
  """Mixup (arXiv 1710.09412) as the authors' code applies it.

  One weight a is drawn from Beta(p, p) for the whole batch, a = max(a, 1 - a)
  goes to the example itself and 1 - a to its left neighbour in the batch.

  Args:
    key: random key.
    images: float `[B, H, W, 3]`.
    targets: float32 `[B, K]`.
    p: both parameters of the Beta distribution, above 0.
  """
  a = jax.random.beta(key, p, p)
  a = jnp.maximum(a, 1.0 - a)

  def mix(x: jax.Array) -> jax.Array:
    w = a.astype(x.dtype)
    return w * x + (1 - w) * jnp.roll(x, 1, axis=0)

  return mix(images), mix(targets)


def one_hot(
  labels: jax.Array, num_classes: int, label_smoothing: float = 0.0
) -> jax.Array:
  """int `[B]` -> float32 `[B, K]`; smoothing spreads its share evenly."""
  targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  if label_smoothing:
    targets = targets * (1 - label_smoothing) + label_smoothing / num_classes
  return targets


def losses(name: str, logits: jax.Array, targets: jax.Array) -> jax.Array:
  """The loss of each example.

  Args:
    name: "softmax" (cross-entropy) or "sigmoid" (the sum over the classes of
      binary cross-entropies, as the authors pre-train).
    logits: float32 `[B, K]`.
    targets: float32 `[B, K]`.

  Returns:
    float32 `[B]`, in nats.
  """
  if name == "softmax":
    return optax.softmax_cross_entropy(logits, targets)
  return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


def training_inputs(
  key: jax.Array,
  batch: dict[str, jax.Array],
  config: config_lib.Config,
  num_classes: int,
) -> tuple[jax.Array, jax.Array]:
  """A batch as shipped -> what the model and the loss take.

  Args:
    key: random key, for mixup.
    batch: `image` uint8 `[B, H, W, 3]`, `label` int32 `[B]`.
    config: the run's.
    num_classes: K.

  Returns:
    Images `[B, H, W, 3]` in the compute dtype, targets float32 `[B, K]`.
  """
  images = scale(batch["image"], jnp.float32)
  targets = one_hot(batch["label"], num_classes, config.loss.label_smoothing)
  if config.loss.mixup:
    images, targets = mixup(key, images, targets, config.loss.mixup)
  return images.astype(config.model.dtype), targets
