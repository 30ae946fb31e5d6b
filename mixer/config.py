"""The config: its keys with their defaults, its checks, its durations.

A recipe in `configs/` starts from `default()` and sets what it changes; the
command line overrides single keys (`--config.batch_size=64`). `validate`
refuses what cannot work before anything is allocated, in sentences; `plan`
turns durations into steps once the size of the data set is known.
"""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from typing import Any, TypeAlias

import ml_collections

from mixer import model as model_lib
from mixer.errors import UserError

# ml_collections.ConfigDict; what its attributes hold defies static types.
Config: TypeAlias = Any
_GROUPS = (Mapping, ml_collections.ConfigDict)


def default() -> Config:
  """All keys there are, with their defaults.

  Durations are strings: "300 epochs", "10000 steps", "1281167 examples", or,
  where a part of the whole run is meant, "5%".
  """
  c: Config = ml_collections.ConfigDict()
  c.seed = 0
  c.batch_size = 4096  # Examples per update, over all devices.
  c.total = "300 epochs"  # Length of training.
  c.image_size = 224  # Pixels, training and evaluation.
  # A workdir of ours, or a checkpoint in it, whose weights training starts
  # from; the head starts afresh at zero. "" starts from random weights.
  c.init_from = ""

  c.model = m = ml_collections.ConfigDict()
  m.variant = "B/16"  # S, B, L or H, and the patch size in pixels.
  m.num_blocks = 0  # 0, here and in the next three: as the variant says.
  m.hidden_dim = 0  # C, channels.
  m.tokens_mlp_dim = 0  # The paper's D_S.
  m.channels_mlp_dim = 0  # The paper's D_C.
  m.dropout = 0.0
  m.stochastic_depth = 0.0  # Of the last block; linear over depth from 0.
  m.head_bias = 0.0  # Initial bias of the head.
  m.dtype = "bfloat16"  # Of activations and matmul operands; or "float32".
  m.remat = False  # Recompute each block in the backward pass: less memory.

  c.data = d = ml_collections.ConfigDict()
  d.name = "imagenet21k"
  d.data_dir = ""  # "": TFDS's own default, ~/tensorflow_datasets.
  d.train_split = "train"  # TFDS split expressions, as "train[:98%]".
  d.eval_split = "validation"
  # Train on that many examples of each class (0: on all), drawn by seed.
  d.examples_per_class = 0
  d.subset_seed = 0
  d.crop = "inception"  # "inception" (random area and aspect) or "resize".
  d.crop_area_min = 0.05  # Smallest share of the area that a crop keeps.
  d.flip = True  # Left to right, every second image.
  d.randaugment_layers = 0  # Operations per image; 0: no RandAugment.
  d.randaugment_magnitude = 10
  d.affine_degrees = 0.0  # Light random affine: rotation up to +- this,
  d.affine_scale = 0.0  # scale up to 1 +- this,
  d.affine_translate = 0.0  # translation up to +- this share of the side.
  d.eval_short_side = 256  # Resize to this before the central crop.
  d.threads = 16  # Decoding threads of a host (of each worker, if any).
  d.workers = 0  # Decoding processes of a host; 0: threads alone.

  c.loss = o = ml_collections.ConfigDict()
  o.name = "softmax"  # Cross-entropy: "softmax" or "sigmoid".
  o.label_smoothing = 0.0
  o.mixup = 0.0  # p of Beta(p, p); 0: no mixup.

  c.optimizer = p = ml_collections.ConfigDict()
  p.name = "adamw"  # Or "sgd".
  p.learning_rate = 1e-3  # The highest of the schedule.
  p.weight_decay = 0.0  # Times the learning rate; on kernels alone.
  p.b1 = 0.9  # Adam's, as the next two.
  p.b2 = 0.999
  p.eps = 1e-8
  p.momentum = 0.9  # SGD's.
  p.clip_norm = 1.0  # Of the gradient, over all parameters; 0: no clipping.
  p.ema_decay = 0.0  # Evaluate an average of the weights; 0: no average.

  c.schedule = s = ml_collections.ConfigDict()
  s.warmup = "10000 steps"  # Linear, from 0.
  s.decay = "linear"  # To 0 at the end: "linear", "cosine" or "constant".

  c.log_every = "50 steps"
  c.eval_every = "1 epochs"  # Beside the evaluation at the end.
  c.checkpoint_every = "1 epochs"  # Beside the checkpoint at the end.
  c.keep_checkpoints = 3  # The newest so many stay.

  c.fewshot = f = ml_collections.ConfigDict()
  f.name = ""  # Data set; "": no few-shot evaluation.
  f.train_split = "train"
  f.eval_split = "test"
  f.shots = (1, 5, 10, 25)  # Labelled examples a class.
  f.seeds = 3  # Draws of them; their mean is reported.
  f.l2 = 1024.0  # Weight of the ridge.
  return c


# Keys that change neither the numbers nor their meaning: a resumed run may
# differ in them from its first start.
FREE_KEYS = (
  "data.data_dir",
  "data.threads",
  "data.workers",
  "log_every",
  "checkpoint_every",
  "keep_checkpoints",
)


def flatten(config: Config) -> dict[str, Any]:
  """`{"model.variant": "B/16", ...}` from a nested config."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, _GROUPS):
      flat |= {f"{key}.{k}": v for k, v in flatten(value).items()}
    else:
      flat[key] = list(value) if isinstance(value, tuple) else value
  return flat


def differences(old: Config, new: Config) -> dict[str, str]:
  """For each key whose value differs, a line `key: old -> new`."""
  before, after, absent = flatten(old), flatten(new), "(absent)"
  return {
    key: f"{key}: {before.get(key, absent)!r} -> {after.get(key, absent)!r}"
    for key in sorted({*before, *after})
    if before.get(key, absent) != after.get(key, absent)
  }


def to_json(config: Config) -> dict[str, object]:
  """The config as plain JSON values."""
  return {
    key: to_json(value)
    if isinstance(value, _GROUPS)
    else (list(value) if isinstance(value, tuple) else value)
    for key, value in config.items()
  }


def override(key: str, value: Any) -> str:
  """`--config.KEY=VALUE`, quoted where a shell needs it."""
  return f"--config.{key}={shlex.quote(str(value))}"


@dataclasses.dataclass(frozen=True)
class Plan:
  """Every duration of a run, in steps."""

  total: int
  warmup: int
  log_every: int
  eval_every: int
  checkpoint_every: int


_UNITS = ("steps", "epochs", "examples", "%")
_DURATION = re.compile(
  r"\s*([0-9]+(?:_[0-9]+)*\.?[0-9]*(?:e[0-9]{1,2})?)\s*(\S*)\s*"
)


def _parse_duration(key: str, text: str) -> tuple[float, str]:
  match = _DURATION.fullmatch(text)
  unit = match.group(2) if match else ""
  if match and unit != "%":
    unit = (unit or "steps").removesuffix("s") + "s"
  if not match or unit not in _UNITS:
    raise UserError(
      f"{key}={text!r} is not a duration: write a number and its unit, as in "
      f'--config.{key}="500 steps", "3 epochs", "1e6 examples" or "5%".'
    )
  return float(match.group(1)), unit


def plan(config: Config, num_examples: int) -> Plan:
  """Turns the config's durations into steps.

  Args:
    config: a valid config.
    num_examples: of the training split.

  Raises:
    UserError: a run of no steps, or a warm-up as long as the whole.
  """

  def steps(key: str, total: int | None) -> int:
    node = config
    for part in key.split("."):
      node = node[part]
    value, unit = _parse_duration(key, node)
    if unit == "%":
      if total is None:
        raise UserError(
          f"{key}={node!r}: the whole run can't be a share of itself; give "
          f'steps, epochs or examples, as in --config.{key}="500 steps".'
        )
      return round(value / 100 * total)
    if unit == "epochs":
      value = value * num_examples / config.batch_size
    elif unit == "examples":
      value = value / config.batch_size
    return round(value)

  total = steps("total", None)
  if total < 1:
    raise UserError(
      f"total={config.total!r} comes to less than one step with "
      f"{num_examples} training examples and batch_size={config.batch_size}; "
      'make it longer, as in --config.total="500 steps".'
    )
  warmup = steps("schedule.warmup", total)
  if warmup >= total:
    raise UserError(
      f"schedule.warmup={config.schedule.warmup!r} ({warmup} steps) is not "
      f"shorter than total={config.total!r} ({total} steps); lower it, as in "
      '--config.schedule.warmup="5%".'
    )
  every = (
    max(1, steps(k, total))
    for k in ("log_every", "eval_every", "checkpoint_every")
  )
  return Plan(total, warmup, *every)


def _check_keys(config: Config, schema: Config, prefix: str = "") -> None:
  """Refuses unknown, missing and ill-typed keys."""
  for key in config:
    if key not in schema:
      close = ", ".join(sorted(schema))
      raise UserError(
        f"{prefix}{key} is not a key of the config; there are: {close}."
      )
  for key, expected in schema.items():
    name = prefix + key
    if key not in config:
      raise UserError(
        f"the config has no {name}; start it from mixer.config.default(), "
        f"where it is {expected!r}."
      )
    value = config[key]
    if isinstance(expected, _GROUPS):
      if not isinstance(value, _GROUPS):
        raise UserError(f"{name}={value!r} should be a group of keys.")
      _check_keys(value, expected, name + ".")
      continue
    kinds = {float: (float, int), tuple: (tuple, list)}
    allowed = kinds.get(type(expected), (type(expected),))
    if not isinstance(value, allowed) or (
      isinstance(value, bool) and not isinstance(expected, bool)
    ):
      raise UserError(
        f"{name}={value!r} should be of type {type(expected).__name__}, as in "
        f"{override(name, expected)}."
      )


def validate(config: Config, num_devices: int) -> None:
  """Refuses a config that cannot work, before anything is allocated.

  Args:
    config: to be checked.
    num_devices: over all hosts.

  Raises:
    UserError: names the key and a valid value.
  """
  _check_keys(config, default())
  for key in (
    "total",
    "schedule.warmup",
    "log_every",
    "eval_every",
    "checkpoint_every",
  ):
    _parse_duration(key, str(flatten(config)[key]))

  def one_of(key: str, allowed: tuple[str, ...]) -> None:
    value = flatten(config)[key]
    if value not in allowed:
      raise UserError(
        f"{key}={value!r} is not known; it can be "
        + " or ".join(f"--config.{key}={a}" for a in allowed)
        + "."
      )

  def between(key: str, low: float, high: float, example: object) -> None:
    value = flatten(config)[key]
    if not low <= value < high:
      raise UserError(
        f"{key}={value!r} should be at least {low:g}"
        + (f" and below {high:g}" if high < float("inf") else "")
        + f", as in --config.{key}={example}."
      )

  one_of("model.dtype", ("bfloat16", "float32"))
  one_of("data.crop", ("inception", "resize"))
  one_of("loss.name", ("softmax", "sigmoid"))
  one_of("optimizer.name", ("adamw", "sgd"))
  one_of("schedule.decay", ("linear", "cosine", "constant"))
  inf = float("inf")
  for key, low, high, example in (
    ("seed", 0, 2**32, 0),
    ("batch_size", 1, inf, 64),
    ("image_size", 1, inf, 224),
    ("model.num_blocks", 0, inf, 12),
    ("model.hidden_dim", 0, inf, 768),
    ("model.tokens_mlp_dim", 0, inf, 384),
    ("model.channels_mlp_dim", 0, inf, 3072),
    ("model.dropout", 0, 1, 0.1),
    ("model.stochastic_depth", 0, 1, 0.1),
    ("data.examples_per_class", 0, inf, 10),
    ("data.subset_seed", 0, 2**32, 0),
    ("data.crop_area_min", 0, 1, 0.05),
    ("data.randaugment_layers", 0, inf, 2),
    ("data.randaugment_magnitude", 0, 31, 15),
    ("data.affine_degrees", 0, 181, 10),
    ("data.affine_scale", 0, 1, 0.1),
    ("data.affine_translate", 0, 1, 0.1),
    ("data.threads", 1, inf, 16),
    ("data.workers", 0, inf, 0),
    ("loss.label_smoothing", 0, 1, 0.1),
    ("loss.mixup", 0, inf, 0.5),
    ("optimizer.learning_rate", 0, inf, 1e-3),
    ("optimizer.weight_decay", 0, inf, 0.1),
    ("optimizer.b1", 0, 1, 0.9),
    ("optimizer.b2", 0, 1, 0.999),
    ("optimizer.eps", 0, inf, 1e-8),
    ("optimizer.momentum", 0, 1, 0.9),
    ("optimizer.clip_norm", 0, inf, 1),
    ("optimizer.ema_decay", 0, 1, 0.9999),
    ("keep_checkpoints", 1, inf, 3),
    ("fewshot.seeds", 1, inf, 3),
    ("fewshot.l2", 0, inf, 1024),
  ):
    between(key, low, high, example)
  _check_together(config, num_devices)


def _check_together(config: Config, num_devices: int) -> None:
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
  spec = model_lib.parse_variant(config.model.variant)
  side, patch = config.image_size, spec.patch_size
  if side % patch:
    near = [max(1, side // patch) * patch]
    near.append(near[0] + patch)
    raise UserError(
      f"image_size={side} can't be divided into patches of {patch} pixels "
      f"(model.variant={config.model.variant}); use "
      + " or ".join(f"--config.image_size={n}" for n in near)
      + "."
    )
  if config.data.eval_short_side < side:
    raise UserError(
      f"data.eval_short_side={config.data.eval_short_side} is smaller than "
      f"the central crop, image_size={side}; use "
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
  shots = config.fewshot.shots
  if config.fewshot.name and (
    not shots or not all(isinstance(s, int) and s > 0 for s in shots)
  ):
    raise UserError(
      f"fewshot.shots={shots!r} should be numbers of examples, as in "
      '--config.fewshot.shots="(1, 5, 10, 25)".'
    )
