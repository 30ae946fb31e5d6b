"""Schedules and optimizers: optax chains built from the config."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mixer import config as config_lib
from mixer import durations


def schedule(config: config_lib.Config, plan: durations.Plan) -> optax.Schedule:
  """Learning rate by the number of updates done before.

  It rises linearly from 0 over the warm-up, then falls to 0 at the end of
  training, linearly or by a cosine, or stays.
  """
  peak, rest = config.optimizer.learning_rate, plan.total - plan.warmup
  decay = {
    "linear": optax.linear_schedule(peak, 0.0, rest),
    "cosine": optax.cosine_decay_schedule(peak, rest),
    "constant": optax.constant_schedule(peak),
  }[config.schedule.decay]
  warmup = optax.linear_schedule(0.0, peak, max(plan.warmup, 1))
  joined = optax.join_schedules([warmup, decay], [plan.warmup])
  # As float32, which counts exactly up to 2^24 steps: optax's cosine mixes it
  # with floats, and strict promotion refuses that of integers.
  return lambda step: joined(jnp.asarray(step, jnp.float32))


def decay_mask(params: Any) -> Any:
  """True for kernels, which weight decay shrinks; biases and norms stay."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )


def make(
  config: config_lib.Config, plan: durations.Plan
) -> optax.GradientTransformation:
  """Clipping, then AdamW or SGD with momentum, then the learning rate.

  Weight decay is decoupled (arXiv 1711.05101) and scaled by the learning
  rate, as in `optax.adamw`.
  """
  c = config.optimizer
  chain = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm else []
  if c.name == "adamw":
    chain.append(optax.scale_by_adam(c.b1, c.b2, c.eps))
    chain.append(optax.add_decayed_weights(c.weight_decay, decay_mask))
  else:
    chain.append(optax.trace(c.momentum))
  chain.append(optax.scale_by_learning_rate(schedule(config, plan)))
  whole = optax.chain(*chain)

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    # optax's Adam mixes its count with floats, which strict promotion, under
    # which our own code is tested, refuses.
    with jax.numpy_dtype_promotion("standard"):
      return whole.update(updates, state, params)

  return optax.GradientTransformation(whole.init, update)
