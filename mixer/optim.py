"""Schedules, optimizers, and which parameters are trained."""

import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mixer import config as config_lib
from mixer import durations, weights
from mixer.errors import UserError

_KEY = "optimizer.lr_factors"
_EXAMPLE = f"--config.{_KEY}=\"(('head/.*', 10.0),)\""


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


def factor(config: config_lib.Config, name: str) -> float:
  """What a parameter's learning rate is multiplied by; 0: it is frozen.

  Args:
    config: `optimizer.train` and `optimizer.lr_factors` say.
    name: '/'-joined, as "head/kernel".
  """
  if config.optimizer.train == "head" and not name.startswith("head/"):
    return 0.0
  for pattern, value in config.optimizer.lr_factors:
    if re.fullmatch(pattern, name):
      return float(value)
  return 1.0


def split(
  config: config_lib.Config, params: weights.Params
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(trained, frozen): two nested dicts that `merge` makes one again.

  Only the first is differentiated, clipped, and known to the optimizer.
  """
  flat = weights.flatten(params)
  frozen = {k for k in flat if not factor(config, k)}
  return (
    weights.unflatten({k: v for k, v in flat.items() if k not in frozen}),
    weights.unflatten({k: flat[k] for k in frozen}),
  )


def merge(*trees: Any) -> dict[str, Any]:
  """One nested dict of all parameters in several."""
  flat = [weights.flatten(tree) for tree in trees]
  return weights.unflatten({k: v for part in flat for k, v in part.items()})


def make(
  config: config_lib.Config, plan: durations.Plan
) -> optax.GradientTransformation:
  """Clipping, then AdamW or SGD with momentum, then the learning rate.

  Weight decay is decoupled (arXiv 1711.05101) and scaled by the learning
  rate, as in `optax.adamw`, with the factor of its parameter.
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
      updates, state = whole.update(updates, state, params)
    return _scale(config, updates), state

  return optax.GradientTransformation(whole.init, update)


def _scale(config: config_lib.Config, updates: Any) -> Any:
  """Each parameter's update times its factor."""

  def scale(path: Any, update: jax.Array) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    value = factor(config, name)
    return update if value == 1.0 else value * update

  return jax.tree_util.tree_map_with_path(scale, updates)


def check_names(config: config_lib.Config, names: Iterable[str]) -> None:
  """Refuses `optimizer.lr_factors` that don't fit a model.

  Args:
    config: a valid one.
    names: of all parameters.

  Raises:
    UserError: a pattern that matches none, or none that would be trained.
  """
  names, pairs = sorted(names), config.optimizer.lr_factors
  for pattern, _ in pairs:
    if not any(re.fullmatch(pattern, name) for name in names):
      raise UserError(
        f"{_KEY} has {pattern!r}, which matches no parameter's whole name; "
        f"there are: {weights.shorten(names)}. Write it as in {_EXAMPLE}."
      )
  if not any(factor(config, name) for name in names):
    raise UserError(
      f"{_KEY}={pairs!r} with optimizer.train={config.optimizer.train!r} "
      "leaves no parameter to train: give one a factor above 0, as in "
      f"{_EXAMPLE}."
    )
