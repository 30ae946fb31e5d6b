"""What a trained model computes, jitted: logits, classes, features, counts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mixer import model as model_lib
from mixer import objective, sharding

Batch = dict[str, jax.Array]


class Inference:
  """Jitted functions `(params, batch) -> ...` of a model.

  A batch has `image` uint8 `[B, H, W, 3]`, `mask` bool `[B]` and, for `counts`
  and `examples`, `label` int32 `[B]`, split over the mesh. What comes out is
  whole on every device, and so on every host.

  Attributes:
    counts: `-> metrics`: sums over the examples (see `_counts`).
    features: `-> ([B, C], [B])`, pre-logits float32 and mask.
    logits: `-> ([B, K], [B])`, logits float32 and mask.
    top: `-> dict` of `classes` int32 and `scores` float32 `[B, top]` (see
      `_top`), and `mask` bool `[B]`.
    examples: `-> dict`, as `top`, and `label` int32, `loss` float32 `[B]`.
  """

  def __init__(
    self,
    model: model_lib.MlpMixer,
    loss: str,
    num_classes: int,
    mesh: Mesh,
    params_sharding: Any = None,
    *,
    columns: np.ndarray | None = None,
    top: int = 5,
  ):
    """Makes the functions; each compiles when it is first called.

    Args:
      model: with or without a head.
      loss: name of the loss, see `objective.losses`.
      num_classes: K, of the labels and of what comes out.
      mesh: of all devices.
      params_sharding: a sharding for each parameter, or one for all; None for
        a whole copy on every device.
      columns: int `[K]`, the head's column for each class, where labels are of
        other classes than the head's; -1 for a class that the head lacks,
        which is never predicted: its logit is minus infinity. None: class k
        has column k.
      top: how many classes `top` and `examples` give, at most K.
    """
    model = model_lib.placed(model, mesh)
    everywhere, split = sharding.replicated(mesh), sharding.batch(mesh)
    where = everywhere if params_sharding is None else params_sharding

    def jit(function: Callable[[Any, Batch], Any]) -> Any:
      return jax.jit(
        function, in_shardings=(where, split), out_shardings=everywhere
      )

    def apply(params: Any, batch: Batch, pre_logits: bool) -> jax.Array:
      images = objective.scale(batch["image"], model.dtype)
      return model_lib.apply(model, params, images, pre_logits=pre_logits)

    def logits_BK(params: Any, batch: Batch) -> jax.Array:
      logits = apply(params, batch, False)
      return logits if columns is None else _select(logits, columns)

    def examples(params: Any, batch: Batch) -> Batch:
      logits = logits_BK(params, batch)
      targets = objective.one_hot(batch["label"], num_classes)
      return _top(logits, loss, min(top, num_classes)) | {
        "mask": batch["mask"],
        "label": batch["label"],
        "loss": objective.losses(loss, logits, targets),
      }

    self.counts = jit(
      lambda params, batch: _counts(
        logits_BK(params, batch),
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
      lambda params, batch: (logits_BK(params, batch), batch["mask"])
    )
    self.top = jit(
      lambda params, batch: (
        _top(logits_BK(params, batch), loss, min(top, num_classes))
        | {"mask": batch["mask"]}
      )
    )
    self.examples = jit(examples)


def _select(logits: jax.Array, columns: np.ndarray) -> jax.Array:
  """`[B, K']` -> `[B, K]`: the columns in their order, -1 for none."""
  chosen = jnp.take(logits, np.maximum(columns, 0), axis=-1)
  return jnp.where(columns < 0, -jnp.inf, chosen)


def _top(logits: jax.Array, loss: str, top: int) -> dict[str, jax.Array]:
  """The classes of the highest logits, the highest first.

  Of equal logits the lower class comes first, as in `_counts`. An example
  with a NaN among its logits has the class -1 throughout.

  Args:
    logits: float32 `[B, K]`.
    loss: name of the loss that the model was trained with.
    top: how many.

  Returns:
    `classes` int32 `[B, top]`; `scores` float32 `[B, top]`: probabilities that
    sum to 1 over all classes where `loss` is "softmax", and sigmoids, each
    for itself, where it is "sigmoid".
  """
  values, classes = jax.lax.top_k(logits, top)
  sound = ~jnp.isnan(logits).any(axis=-1, keepdims=True)
  if loss == "softmax":
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    scores = jnp.exp(values - total)
  else:
    scores = jax.nn.sigmoid(values)
  return {"classes": jnp.where(sound, classes, -1), "scores": scores}


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
