"""The gradient of a batch: in parts, and Sharpness-Aware Minimization's."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

# Losses of examples: (params, examples, number of the part) -> float32 `[B]`;
# the number is None where the batch is whole.
LossFn: TypeAlias = Callable[[Any, Any, jax.Array | None], jax.Array]


def accumulated(
  loss_fn: LossFn, params: Any, batch: Any, parts: int
) -> tuple[jax.Array, Any]:
  """The mean loss of a batch and its gradient, one part after the other.

  Only one part's activations are alive at a time. Part i has the examples i,
  i + parts, i + 2 parts and so on: every device cuts what it holds, so that no
  example moves.

  Args:
    loss_fn: of the examples of a part.
    params: what to differentiate by, float32.
    batch: tree of arrays `[B, ...]`.
    parts: how many; divides B, and what each device has of it.

  Returns:
    The loss, and a tree like `params`, float32.
  """

  def mean(
    params: Any, examples: Any, part: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
    losses = loss_fn(params, examples, part)
    return losses.mean(), losses

  gradient = jax.grad(mean, has_aux=True)
  if parts == 1:
    grads, losses = gradient(params, batch, None)
    return losses.mean(), grads
  cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]), batch)

  def add(sums: Any, i: jax.Array) -> tuple[Any, jax.Array]:
    examples = jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), cut
    )
    grads, losses = gradient(params, examples, i)
    return jax.tree.map(jnp.add, sums, grads), losses

  zeros = jax.tree.map(jnp.zeros_like, params)
  # The sum is all that is taken of the gradients in the loop, so that XLA can
  # reduce it over the devices once, behind the loop; so for TPUs it does.
  sums, losses = jax.lax.scan(add, zeros, jnp.arange(parts))
  return losses.mean(), jax.tree.map(lambda x: x / parts, sums)


def ascended(params: Any, grads: Any, rho: float) -> Any:
  """SAM's first step (arXiv 2010.01412, equation 2): uphill by `rho`.

  Args:
    params: of the loss.
    grads: its gradient there.
    rho: the distance, in the Euclidean norm over all of them.

  Returns:
    `params` + rho g / ||g||; where ||g|| is zero in float32, `params`.
  """
  norm = optax.tree.norm(grads)
  scale = jnp.where(norm > 0, rho / norm, 0.0)
  return jax.tree.map(lambda p, g: p + scale * g, params, grads)
