"""Refuses a config that cannot work, in sentences."""

from mixer import config as config_lib
from mixer import durations
from mixer import model as model_lib
from mixer.errors import UserError


def _check_keys(
  config: config_lib.Config, schema: config_lib.Config, prefix: str = ""
) -> None:
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
    if isinstance(expected, config_lib.GROUPS):
      if not isinstance(value, config_lib.GROUPS):
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
  flat = config_lib.flatten(config)
  for key in (
    "total",
    "schedule.warmup",
    "log_every",
    "eval_every",
    "checkpoint_every",
  ):
    durations.parse(key, flat[key])

  def one_of(key: str, allowed: tuple[str, ...]) -> None:
    value = flat[key]
    if value not in allowed:
      raise UserError(
        f"{key}={value!r} is not known; it can be "
        + " or ".join(f"--config.{key}={a}" for a in allowed)
        + "."
      )

  def between(key: str, low: float, high: float, example: object) -> None:
    value = flat[key]
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
    ("data.prefetch_batches", 1, inf, 2),
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
