"""Refuses a config that cannot work, in sentences that say what would."""

import math
import re
from collections.abc import Iterable
from typing import Any

from mixer import config as config_lib
from mixer import durations, optim
from mixer import model as model_lib
from mixer.errors import UserError


def validate(config: config_lib.Config, num_devices: int) -> None:
  """Refuses a config that cannot work, before anything is allocated.

  Args:
    config: to be checked.
    num_devices: over all hosts.

  Raises:
    UserError: names the key and a valid value.
  """
  flat = config_lib.flatten(config)
  for name in flat:
    if name not in config_lib.KEYS:
      raise UserError(config_lib.unknown(name))
  for name, key in config_lib.KEYS.items():
    if name not in flat:
      raise UserError(
        f"the config has no {name}; start it from mixer.config.default(), "
        f"where it is {key.default!r}."
      )
    _check_value(name, flat[name], key)
  durations.check(config)
  for rate in config.sweep.learning_rates:
    _check_number("sweep.learning_rates", rate, "optimizer.learning_rate")
  for pair in config.optimizer.lr_factors:
    _check_factor(pair)
  optim.check(config)
  _check_sizes(config, num_devices)
  _check_together(config)
  _check_pyramid(config)


def _check_value(name: str, value: Any, key: config_lib.Key) -> None:
  """Refuses another type than the default's, and what is out of range."""
  kind = type(key.default)
  allowed = {float: (float, int), tuple: list}.get(kind, kind)
  if not isinstance(value, allowed) or (
    isinstance(value, bool) and kind is not bool
  ):
    raise UserError(
      f"{name}={config_lib.shown(value)} should be of type {kind.__name__}, as "
      f"in {config_lib.override(name, key.default)}."
    )
  if key.choices and value not in key.choices:
    wrong = f"{name}={config_lib.shown(value)} is not known"
    raise _refusal(wrong, name, key.choices)
  if key.below:
    _check_number(name, value, name)


def _check_number(name: str, value: Any, like: str) -> None:
  """Refuses what is out of the range of the key `like`, NaN too."""
  key = config_lib.KEYS[like]
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not key.least <= value < key.below:
    below = f"{key.below:,}" if isinstance(key.below, int) else key.below
    example = key.default if name == like else (key.default,)
    raise UserError(
      f"{name}={config_lib.shown(value)} should be at least {key.least} and "
      f"below {below}, as in {config_lib.override(name, example)}."
    )


def _refusal(wrong: str, key: str, values: Iterable[object]) -> UserError:
  """Says what is wrong, and which values of the key work."""
  ways = [f"--config.{key}={value}" for value in values]
  return UserError(f"{wrong}; use {' or '.join(ways)}.")


def _check_factor(pair: Any) -> None:
  """Refuses an item of `optimizer.lr_factors` that is no pattern and factor."""
  try:
    pattern, factor = pair
    re.compile(pattern)
    good = isinstance(pattern, str) and type(factor) in (int, float)
    good = good and 0 <= factor < 3.4e38
  except (TypeError, ValueError, re.error, OverflowError, RecursionError):
    good = False
  if not good:
    raise UserError(
      f"optimizer.lr_factors has {config_lib.shown(pair)}, which is no pair of "
      "a regular expression and a number of at least 0; write it as in "
      "--config.optimizer.lr_factors=\"(('head/.*', 10.0),)\"."
    )


def _check_multiple(key: str, value: int, of: int, what: str) -> None:
  if value % of:
    below = max(1, value // of) * of
    wrong = f"{key}={value} can't be divided {what}"
    raise _refusal(wrong, key, (below, below + of))


def _check_divisor(key: str, value: int, whole: int, what: str) -> None:
  if whole % value:
    low = [n for n in range(1, math.isqrt(whole) + 1) if not whole % n]
    good = sorted({*low, *(whole // n for n in low)})
    near = [n for n in good if n < value][-1:] + [n for n in good if n > value]
    raise _refusal(f"{key}={value} doesn't divide {what}", key, near[:2])


def _check_sizes(config: config_lib.Config, num_devices: int) -> None:
  """Refuses what can't be divided: batches, images, channels; and crops."""
  batch, spec = config.batch_size, model_lib.parse_variant(config.model.variant)
  what = f"among {num_devices} devices"
  _check_multiple("batch_size", batch, num_devices, what)
  each = batch // num_devices
  m = config.model
  channels = m.hidden_dim or spec.hidden_dim
  what = (
    f"the {each} examples that each of {num_devices} devices has of "
    f"batch_size={batch}"
  )
  accumulate = config.optimizer.accumulate
  _check_divisor("optimizer.accumulate", accumulate, each, what)
  what = f"the {num_devices} devices"
  _check_divisor("sharding.fsdp", config.sharding.fsdp, num_devices, what)
  what = f"the model's {channels} channels"
  _check_divisor("model.token_groups", m.token_groups, channels, what)
  patch = spec.patch_size
  what = (
    f"into patches of {patch} pixels (model.variant={config.model.variant})"
  )
  for key in ("image_size", "image_width"):
    _check_multiple(key, config[key], patch, what)
  height, width = config_lib.image_size(config)
  side, short_side = max(height, width), config.data.eval_short_side
  if 0 < short_side < side:
    raise UserError(
      f"data.eval_short_side={short_side} is smaller than the central crop, "
      f"{height} x {width} px (image_size); use "
      f"--config.data.eval_short_side={side} or more."
    )


def _check_together(config: config_lib.Config) -> None:
  """Refuses settings that contradict one another."""
  loss, parts = config.loss, config.optimizer.accumulate
  wrong = ""
  if parts > 1 and config.sharding.reduce_dtype == "bfloat16":
    wrong = (
      f"optimizer.accumulate={parts} sums gradients in float32, over devices "
      "too, and sharding.reduce_dtype='bfloat16'; use "
      "--config.sharding.reduce_dtype=float32 or "
      "--config.optimizer.accumulate=1."
    )
  if loss.name == "sigmoid" and loss.label_smoothing:
    wrong = (
      "loss.label_smoothing is defined for the softmax loss and "
      "loss.name='sigmoid'; use --config.loss.label_smoothing=0 or "
      "--config.loss.name=softmax."
    )
  if config.init_head == "keep" and not config.init_from:
    wrong = (
      "init_head='keep' and init_from='': there is no head to keep; name the "
      "weights by --config.init_from=PATH, or use --config.init_head=new."
    )
  shots = config.fewshot.shots
  numbers = all(type(s) is int and 0 < s < 10**6 for s in shots)
  if not numbers or (config.fewshot.name and not shots):
    wrong = (
      f"fewshot.shots={config_lib.shown(shots)} should be numbers of examples, "
      'as in --config.fewshot.shots="(1, 5, 10, 25)".'
    )
  if wrong:
    raise UserError(wrong)


def _check_pyramid(config: config_lib.Config) -> None:
  m, spec = config.model, model_lib.parse_variant(config.model.variant)
  blocks, tokens = list(m.pyramid_blocks), list(m.pyramid_tokens)
  depth = m.num_blocks or spec.num_blocks
  height, width = config_lib.image_size(config)
  first = height // spec.patch_size * (width // spec.patch_size)
  if (
    not all(type(v) is int for v in (*blocks, *tokens))
    or len(blocks) != len(tokens)
    or blocks != sorted({b for b in blocks if 0 <= b < depth})
    or tokens != sorted({t for t in tokens if 0 < t < first}, reverse=True)
  ):
    raise UserError(
      f"model.pyramid_blocks={config_lib.shown(blocks)} and "
      f"model.pyramid_tokens={config_lib.shown(tokens)} should be equally "
      f"long: rising numbers of blocks, of 0 to {depth - 1}, and falling "
      f"numbers of tokens, below the {first} of the model's start (images "
      f"of {height} x {width}, patches of {spec.patch_size} pixels), as in "
      '--config.model.pyramid_blocks="(2, 5)" '
      '--config.model.pyramid_tokens="(98, 49)".'
    )
