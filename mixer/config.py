"""The config: its keys with their defaults.

A recipe in `configs/` starts from `default()` and sets what it changes; the
command line overrides single keys (`--config.batch_size=64`).
`mixer.validation` refuses what cannot work; `mixer.durations` turns durations
into steps.
"""

import difflib
import shlex
from collections.abc import Mapping
from typing import Any, TypeAlias

import ml_collections

# ml_collections.ConfigDict; what its attributes hold defies static types.
Config: TypeAlias = Any
GROUPS = (Mapping, ml_collections.ConfigDict)


# The value of `init_from` in a recipe that wants weights to be named.
UNNAMED = "?"

# Every key, its default and its meaning. Durations are strings: "300 epochs",
# "10000 steps", "1281167 examples", or, of the whole run, "5%".
KEYS: dict[str, tuple[Any, str]] = {
  "seed": (0, "of the run's random numbers"),
  "batch_size": (4096, "examples per update, over all devices"),
  "total": ("300 epochs", "length of training"),
  "image_size": (
    224,
    "pixels, training and evaluation: side, or height if image_width is not 0",
  ),
  "image_width": (0, "pixels; 0: as image_size"),
  "init_from": (
    "",
    "weights that training starts from: a workdir of ours, a checkpoint in it, "
    "a released .npz file or its name (imagenet21k/Mixer-B_16); empty: random",
  ),
  "init_head": (
    "new",
    "head of those weights: a new one, kernel zero; or keep theirs",
  ),
  "init_resize": (
    "",
    "weights of another resolution: tiles (the paper's, integer factors), "
    "interleaved, resample (any size); empty: tiles where they fit",
  ),
  "model.variant": ("B/16", "S, B, L or H, and the patch size in pixels"),
  "model.num_blocks": (0, "0: as the variant says"),
  "model.hidden_dim": (0, "C, channels; 0: as the variant says"),
  "model.tokens_mlp_dim": (0, "the paper's D_S; 0: as the variant says"),
  "model.channels_mlp_dim": (0, "the paper's D_C; 0: as the variant says"),
  "model.dropout": (0.0, "share of an MLP's activations that is dropped"),
  "model.stochastic_depth": (
    0.0,
    "share of the last block's branches that is dropped; linear over depth "
    "from 0",
  ),
  "model.head_bias": (0.0, "initial bias of the head"),
  "model.dtype": (
    "bfloat16",
    "of activations and matmul operands; or float32",
  ),
  # This and the next change neither the model nor its parameters.
  "model.layout": (
    "",
    "of the activations: token_major, [S, B, C], or batch_major, [B, S, C]; "
    "empty: as suits the devices",
  ),
  "model.remat": (
    "none",
    "what the backward pass computes again, for less memory: none, "
    "pre_activations (all but those and the residual stream) or block",
  ),
  # Appendix A.1 of the paper: docs/experiments.md.
  "model.token_mixing": (
    "shared",
    "one MLP for all channels (shared), or untied",
  ),
  "model.token_groups": (
    1,
    "G, neighbouring channels that a token MLP sees at once",
  ),
  "model.group_projection": (
    False,
    "or groups of G learned views of the channels",
  ),
  "model.pyramid_blocks": (
    (),
    "blocks, from 0, whose token mixing leaves fewer tokens",
  ),
  "model.pyramid_tokens": ((), "the number that each of those leaves"),
  "data.name": ("imagenet21k", "data set, as mixer prepare names it"),
  "data.data_dir": (
    "",
    "where data sets lie; empty: TFDS's own default, ~/tensorflow_datasets",
  ),
  "data.train_split": ("train", "TFDS split expression, as train[:98%]"),
  "data.eval_split": (
    "validation",
    "likewise; auto: test, or where none is validation",
  ),
  "data.examples_per_class": (
    0,
    "train on that many examples of each class, drawn by data.subset_seed; 0: "
    "on all",
  ),
  "data.subset_seed": (0, "of that draw"),
  "data.crop": (
    "inception",
    "for training: inception (random area and aspect) or resize",
  ),
  "data.crop_area_min": (
    0.05,
    "smallest share of the area that a crop keeps",
  ),
  "data.flip": (True, "left to right, every second image"),
  "data.randaugment_layers": (0, "operations per image; 0: no RandAugment"),
  "data.randaugment_magnitude": (10, "their strength"),
  # Section 3.4 of the paper.
  "data.permute": (
    "",
    "a fixed permutation of the patches and of the pixels inside a patch "
    "(patches), or of all pixels (pixels); empty: none",
  ),
  "data.permute_seed": (0, "of that permutation"),
  "data.affine_degrees": (0.0, "light random affine: rotation up to +- this"),
  "data.affine_scale": (0.0, "likewise: scale up to 1 +- this"),
  "data.affine_translate": (
    0.0,
    "likewise: translation up to +- this share of the side",
  ),
  "data.eval_short_side": (
    256,
    "resize to this before the central crop; 0: no crop, squeeze the image",
  ),
  "data.threads": (16, "decoding threads of a process"),
  "data.prefetch_batches": (
    2,
    "batches made ahead: what bounds host memory",
  ),
  "loss.name": ("softmax", "cross-entropy: softmax or sigmoid"),
  "loss.label_smoothing": (0.0, "share of a label given to all classes"),
  "loss.mixup": (0.0, "p of Beta(p, p); 0: no mixup"),
  "optimizer.name": ("adamw", "or sgd"),
  "optimizer.learning_rate": (1e-3, "the highest of the schedule"),
  "optimizer.weight_decay": (
    0.0,
    "times the learning rate; on kernels alone",
  ),
  "optimizer.b1": (0.9, "Adam's"),
  "optimizer.b2": (0.999, "Adam's"),
  "optimizer.eps": (1e-8, "Adam's"),
  "optimizer.momentum": (0.9, "SGD's"),
  "optimizer.clip_norm": (1.0, "of the whole gradient; 0: no clipping"),
  "optimizer.ema_decay": (
    0.0,
    "evaluate an average of the weights; 0: no average",
  ),
  "optimizer.accumulate": (
    1,
    "micro-batches that an update's batch is cut into: the same update, made "
    "with less memory",
  ),
  "optimizer.sam_rho": (
    0.0,
    "radius of Sharpness-Aware Minimization; 0: without it",
  ),
  "optimizer.train": (
    "all",
    "or head, a linear probe: all else stays as it is",
  ),
  "optimizer.lr_factors": (
    (),
    "pairs (pattern, factor): the first pattern that matches the whole name of "
    'a parameter ("head/.*") multiplies its learning rate; 0 leaves it as it '
    "is",
  ),
  "schedule.warmup": ("10000 steps", "linear, from 0"),
  "schedule.decay": (
    "linear",
    "to 0 at the end: linear, cosine or constant",
  ),
  # What mixer sweep tries.
  "sweep.learning_rates": ((), "tried by mixer sweep"),
  "sweep.train_split": (
    "",
    "trained on to choose; the last run takes data.*_split",
  ),
  "sweep.eval_split": ("", "chosen by accuracy on it"),
  "steps_per_dispatch": (
    1,
    "updates that are sent to the devices together: for models so small that "
    "starting an update takes as long as making it",
  ),
  "log_every": ("50 steps", "between records of metrics; 0: none"),
  "eval_every": ("1 epochs", "beside the evaluation at the end; 0: none"),
  "checkpoint_every": (
    "1 epochs",
    "beside the checkpoint at the end; 0: none",
  ),
  "keep_checkpoints": (3, "the newest that stay"),
  "keep_every": (
    "",
    "those at multiples of this duration stay too; empty: none",
  ),
  "keep_best": (
    "",
    "and the best by this metric (eval/accuracy), which an evaluation saves "
    "and predict, evaluate and export take; empty: none",
  ),
  "report": (True, "write report.html at the end"),
  "sharding.zero1": (
    True,
    "split the optimizer's state and the average of the weights over all "
    "devices (ZeRO-1, arXiv 1910.02054)",
  ),
  "sharding.fsdp": (
    1,
    "devices that share one copy of the weights (FSDP); 1: each has its own",
  ),
  "sharding.min_size": (
    65_536,
    "arrays of fewer elements are whole on every device",
  ),
  "sharding.reduce_dtype": (
    "float32",
    "kernels' gradients are summed over devices so",
  ),
  "nonfinite": (
    "stop",
    "at a NaN or infinity: stop, or skip that update and go on",
  ),
  "nonfinite_limit": (10, "updates skipped in a row at most"),
  "hang_seconds": (
    1800,
    "a run that makes no progress for so long is ended; 0: never",
  ),
  "fewshot.name": ("", "data set; empty: no few-shot evaluation"),
  "fewshot.train_split": ("train", "labelled examples come from it"),
  "fewshot.eval_split": ("test", "accuracy is of it"),
  "fewshot.shots": ((1, 5, 10, 25), "labelled examples a class"),
  "fewshot.seeds": (3, "draws of them; their mean is reported"),
  "fewshot.l2": (1024.0, "weight of the ridge"),
}


def default() -> Config:
  """All keys there are, with their defaults."""
  config: Config = ml_collections.ConfigDict()
  for key, (value, _) in KEYS.items():
    *groups, name = key.split(".")
    place = config
    for group in groups:
      if group not in place:
        place[group] = ml_collections.ConfigDict()
      place = place[group]
    place[name] = value
  return config


# Keys that change neither the numbers nor their meaning: a resumed run may
# differ in them from its first start.
FREE_KEYS = (
  "data.data_dir",
  "data.threads",
  "data.prefetch_batches",
  "steps_per_dispatch",
  "log_every",
  "eval_every",
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


def shown(value: Any) -> str:
  """A value for a sentence: its `repr`, shortened."""
  try:
    text = repr(value)
  except ValueError:  # An int of thousands of digits.
    return f"a number of {value.bit_length():,} bits"
  return text if len(text) <= 100 else f"{text[:60]}... ({len(text):,} long)"


# What people call keys that have other names here.
_SYNONYMS = {
  "beta1": "optimizer.b1",
  "beta2": "optimizer.b2",
  "checkpoint": "init_from",
  "dataset": "data.name",
  "epochs": "total",
  "lr": "optimizer.learning_rate",
  "num_epochs": "total",
  "num_steps": "total",
  "patch_size": "model.variant",
  "precision": "model.dtype",
  "pretrained": "init_from",
  "resolution": "image_size",
  "size": "image_size",
  "steps": "total",
  "weights": "init_from",
}


def near(key: str) -> str:
  """The key that is most likely meant by one that isn't there; "" if none is.

  By its last name, an abbreviation ("lr"), a synonym or a part of the name,
  in its own group first; else by its letters.
  """
  known = list(KEYS)
  group, _, last = key.lower().replace("-", "_").rpartition(".")
  known.sort(key=lambda k: (k.rpartition(".")[0] != group, len(k)))

  def names(k: str) -> tuple[str, str]:
    name = k.rpartition(".")[2]
    return name, "".join(word[0] for word in name.split("_"))

  exact = [k for k in known if last in names(k)]
  parts = [
    k
    for k in known
    if min(len(last), len(names(k)[0])) > 3
    and (names(k)[0] in last or last in names(k)[0])
  ]
  alike = difflib.get_close_matches(key, known, n=1)
  synonym = [_SYNONYMS[last]] if last in _SYNONYMS else []
  found = [k for k in exact if names(k)[0] == last] or synonym
  return [*found, *exact, *alike, *parts, ""][0]


def override(key: str, value: Any) -> str:
  """`--config.KEY=VALUE`, quoted where a shell needs it."""
  return f"--config.{key}={shlex.quote(str(value))}"


def unknown(key: str) -> str:
  """A sentence on a key that isn't there."""
  inside = [k for k in KEYS if k.startswith(f"{key}.")]
  if inside:
    example = override(inside[0], KEYS[inside[0]][0])
    return f"{key} is a group of keys; set one of them, as in {example}."
  meant = f"did you mean {near(key)!r}? " if near(key) else ""
  return (
    f"the config has no key {shown(key)}; {meant}mixer/config.py lists them "
    "all."
  )
