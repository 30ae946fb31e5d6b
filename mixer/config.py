"""The config: its keys with their defaults.

A recipe in `configs/` starts from `default()` and sets what it changes; the
command line overrides single keys (`--config.batch_size=64`).
`mixer.validation` refuses what cannot work; `mixer.durations` turns durations
into steps.
"""

import shlex
from collections.abc import Mapping
from typing import Any, TypeAlias

import ml_collections

# ml_collections.ConfigDict; what its attributes hold defies static types.
Config: TypeAlias = Any
GROUPS = (Mapping, ml_collections.ConfigDict)


def default() -> Config:
  """All keys there are, with their defaults.

  Durations are strings: "300 epochs", "10000 steps", "1281167 examples", or,
  where a part of the whole run is meant, "5%".
  """
  c: Config = ml_collections.ConfigDict()
  c.seed = 0
  c.batch_size = 4096  # Examples per update, over all devices.
  c.total = "300 epochs"  # Length of training.
  c.image_size = 224  # Pixels, training and evaluation: side, or height if
  c.image_width = 0  # this is not 0.
  # Weights that training starts from: a workdir of ours, a checkpoint in it, a
  # released .npz file or its name ("imagenet21k/Mixer-B_16"); "": random ones.
  c.init_from = ""
  c.init_head = "new"  # Its head: a "new" one, kernel zero; or "keep" theirs.
  # Weights of another resolution: "tiles" (the paper's, integer factors),
  # "interleaved", "resample" (any size); "": tiles where they fit.
  c.init_resize = ""

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
  # Of the activations: "token_major", [S, B, C], or "batch_major", [B, S, C];
  # "": as suits the devices. This and the next change neither the model nor
  # its parameters.
  m.layout = ""
  # What the backward pass computes again, for less memory: "none",
  # "pre_activations" (all but those and the residual stream) or "block".
  m.remat = "none"
  # Appendix A.1 of the paper: docs/experiments.md.
  m.token_mixing = "shared"  # One MLP for all channels; or "untied".
  m.token_groups = 1  # G, neighbouring channels that a token MLP sees at once.
  m.group_projection = False  # Or groups of G learned views of the channels.
  m.pyramid_blocks = ()  # Blocks, from 0, whose token mixing
  m.pyramid_tokens = ()  # leaves so many tokens.

  c.data = d = ml_collections.ConfigDict()
  d.name = "imagenet21k"
  d.data_dir = ""  # "": TFDS's own default, ~/tensorflow_datasets.
  d.train_split = "train"  # TFDS split expressions, as "train[:98%]".
  d.eval_split = "validation"  # "auto": `test`, or where none is `validation`.
  # Train on that many examples of each class (0: on all), drawn by seed.
  d.examples_per_class = 0
  d.subset_seed = 0
  d.crop = "inception"  # "inception" (random area and aspect) or "resize".
  d.crop_area_min = 0.05  # Smallest share of the area that a crop keeps.
  d.flip = True  # Left to right, every second image.
  d.randaugment_layers = 0  # Operations per image; 0: no RandAugment.
  d.randaugment_magnitude = 10
  # Section 3.4: a fixed permutation of the "patches" and of the pixels inside
  # a patch, or of all "pixels"; "": none.
  d.permute = ""
  d.permute_seed = 0
  d.affine_degrees = 0.0  # Light random affine: rotation up to +- this,
  d.affine_scale = 0.0  # scale up to 1 +- this,
  d.affine_translate = 0.0  # translation up to +- this share of the side.
  # Resize to this before the central crop; 0: no crop, squeeze the image.
  d.eval_short_side = 256
  d.threads = 16  # Decoding threads of a host (of each worker, if any).
  d.workers = 0  # Decoding processes of a host; 0: threads alone.
  # Batches made ahead (by each worker, if any): what bounds host memory.
  d.prefetch_batches = 2

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
  p.clip_norm = 1.0  # Of the whole gradient; 0: no clipping.
  p.ema_decay = 0.0  # Evaluate an average of the weights; 0: no average.
  # Micro-batches that an update's batch is cut into: the same update, made
  # with less memory.
  p.accumulate = 1
  p.sam_rho = 0.0  # Radius of Sharpness-Aware Minimization; 0: without it.
  p.train = "all"  # Or "head", a linear probe: all else stays as it is.
  # Pairs (pattern, factor): the first pattern that matches the whole name of a
  # parameter ("head/.*") multiplies its learning rate; 0 leaves it as it is.
  p.lr_factors = ()

  c.schedule = s = ml_collections.ConfigDict()
  s.warmup = "10000 steps"  # Linear, from 0.
  s.decay = "linear"  # To 0 at the end: "linear", "cosine" or "constant".

  c.sweep = w = ml_collections.ConfigDict()  # What `tools.sweep` tries.
  w.learning_rates = ()  # Of optimizer.learning_rate.
  w.train_split = ""  # Trained on to choose; the last run takes data.*_split.
  w.eval_split = ""  # Chosen by accuracy on it.

  # Updates that are sent to the devices together: for models so small that
  # starting an update takes as long as making it.
  c.steps_per_dispatch = 1
  c.log_every = "50 steps"
  c.eval_every = "1 epochs"  # Beside the evaluation at the end.
  c.checkpoint_every = "1 epochs"  # Beside the checkpoint at the end.
  c.keep_checkpoints = 3  # The newest so many stay,
  c.keep_every = ""  # those at multiples of this duration ("": none),
  c.keep_best = ""  # and the best by this metric ("eval/accuracy"; "": none).
  # Write report.html at the end, which takes one more pass over the evaluation
  # split.
  c.report = True

  c.sharding = h = ml_collections.ConfigDict()
  # Split the optimizer's state and the average of the weights over all devices
  # (ZeRO-1, arXiv 1910.02054).
  h.zero1 = True
  # Devices that share one copy of the weights (FSDP); 1: each has its own.
  h.fsdp = 1
  h.min_size = 65_536  # Arrays of fewer elements are whole on every device.
  h.reduce_dtype = "float32"  # Kernels' gradients are summed over devices so.

  # At a NaN or infinity: "stop", or "skip" that update and go on, unless the
  # limit of updates in a row has been skipped.
  c.nonfinite = "stop"
  c.nonfinite_limit = 10
  # A run that makes no progress for so long is ended; 0: never.
  c.hang_seconds = 1800

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
  "data.prefetch_batches",
  "steps_per_dispatch",
  "log_every",
  "checkpoint_every",
  "keep_checkpoints",
  "keep_every",
  "keep_best",
  "report",
  "model.layout",
  "model.remat",
  "sharding.zero1",
  "sharding.fsdp",
  "sharding.min_size",
  "nonfinite",
  "nonfinite_limit",
  "hang_seconds",
  "sweep.learning_rates",
  "sweep.train_split",
  "sweep.eval_split",
)


def image_size(config: Config) -> tuple[int, int]:
  """(height, width) of the images, in pixels."""
  return config.image_size, config.image_width or config.image_size


def changed(config: Config, values: Mapping[str, Any]) -> Config:
  """A copy with other values, as of `flatten`."""
  copy: Config = ml_collections.ConfigDict(config)
  copy = copy.copy_and_resolve_references()
  copy.update_from_flattened_dict(values)
  return copy


def flatten(config: Config) -> dict[str, Any]:
  """`{"model.variant": "B/16", ...}` from a nested config."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, GROUPS):
      flat |= {f"{key}.{k}": v for k, v in flatten(value).items()}
    else:
      flat[key] = _plain(value)
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
    key: to_json(value) if isinstance(value, GROUPS) else _plain(value)
    for key, value in config.items()
  }


def from_json(stored: Mapping[str, Any], resolved: Mapping[str, Any]) -> Config:
  """The config of a run; keys that are younger have their defaults.

  Args:
    stored: as of `to_json`.
    resolved: what config.json tells beside it.
  """
  config = default()
  known = flatten(config)
  for key, value in flatten(stored).items():
    if key not in known:
      continue  # Gone since.
    *groups, last = key.split(".")
    place = config
    for group in groups:
      place = place[group]
    place[last] = _tuples(value)
  if isinstance(config.model.remat, bool):  # As it was at first.
    config.model.remat = "block" if config.model.remat else "none"
  # Of weights that the run had fitted to its resolution.
  if resolved.get("tokens_mlp_dim"):
    config.model.tokens_mlp_dim = resolved["tokens_mlp_dim"]
  return config


def _tuples(value: Any) -> Any:
  """Tuples for the lists that JSON has made of them, at any depth."""
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
  """Lists for tuples, at any depth: what JSON makes of them."""
  if isinstance(value, tuple | list):
    return [_plain(v) for v in value]
  return value


def override(key: str, value: Any) -> str:
  """`--config.KEY=VALUE`, quoted where a shell needs it."""
  return f"--config.{key}={shlex.quote(str(value))}"
