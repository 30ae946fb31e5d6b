"""Refuses a config that cannot work, in sentences."""

import math

from mixer import block, durations, optim
from mixer import config as config_lib
from mixer import model as model_lib
from mixer.errors import UserError

_CHOICES = {
  "init_head": ("new", "keep"),
  "init_resize": ("", "tiles", "interleaved", "resample"),
  "model.dtype": ("bfloat16", "float32"),
  "model.layout": ("", *block.LAYOUTS),
  "model.remat": block.REMAT,
  "model.token_mixing": ("shared", "untied"),
  "data.permute": model_lib.PERMUTATIONS,
  "data.crop": ("inception", "resize"),
  "loss.name": ("softmax", "sigmoid"),
  "optimizer.name": ("adamw", "sgd"),
  "optimizer.train": ("all", "head"),
  "schedule.decay": ("linear", "cosine", "constant"),
  "keep_best": ("", "eval/accuracy", "eval/accuracy_top5", "eval/loss"),
  "nonfinite": ("stop", "skip"),
  "sharding.reduce_dtype": ("float32", "bfloat16"),
}
# Beyond it float32 has infinity alone.
_FLOAT = 3.4e38
# Every number there is: (at least, below, an example).
_NUMBERS = {
  "seed": (0, 2**32, 0),
  "batch_size": (1, 10**7, 64),
  "image_size": (1, 10**4, 224),
  "image_width": (0, 10**4, 224),
  "model.num_blocks": (0, 1000, 12),
  "model.hidden_dim": (0, 10**5, 768),
  "model.tokens_mlp_dim": (0, 10**5, 384),
  "model.channels_mlp_dim": (0, 10**6, 3072),
  "model.dropout": (0, 1, 0.1),
  "model.stochastic_depth": (0, 1, 0.1),
  "model.head_bias": (-1000, 1000, -10),
  "model.token_groups": (1, 10**5, 4),
  "data.permute_seed": (0, 2**32, 0),
  "data.examples_per_class": (0, 10**9, 10),
  "data.subset_seed": (0, 2**32, 0),
  "data.crop_area_min": (0, 1, 0.05),
  "data.randaugment_layers": (0, 100, 2),
  "data.randaugment_magnitude": (0, 31, 15),
  "data.affine_degrees": (0, 181, 10),
  "data.affine_scale": (0, 1, 0.1),
  "data.affine_translate": (0, 1, 0.1),
  "data.eval_short_side": (0, 10**5, 256),
  "data.threads": (1, 1000, 16),
  "data.prefetch_batches": (1, 1000, 2),
  "loss.label_smoothing": (0, 1, 0.1),
  "loss.mixup": (0, 1000, 0.5),
  "optimizer.learning_rate": (0, _FLOAT, 1e-3),
  "optimizer.weight_decay": (0, _FLOAT, 0.1),
  "optimizer.b1": (0, 1, 0.9),
  "optimizer.b2": (0, 1, 0.999),
  "optimizer.eps": (0, _FLOAT, 1e-8),
  "optimizer.momentum": (0, 1, 0.9),
  "optimizer.clip_norm": (0, _FLOAT, 1),
  "optimizer.ema_decay": (0, 1, 0.9999),
  "optimizer.accumulate": (1, 10**7, 4),
  "optimizer.sam_rho": (0, _FLOAT, 0.1),
  "steps_per_dispatch": (1, 10**4, 8),
  "keep_checkpoints": (1, 10**9, 3),
  "sharding.fsdp": (1, 10**6, 1),
  "sharding.min_size": (1, 10**18, 65_536),
  "nonfinite_limit": (1, 10**9, 10),
  "hang_seconds": (0, 10**9, 1800),
  "fewshot.seeds": (1, 1000, 3),
  "fewshot.l2": (0, _FLOAT, 1024),
}


def _check_keys(
  config: config_lib.Config, schema: config_lib.Config, prefix: str = ""
) -> None:
  """Refuses unknown, missing and ill-typed keys."""
  for key in config:
    if key not in schema:
      near = config_lib.near(prefix + key)
      meant = f" (did you mean {near}?)" if near else ""
      raise UserError(
        f"{prefix}{key} is not a key of the config{meant}; there are: "
        f"{', '.join(sorted(schema))}."
      )
  for key, expected in schema.items():
    name = prefix + key
    if key not in config:
      raise UserError(
        f"the config has no {name}; start it from mixer.config.default(), "
        f"where it is {expected!r}."
      )
    value = config[key]
    if isinstance(expected, config_lib.GROUPS):
      if not isinstance(value, config_lib.GROUPS):
        raise UserError(
          f"{name}={config_lib.shown(value)} should be a group of keys."
        )
      _check_keys(value, expected, name + ".")
      continue
    kinds = {float: (float, int), tuple: (tuple, list)}
    allowed = kinds.get(type(expected), (type(expected),))
    if not isinstance(value, allowed) or (
      isinstance(value, bool) and not isinstance(expected, bool)
    ):
      raise UserError(
        f"{name}={config_lib.shown(value)} should be of type "
        f"{type(expected).__name__}, as in "
        f"{config_lib.override(name, expected)}."
      )


def validate(config: config_lib.Config, num_devices: int) -> None:
  """Refuses a config that cannot work, before anything is allocated.

  Args:
    config: to be checked.
    num_devices: over all hosts.

  Raises:
    UserError: names the key and a valid value.
  """
  _check_keys(config, config_lib.default())
  for key in ("total", "schedule.warmup"):
    durations.parse(key, config[key])
  for key in filter(config.get, durations.INTERVALS):
    durations.parse(key, config[key])
  for key, allowed in _CHOICES.items():
    if config[key] not in allowed:
      raise UserError(
        f"{key}={config_lib.shown(config[key])} is not known; it can be "
        + " or ".join(f"--config.{key}={a}" for a in allowed)
        + "."
      )
  for key in _NUMBERS:
    _check_number(key, config[key])
  for rate in config.sweep.learning_rates:
    _check_number("optimizer.learning_rate", rate, "sweep.learning_rates")
  optim.check_factors(config)
  _check_together(config, num_devices)
  _check_token_mixing(config)


def _check_number(key: str, value: object, among: str = "") -> None:
  """Refuses what is out of a key's range, or NaN.

  Args:
    key: in `_NUMBERS`.
    value: a number, or one of the values of another key.
    among: that key.
  """
  low, high, example = _NUMBERS[key]
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not low <= value < high:
    example = f"({example},)" if among else example
    below = f"{high:,}" if isinstance(high, int) else f"{high:g}"
    raise UserError(
      f"{among or key}={config_lib.shown(value)} should be at least {low} and "
      f"below {below}, as in {config_lib.override(among or key, example)}."
    )


def _divisors(number: int) -> list[int]:
  """In order."""
  low = [n for n in range(1, math.isqrt(number) + 1) if not number % n]
  return sorted({*low, *(number // n for n in low)})


def _check_together(config: config_lib.Config, num_devices: int) -> None:
  """Refuses settings that contradict one another."""
  b = config.batch_size
  if b % num_devices:
    near = [max(1, b // num_devices) * num_devices]
    near.append(near[0] + num_devices)
    raise UserError(
      f"batch_size={b} can't be divided among {num_devices} devices; use "
      + " or ".join(f"--config.batch_size={n}" for n in near)
      + "."
    )
  parts, each = config.optimizer.accumulate, b // num_devices
  if each % parts:
    divisors = _divisors(each)
    near = [max(n for n in divisors if n < parts)]
    near += [n for n in divisors if n > parts][:1]
    raise UserError(
      f"optimizer.accumulate={parts} doesn't divide the {each} examples that "
      f"each of {num_devices} devices has of batch_size={b}; use "
      + " or ".join(f"--config.optimizer.accumulate={n}" for n in near)
      + "."
    )
  if parts > 1 and config.sharding.reduce_dtype == "bfloat16":
    raise UserError(
      f"optimizer.accumulate={parts} adds gradients up in float32, and so they "
      "are summed over devices, and sharding.reduce_dtype='bfloat16'; use "
      "--config.sharding.reduce_dtype=float32 or "
      "--config.optimizer.accumulate=1."
    )
  n = config.sharding.fsdp
  if num_devices % n:
    near = _divisors(num_devices)
    raise UserError(
      f"sharding.fsdp={n} doesn't divide the {num_devices} devices; use "
      + " or ".join(f"--config.sharding.fsdp={d}" for d in near[:4])
      + "."
    )
  spec = model_lib.parse_variant(config.model.variant)
  patch, size = spec.patch_size, config_lib.image_size(config)
  for key in ("image_size", "image_width"):
    if config[key] % patch:
      near = [max(1, config[key] // patch) * patch]
      near.append(near[0] + patch)
      raise UserError(
        f"{key}={config[key]} can't be divided into patches of {patch} pixels "
        f"(model.variant={config.model.variant}); use "
        + " or ".join(f"--config.{key}={n}" for n in near)
        + "."
      )
  side = max(size)
  if 0 < config.data.eval_short_side < side:
    raise UserError(
      f"data.eval_short_side={config.data.eval_short_side} is smaller than "
      f"the central crop, {size[0]} x {size[1]} px (image_size); use "
      f"--config.data.eval_short_side={side} or more."
    )
  if config.loss.name == "sigmoid" and config.loss.label_smoothing:
    raise UserError(
      "loss.label_smoothing is defined for the softmax loss and "
      "loss.name='sigmoid'; use --config.loss.label_smoothing=0 or "
      "--config.loss.name=softmax."
    )
  if config.optimizer.name == "sgd" and config.optimizer.weight_decay:
    raise UserError(
      "optimizer.weight_decay is the decoupled decay of AdamW and "
      "optimizer.name='sgd'; use --config.optimizer.weight_decay=0 or "
      "--config.optimizer.name=adamw."
    )
  if config.init_head == "keep" and not config.init_from:
    raise UserError(
      "init_head='keep' and init_from='': there is no head to keep; name the "
      "weights by --config.init_from=PATH, or use --config.init_head=new."
    )
  shots = config.fewshot.shots
  numbers = all(type(s) is int and 0 < s < 10**6 for s in shots)
  if not numbers or (config.fewshot.name and not shots):
    raise UserError(
      f"fewshot.shots={config_lib.shown(shots)} should be numbers of examples, "
      "as in "
      '--config.fewshot.shots="(1, 5, 10, 25)".'
    )


def _check_token_mixing(config: config_lib.Config) -> None:
  """Refuses groups and pyramids that don't fit the model."""
  m = config.model
  spec = model_lib.parse_variant(m.variant)
  channels = m.hidden_dim or spec.hidden_dim
  if channels % m.token_groups:
    near = max(g for g in _divisors(channels) if g < m.token_groups)
    raise UserError(
      f"model.token_groups={m.token_groups} doesn't divide the model's "
      f"{channels} channels; use --config.model.token_groups={near}."
    )
  blocks, tokens = list(m.pyramid_blocks), list(m.pyramid_tokens)
  example = (
    'as in --config.model.pyramid_blocks="(2, 5)" '
    '--config.model.pyramid_tokens="(98, 49)"'
  )
  for key, values in (("blocks", blocks), ("tokens", tokens)):
    # Beyond 32 bits they are none that a model could have.
    if not all(type(v) is int and abs(v) < 2**31 for v in values):
      raise UserError(
        f"model.pyramid_{key}={config_lib.shown(values)} should be whole "
        f"numbers, {example}."
      )
  shown = f"model.pyramid_blocks={config_lib.shown(blocks)}"
  shown_tokens = f"model.pyramid_tokens={config_lib.shown(tokens)}"
  if len(blocks) != len(tokens):
    raise UserError(
      f"{shown} and {shown_tokens} should be equally long, {example}."
    )
  depth = m.num_blocks or spec.num_blocks
  if blocks != sorted({*blocks} & {*range(depth)}):
    raise UserError(
      f"{shown} should be rising numbers of blocks; the model has 0 to "
      f"{depth - 1}."
    )
  height, width = config_lib.image_size(config)
  before = [height // spec.patch_size * (width // spec.patch_size), *tokens]
  if any(not 0 < b < a for a, b in zip(before, tokens, strict=False)):
    raise UserError(
      f"{shown_tokens} should fall from block to block; the model starts with "
      f"{before[0]} tokens (images of {height} x {width}, "
      f"patches of {spec.patch_size} pixels)."
    )
