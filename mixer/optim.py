"""Learning-rate schedule, optimizer, and which parameters are trained.

`optimizer.name` is any optimizer of optax or optax.contrib that needs gradients
alone. AdamW and SGD, the paper's, take their arguments from keys of their own;
any optimizer takes more from `optimizer.args`.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epy

from mixer import config as config_lib
from mixer import durations, weights
from mixer.errors import UserError, first_line

with epy.lazy_imports():
  import optax

# The arguments that have keys of their own.
_KEYS = {"adamw": ("b1", "b2", "eps"), "sgd": ("momentum",)}
# Optimizers whose averages have to be evaluated, and that draw random numbers.
_UNFIT = ("schedule_free_adamw", "schedule_free_sgd", "dpsgd", "noisy_sgd")


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


def make(
  config: config_lib.Config, plan: durations.Plan
) -> optax.GradientTransformationExtraArgs:
  """Clipping, the optimizer with its schedule, each parameter's factor.

  Weight decay is the optimizer's own, of kernels alone where it takes a mask.
  AdamW's is decoupled (arXiv 1711.05101), times the learning rate.
  """
  c = config.optimizer
  chain = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm else []
  function = _function(c.name)
  arguments = _arguments(c, function)
  if "adam_learning_rate" in arguments:  # Muon's second, which falls likewise.
    second = {"optimizer.learning_rate": arguments["adam_learning_rate"]}
    falling = schedule(config_lib.changed(config, second), plan)
    arguments["adam_learning_rate"] = falling
  chain.append(function(schedule(config, plan), **arguments))
  whole = optax.with_extra_args_support(optax.chain(*chain))

  def scale(path: Any, update: jax.Array) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    value = factor(config, name)
    return update if value == 1.0 else value * update

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    # optax's Adam mixes its count with floats, which strict promotion, under
    # which our own code is tested, refuses.
    with jax.numpy_dtype_promotion("standard"):
      updates, state = whole.update(updates, state, params, **extra)
    return jax.tree_util.tree_map_with_path(scale, updates), state

  return optax.GradientTransformationExtraArgs(whole.init, update)


def decay_mask(params: Any) -> Any:
  """True for kernels, which weight decay shrinks; biases and norms stay."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )


def _muon_matrices(params: Any) -> Any:
  """The axes of kernels in blocks, which Muon takes; None for what AdamW does.

  That is stem, head, biases and norms: Muon is for hidden matrices.
  """
  from optax import contrib

  def axes(path: Any, x: Any) -> Any:
    hidden = path[0].key not in ("stem", "head") and path[-1].key == "kernel"
    if not hidden or x.ndim < 2:
      return None
    return contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)

  return jax.tree_util.tree_map_with_path(axes, params)


def _function(name: str) -> Callable[..., optax.GradientTransformation]:
  """The optimizer of optax, or of optax.contrib, that has a name."""
  import optax  # Not the lazy one, whose variables are not known yet.
  from optax import contrib

  known = {
    key: value
    for key, value in (vars(contrib) | vars(optax)).items()
    if inspect.isfunction(value)
    and not key.startswith(("_", "scale_by_"))
    and key not in _UNFIT
    and next(iter(inspect.signature(value).parameters), "") == "learning_rate"
  }
  if name not in known:
    near = difflib.get_close_matches(name.lower(), known, 1) or ["adamw"]
    raise UserError(
      f"optimizer.name={config_lib.shown(name)} is no optimizer of optax, or "
      f"needs more than gradients; use --config.optimizer.name={near[0]}."
    )
  return known[name]


def _arguments(c: Any, function: Callable[..., Any]) -> dict[str, Any]:
  """Arguments of an optimizer beside its learning rate."""
  takes = [*inspect.signature(function).parameters][1:]
  own = _KEYS.get(c.name, ())
  for key in c.args:
    if key not in takes:
      raise UserError(
        f"optimizer.args has {config_lib.shown(key)}, but {c.name} takes "
        f"{', '.join(takes)}; the learning rate is optimizer.learning_rate. "
        "--config.optimizer.args={} gives none."
      )
  for key in () if own else (*_KEYS["adamw"], *_KEYS["sgd"]):
    if c[key] != config_lib.KEYS[f"optimizer.{key}"].default:
      raise UserError(
        f"optimizer.{key} is of {' and '.join(_KEYS)} alone; for {c.name} use "
        f"--config.optimizer.args=\"{{'{key}': {c[key]!r}}}\"."
      )
  if c.weight_decay and "weight_decay" not in takes:
    raise UserError(
      f"optimizer.name={c.name!r} takes no weight_decay; use "
      "--config.optimizer.weight_decay=0 or --config.optimizer.name=adamw."
    )
  given = {key: c[key] for key in own} | {
    "weight_decay": c.weight_decay,
    "mask": decay_mask,
    "weight_decay_mask": decay_mask,
    "muon_weight_dimension_numbers": _muon_matrices,
  }
  return {key: given[key] for key in given if key in takes} | dict(c.args)


def check(config: config_lib.Config) -> None:
  """Refuses an optimizer, or its arguments, that can't work."""
  c, plan = config.optimizer, durations.Plan(2, 1, 1, 1, 1)
  # An update of a small layer: shapes alone, as the least array is compiled.
  shapes = {"kernel": (8, 8), "bias": (8,)}
  like = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}

  def update(params: Any) -> Any:
    optimizer, value = make(config, plan), params["block"]["bias"][0]
    state = optimizer.init(params)
    return optimizer.update(params, state, params, value=value)

  try:
    jax.eval_shape(update, {"block": like})
  except UserError:
    raise
  except Exception as e:  # Whatever optax says of a value.
    raise UserError(
      f"optimizer.name={c.name!r} with optimizer.args={dict(c.args)} doesn't "
      f"work: {first_line(e)}"
    ) from e


def updates_done(opt_state: Any, step: jax.Array) -> Any:
  """Updates made, by which the learning rate goes; skipped ones don't count."""
  kind = optax.ScaleByScheduleState
  leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
  return next((x.count for x in leaves if isinstance(x, kind)), step)


def factor(config: config_lib.Config, name: str) -> float:
  """What a parameter's learning rate is multiplied by; 0: it is frozen."""
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
  frozen = {k: v for k, v in flat.items() if not factor(config, k)}
  trained = {k: v for k, v in flat.items() if k not in frozen}
  return weights.unflatten(trained), weights.unflatten(frozen)


def merge(*trees: Any) -> dict[str, Any]:
  """One nested dict of all parameters in several."""
  flat = [weights.flatten(tree) for tree in trees]
  return weights.unflatten({k: v for part in flat for k, v in part.items()})


def check_names(config: config_lib.Config, names: Iterable[str]) -> None:
  """Refuses `optimizer.lr_factors` that don't fit a model's parameters."""
  names, pairs = sorted(names), config.optimizer.lr_factors
  lost = [p for p, _ in pairs if not any(re.fullmatch(p, n) for n in names)]
  if lost or not any(factor(config, name) for name in names):
    wrong = "leaves nothing to train"
    if lost:
      wrong = f"has {lost[0]!r}, which matches no parameter's whole name"
    raise UserError(
      f"optimizer.lr_factors {wrong}; "
      f"there are: {weights.shorten(names)}. Write it as in "
      "--config.optimizer.lr_factors=\"(('head/.*', 10.0),)\"."
    )
