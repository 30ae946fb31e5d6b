"""What a trained model computes, jitted: logits, features, exact counts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mixer import model as model_lib
from mixer import objective, sharding

Batch = dict[str, jax.Array]


class Inference:
  """Jitted functions `(params, batch) -> ...` of a model.

  A batch has `image` uint8 `[B, H, W, 3]`, `mask` bool `[B]` and, for `counts`,
  `label` int32 `[B]`, split over the mesh. What comes out is whole on every
  device, and so on every host.

  Attributes:
    counts: `-> metrics`: sums over the examples (see `_counts`).
    features: `-> ([B, C], [B])`, pre-logits float32 and mask.
    logits: `-> ([B, K], [B])`, logits float32 and mask.
  """

  def __init__(
    self,
    model: model_lib.MlpMixer,
    loss: str,
    num_classes: int,
    mesh: Mesh,
    params_sharding: Any = None,
  ):
    """Makes the functions; each compiles when it is first called.

    Args:
      model: with or without a head.
      loss: name of the loss, see `objective.losses`.
      num_classes: K.
      mesh: of all devices.
      params_sharding: a sharding for each parameter, or one for all; None for
        a whole copy on every device.
    """
    everywhere, split = sharding.replicated(mesh), sharding.batch(mesh)
    where = everywhere if params_sharding is None else params_sharding

    def jit(function: Callable[[Any, Batch], Any]) -> Any:
      return jax.jit(
        function, in_shardings=(where, split), out_shardings=everywhere
      )

    def apply(params: Any, batch: Batch, pre_logits: bool) -> jax.Array:
      images = objective.scale(batch["image"], model.dtype)
      return model_lib.apply(model, params, images, pre_logits=pre_logits)

    self.counts = jit(
      lambda params, batch: _counts(
        apply(params, batch, False),
        batch["label"],
        batch["mask"],
        loss,
        num_classes,
      )
    )
    self.features = jit(
      lambda params, batch: (apply(params, batch, True), batch["mask"])
    )
    self.logits = jit(
      lambda params, batch: (apply(params, batch, False), batch["mask"])
    )


def _counts(
  logits: jax.Array,
  labels: jax.Array,
  mask: jax.Array,
  loss: str,
  num_classes: int,
) -> dict[str, jax.Array]:
  """Sums over the examples that `mask` marks as real.

  A class counts as ranked above the label if its logit is higher, or equal
  with a lower index: so that ties have one answer, and top-1 is `argmax`.
  """
  targets = objective.one_hot(labels, num_classes)
  losses = objective.losses(loss, logits, targets)
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  tied_before = jnp.arange(num_classes)[None, :] < labels[:, None]
  above = (logits > own) | ((logits == own) & tied_before)
  rank = above.sum(axis=-1)
  # No comparison with NaN holds, which would put the label first.
  sound = mask & ~jnp.isnan(logits).any(axis=-1)
  return {
    "count": mask.sum(dtype=jnp.int32),
    "correct": (sound & (rank < 1)).sum(dtype=jnp.int32),
    "correct_top5": (sound & (rank < 5)).sum(dtype=jnp.int32),
    "loss_sum": jnp.where(mask, losses, 0).sum(),
  }
