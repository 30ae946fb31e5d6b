"""Refuses a config that cannot work, in sentences that say what would."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from mixer import config as config_lib
from mixer import durations, optim
from mixer import model as model_lib
from mixer.config import shown
from mixer.errors import UserError


def validate(config: config_lib.Config, num_devices: int) -> None:
  """Raises a UserError, which names a key and a valid value of it."""
  flat = config_lib.flatten(config)
  for name in sorted(flat.keys() - config_lib.KEYS.keys()):
    raise UserError(config_lib.unknown(name))
  for name, key in config_lib.KEYS.items():
    if name not in flat:
      raise UserError(
        f"the config has no {name}; start it from mixer.config.default()."
      )
    _check_value(name, flat[name], key)
  durations.check(config)
  for is_wrong, message in _rules(config, num_devices):
    if is_wrong:
      raise UserError(f"{message}.")
  optim.check(config)


def _check_value(name: str, value: Any, key: config_lib.Key) -> None:
  """Refuses another type than the default's, and what is out of range."""
  kind = type(key.default)
  allowed = {float: (float, int), tuple: (list,)}.get(kind, (kind,))
  example = config_lib.override(name, key.default)
  if type(value) not in allowed:
    wrong = f"should be of type {kind.__name__}, as in {example}"
  elif key.choices and value not in key.choices:
    wrong = f"is not known; use {_ways(name, key.choices)}"
  elif key.below and not key.least <= value < key.below:  # NaN too.
    wrong = f"should be in [{key.least}, {key.below}), as in {example}"
  else:
    return
  raise UserError(f"{name}={shown(value)} {wrong}.")


def _ways(key: str, values: Iterable[object]) -> str:
  return " or ".join(f"--config.{key}={value}" for value in values)


def _rules(
  c: config_lib.Config, num_devices: int
) -> Iterator[tuple[bool, str]]:
  """For each rule between keys: whether it is broken, and what would work."""
  m, spec = c.model, model_lib.parse_variant(c.model.variant)
  height, width = config_lib.image_size(c)
  patches = f"pixels of a patch (model.variant={m.variant})"
  yield _multiple("batch_size", c.batch_size, num_devices, "devices")
  yield _multiple("image_size", height, spec.patch_size, patches)
  yield _multiple("image_width", width, spec.patch_size, patches)

  each, parts = c.batch_size // num_devices, c.optimizer.accumulate
  channels = m.hidden_dim or spec.hidden_dim
  yield _divisor("optimizer.accumulate", parts, each, "examples of a device")
  yield _divisor("sharding.fsdp", c.sharding.fsdp, num_devices, "devices")
  yield _divisor("model.token_groups", m.token_groups, channels, "channels")

  side, short_side = max(height, width), c.data.eval_short_side
  yield (
    0 < short_side < side,
    f"data.eval_short_side={short_side} is smaller than the central crop of "
    f"{side} px (image_size); use --config.data.eval_short_side={side} or more",
  )
  yield (
    parts > 1 and c.sharding.reduce_dtype == "bfloat16",
    f"optimizer.accumulate={parts} sums gradients in float32; use "
    "--config.sharding.reduce_dtype=float32 or --config.optimizer.accumulate=1",
  )
  yield (
    c.loss.name == "sigmoid" and c.loss.label_smoothing > 0,
    "loss.label_smoothing is defined for the softmax loss; use "
    "--config.loss.label_smoothing=0 or --config.loss.name=softmax",
  )
  yield (
    c.init_head == "keep" and not c.init_from,
    "init_head='keep' without initial weights: name them by "
    "--config.init_from=PATH, or use --config.init_head=new",
  )
  yield (
    not all(map(_is_factor, c.sweep.learning_rates)),
    f"sweep.learning_rates={shown(c.sweep.learning_rates)} should be numbers "
    'of at least 0, as in --config.sweep.learning_rates="(0.003, 0.01)"',
  )
  shots = c.fewshot.shots
  yield (
    not all(type(s) is int and 0 < s < 10**6 for s in shots)
    or (bool(c.fewshot.name) and not shots),
    f"fewshot.shots={shown(shots)} should be numbers of examples, as in "
    '--config.fewshot.shots="(1, 5, 10, 25)"',
  )
  yield (
    not all(map(_is_pair, c.optimizer.lr_factors)),
    f"optimizer.lr_factors={shown(c.optimizer.lr_factors)} should be pairs of "
    "a regular expression and a number of at least 0, as in "
    "--config.optimizer.lr_factors=\"(('head/.*', 10.0),)\"",
  )
  blocks, tokens = list(m.pyramid_blocks), list(m.pyramid_tokens)
  depth = m.num_blocks or spec.num_blocks
  first = height // spec.patch_size * (width // spec.patch_size)
  yield (
    not all(type(v) is int for v in (*blocks, *tokens))
    or len(blocks) != len(tokens)
    or blocks != sorted({*blocks} & {*range(depth)})
    or tokens != sorted({t for t in tokens if 0 < t < first}, reverse=True),
    f"model.pyramid_blocks={shown(blocks)} should rise, below {depth}, and "
    f"model.pyramid_tokens={shown(tokens)}, equally long, fall, below {first}, "
    'as in --config.model.pyramid_blocks="(2, 5)" '
    '--config.model.pyramid_tokens="(98, 49)"',
  )


def _multiple(key: str, value: int, of: int, what: str) -> tuple[bool, str]:
  below = max(1, value // of) * of
  ways = _ways(key, (below, below + of))
  return (
    value % of > 0,
    f"{key}={value} isn't divided by {of} {what}; use {ways}",
  )


def _divisor(key: str, value: int, whole: int, what: str) -> tuple[bool, str]:
  below, above = range(min(value, whole), 0, -1), range(value, whole + 1)
  near = [next((n for n in r if not whole % n), None) for r in (below, above)]
  wrong = f"{key}={value} doesn't divide the {whole} {what}"
  return whole % value > 0, f"{wrong}; use {_ways(key, filter(None, near))}"


def _is_factor(value: Any) -> bool:
  return type(value) in (int, float) and 0 <= value < 3.4e38


def _is_pair(pair: Any) -> bool:
  """Whether it is a pair of a regular expression and a factor."""
  try:
    pattern, factor = pair
    re.compile("" + pattern)  # Text, which matches.
    return _is_factor(factor)
  except (TypeError, ValueError, re.error, OverflowError, RecursionError):
    return False
