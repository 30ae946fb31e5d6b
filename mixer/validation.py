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
  _check_devices(config, num_devices)
  _check_sizes(config)
  _check_together(config)
  _check_token_mixing(config)


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
  wrong = ""
  if not isinstance(pair, tuple | list) or len(pair) != 2:
    wrong = "which is no pair of a pattern and a factor"
  elif not isinstance(pair[0], str):
    wrong = "whose first is no pattern"
  elif type(pair[1]) not in (int, float) or not 0 <= pair[1] < 3.4e38:
    wrong = "whose second should be a number of at least 0"
  else:
    try:
      re.compile(pair[0])
    except (re.error, OverflowError, RecursionError) as e:
      wrong = f"whose first is no regular expression ({e})"
  if wrong:
    raise UserError(
      f"optimizer.lr_factors has {config_lib.shown(pair)}, {wrong}; write it "
      "as in --config.optimizer.lr_factors=\"(('head/.*', 10.0),)\"."
    )


def _divisors(number: int) -> list[int]:
  """In order."""
  low = [n for n in range(1, math.isqrt(number) + 1) if not number % n]
  return sorted({*low, *(number // n for n in low)})


def _multiples(number: int, of: int) -> tuple[int, int]:
  """The nearest multiples on both sides, above 0."""
  below = max(1, number // of) * of
  return below, below + of


def _check_devices(config: config_lib.Config, num_devices: int) -> None:
  """Refuses a batch that can't be divided among devices."""
  batch, parts = config.batch_size, config.optimizer.accumulate
  if batch % num_devices:
    raise _refusal(
      f"batch_size={batch} can't be divided among {num_devices} devices",
      "batch_size",
      _multiples(batch, num_devices),
    )
  each = batch // num_devices
  if each % parts:
    divisors = _divisors(each)
    near = [max(n for n in divisors if n < parts)]
    raise _refusal(
      f"optimizer.accumulate={parts} doesn't divide the {each} examples that "
      f"each of {num_devices} devices has of batch_size={batch}",
      "optimizer.accumulate",
      near + [n for n in divisors if n > parts][:1],
    )
  shared = config.sharding.fsdp
  if num_devices % shared:
    raise _refusal(
      f"sharding.fsdp={shared} doesn't divide the {num_devices} devices",
      "sharding.fsdp",
      _divisors(num_devices)[:4],
    )


def _check_sizes(config: config_lib.Config) -> None:
  """Refuses images that can't be cut into patches, or cropped."""
  patch = model_lib.parse_variant(config.model.variant).patch_size
  for key in ("image_size", "image_width"):
    if config[key] % patch:
      raise _refusal(
        f"{key}={config[key]} can't be divided into patches of {patch} pixels "
        f"(model.variant={config.model.variant})",
        key,
        _multiples(config[key], patch),
      )
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
  loss, optimizer = config.loss, config.optimizer
  half = config.sharding.reduce_dtype == "bfloat16"
  for wrong, sentence in (
    (
      optimizer.accumulate > 1 and half,
      f"optimizer.accumulate={optimizer.accumulate} sums gradients in float32, "
      "over devices too, and sharding.reduce_dtype='bfloat16'; use "
      "--config.sharding.reduce_dtype=float32 or "
      "--config.optimizer.accumulate=1.",
    ),
    (
      loss.name == "sigmoid" and loss.label_smoothing,
      "loss.label_smoothing is defined for the softmax loss and "
      "loss.name='sigmoid'; use --config.loss.label_smoothing=0 or "
      "--config.loss.name=softmax.",
    ),
    (
      config.init_head == "keep" and not config.init_from,
      "init_head='keep' and init_from='': there is no head to keep; name the "
      "weights by --config.init_from=PATH, or use --config.init_head=new.",
    ),
  ):
    if wrong:
      raise UserError(sentence)
  shots = config.fewshot.shots
  numbers = all(type(s) is int and 0 < s < 10**6 for s in shots)
  if not numbers or (config.fewshot.name and not shots):
    raise UserError(
      f"fewshot.shots={config_lib.shown(shots)} should be numbers of examples, "
      'as in --config.fewshot.shots="(1, 5, 10, 25)".'
    )


def _check_token_mixing(config: config_lib.Config) -> None:
  """Refuses groups and pyramids that don't fit the model."""
  m, spec = config.model, model_lib.parse_variant(config.model.variant)
  channels = m.hidden_dim or spec.hidden_dim
  if channels % m.token_groups:
    raise _refusal(
      f"model.token_groups={m.token_groups} doesn't divide the model's "
      f"{channels} channels",
      "model.token_groups",
      [max(g for g in _divisors(channels) if g < m.token_groups)],
    )
  blocks, tokens = list(m.pyramid_blocks), list(m.pyramid_tokens)
  depth = m.num_blocks or spec.num_blocks
  height, width = config_lib.image_size(config)
  first = height // spec.patch_size * (width // spec.patch_size)
  # Beyond 32 bits no model could have them.
  numbers = all(type(v) is int and abs(v) < 2**31 for v in (*blocks, *tokens))
  if (
    not numbers
    or len(blocks) != len(tokens)
    or blocks != sorted({*blocks} & {*range(depth)})
    or any(
      not 0 < b < a for a, b in zip([first, *tokens], tokens, strict=False)
    )
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
