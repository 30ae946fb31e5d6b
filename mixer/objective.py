"""Input scaling, mixup and losses, all on the device."""

import jax
import jax.numpy as jnp
import optax

from mixer import config as config_lib


def scale(images: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """uint8 `[B, H, W, 3]` in [0, 255] -> `dtype` in [-1, 1]."""
  return (images.astype(jnp.float32) / 127.5 - 1.0).astype(dtype)


def with_neighbours(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Adds to every example its left neighbour, which mixup mixes in.

  As the hosts ship them, before a batch is cut into parts: the neighbours are
  those in the whole batch, and what moves between devices are bytes.

  Args:
    batch: arrays `[B, ...]`.

  Returns:
    The same and, as `neighbour_NAME`, each rolled by one.
  """
  rolled = {f"neighbour_{k}": jnp.roll(v, 1, axis=0) for k, v in batch.items()}
  return batch | rolled


def mixup_weight(key: jax.Array, p: float) -> jax.Array:
  """Mixup's weight (arXiv 1710.09412), as the authors' code draws it.

  One a is drawn from Beta(p, p) for the whole batch; a = max(a, 1 - a) goes to
  the example itself and 1 - a to its left neighbour in the batch.

  Args:
    key: random key.
    p: both parameters of the Beta distribution, above 0.

  Returns:
    float32 in [0.5, 1].
  """
  a = jax.random.beta(key, p, p)
  return jnp.maximum(a, 1.0 - a)


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
  batch: dict[str, jax.Array],
  config: config_lib.Config,
  num_classes: int,
  weight: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """A batch as shipped, or a part of it -> what the model and the loss take.

  Args:
    batch: `image` uint8 `[B, H, W, 3]`, `label` int32 `[B]`; with mixup their
      neighbours too, see `with_neighbours`.
    config: the run's.
    num_classes: K.
    weight: of `mixup_weight`; None for no mixup.

  Returns:
    Images `[B, H, W, 3]` in the compute dtype, targets float32 `[B, K]`.
  """

  def read(prefix: str = "") -> tuple[jax.Array, jax.Array]:
    labels, smoothing = batch[f"{prefix}label"], config.loss.label_smoothing
    return (
      scale(batch[f"{prefix}image"], jnp.dtype("float32")),
      one_hot(labels, num_classes, smoothing),
    )

  images, targets = read()
  if weight is not None:
    other_images, other_targets = read("neighbour_")
    images = weight * images + (1 - weight) * other_images
    targets = weight * targets + (1 - weight) * other_targets
  return images.astype(config.model.dtype), targets
