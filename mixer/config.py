"""The config: every key with its default, its range and its meaning.

A recipe in `configs/` starts from `default()` and sets what it changes; the
command line overrides single keys (`--config.batch_size=64`). `KEYS` is the
one place where a key is defined: its help, its check, and whether a resumed run
may change it come from there. `mixer.validation` refuses what cannot work.
"""

import dataclasses
import difflib
import json
import shlex
from collections.abc import Mapping
from typing import Any, TypeAlias

import ml_collections

# ml_collections.ConfigDict; what its attributes hold defies static types.
Config: TypeAlias = Any
_GROUPS = (Mapping, ml_collections.ConfigDict)

# The value of `init_from` in a recipe that wants weights to be named.
UNNAMED = "?"


@dataclasses.dataclass(frozen=True)
class Key:
  """A key: numbers are in [least, below), resumed runs may change free ones."""

  default: Any
  meaning: str
  least: float = 0
  below: float = 0
  free: bool = False
  choices: tuple[str, ...] = ()


def _choice(meaning: str, *choices: str, free: bool = False) -> Key:
  """The first choice is the default."""
  return Key(choices[0], meaning, 0, 0, free, choices)


_FLOAT = 3.4e38  # Beyond it float32 has only infinity.
_SEED = 2**32
_MANY = 10**9

# Durations are strings: "300 epochs", "10000 steps", "1281167 examples" or, of
# the whole run, "5%".
KEYS: dict[str, Key] = {
  "seed": Key(0, "seed of all random numbers", 0, _SEED),
  "batch_size": Key(4096, "examples per update, on all devices", 1, 10**7),
  "total": Key("300 epochs", "length of training"),
  "image_size": Key(224, "pixels: side, or height", 1, 10**4),
  "image_width": Key(0, "pixels; 0: square images", 0, 10**4),
  "init_from": Key("", "initial weights, as --checkpoint; empty: random"),
  "init_head": _choice("a new head, or the weights' own", "new", "keep"),
  "init_resize": _choice(
    "how weights of another resolution are fitted; empty: as suits the size",
    *("", "tiles", "interleaved", "resample"),
  ),
  "model.variant": Key("B/16", "S, B, L or H, and the patch size in pixels"),
  "model.num_blocks": Key(0, "0: as in the variant", 0, 1000),
  "model.hidden_dim": Key(0, "C, channels; 0: as in the variant", 0, 10**5),
  "model.tokens_mlp_dim": Key(0, "D_S; 0: as in the variant", 0, 10**5),
  "model.channels_mlp_dim": Key(0, "D_C; 0: as in the variant", 0, 10**6),
  "model.dropout": Key(0.0, "dropout rate inside the MLPs", 0, 1),
  "model.stochastic_depth": Key(0.0, "rate at the last block", 0, 1),
  "model.head_bias": Key(0.0, "initial bias of the head", -1000, 1000),
  "model.dtype": _choice("of activations and matmuls", "bfloat16", "float32"),
  "model.gelu": _choice("tanh form, as released, or exact", "tanh", "exact"),
  "model.layout": _choice(
    "of activations, [S, B, C] or [B, S, C]; empty: as suits the devices",
    *("", "token_major", "batch_major"),
    free=True,
  ),
  "model.remat": _choice(
    "recompute to save memory: none, all but pre-activations, whole blocks",
    *("none", "pre_activations", "block"),
    free=True,
  ),
  # Appendix A.1 of the paper: docs/experiments.md.
  "model.token_mixing": _choice("for all channels", "shared", "untied"),
  "model.token_groups": Key(1, "channels that a token MLP sees", 1, 10**5),
  "model.group_projection": Key(False, "group learned views of all channels"),
  "model.pyramid_blocks": Key((), "blocks, from 0, that reduce the tokens"),
  "model.pyramid_tokens": Key((), "number of tokens after each of those"),
  "data.name": Key("imagenet21k", "a prepared set, or module:function"),
  "data.data_dir": Key("", "empty: ~/tensorflow_datasets", free=True),
  "data.train_split": Key("train", "TFDS split expression, as train[:98%]"),
  "data.eval_split": Key("validation", "likewise; auto: test or validation"),
  "data.examples_per_class": Key(0, "to train on; 0: all", 0, _MANY),
  "data.subset_seed": Key(0, "seed of their selection", 0, _SEED),
  "data.crop": _choice(
    "of training; resize: none; pad: shifted by up to an eighth of a side",
    *("inception", "resize", "pad"),
  ),
  "data.crop_area_min": Key(0.05, "smallest share of the area", 0, 1),
  "data.flip": Key(True, "flip every second image left to right"),
  "data.randaugment_layers": Key(0, "operations an image; 0: none", 0, 100),
  "data.randaugment_magnitude": Key(10, "their strength", 0, 31),
  "data.randaugment_scaled": Key(False, "its pixels, of 224, by the size"),
  # Section 3.4 of the paper.
  "data.permute": _choice(
    "a fixed permutation of all images; empty: none", "", "patches", "pixels"
  ),
  "data.permute_seed": Key(0, "seed of the permutation", 0, _SEED),
  "data.affine_degrees": Key(0.0, "random rotation, up to +- this", 0, 181),
  "data.affine_scale": Key(0.0, "random scale, up to 1 +- this", 0, 1),
  "data.affine_translate": Key(0.0, "random shift, share of a side", 0, 1),
  "data.eval_short_side": Key(256, "resize to it; 0: no crop", 0, 10**5),
  "data.threads": Key(16, "decoding threads", 1, 1000, True),
  "data.prefetch_batches": Key(2, "batches made ahead", 1, 1000, True),
  "loss.name": _choice("cross-entropy", "softmax", "sigmoid"),
  "loss.label_smoothing": Key(0.0, "share given to all classes", 0, 1),
  "loss.mixup": Key(0.0, "p of Beta(p, p); 0: no mixup", 0, 1000),
  "loss.cutmix": Key(0.0, "likewise; both: one or the other", 0, 1000),
  "loss.class_weights": _choice(
    "of an example's loss; balanced: the rarer its class, the more",
    *("", "balanced"),
  ),
  "optimizer.name": Key("adamw", "or sgd, or any of optax and optax.contrib"),
  "optimizer.args": Key({}, "more of its arguments, as \"{'nesterov': True}\""),
  "optimizer.learning_rate": Key(1e-3, "the highest", 0, _FLOAT),
  "optimizer.weight_decay": Key(0.0, "times the rate; kernels", 0, _FLOAT),
  "optimizer.b1": Key(0.9, "Adam's", 0, 1),
  "optimizer.b2": Key(0.999, "Adam's", 0, 1),
  "optimizer.eps": Key(1e-8, "Adam's", 0, _FLOAT),
  "optimizer.momentum": Key(0.9, "SGD's", 0, 1),
  "optimizer.clip_norm": Key(1.0, "of the gradient; 0: any", 0, _FLOAT),
  "optimizer.ema_decay": Key(0.0, "of averaged weights; 0: none", 0, 1),
  "optimizer.accumulate": Key(1, "micro-batches per update", 1, 10**7),
  "optimizer.sam_rho": Key(0.0, "radius of SAM; 0: without it", 0, _FLOAT),
  "optimizer.train": _choice("all weights, or a linear probe", "all", "head"),
  "optimizer.lr_factors": Key(
    (),
    "pairs (pattern, factor): the first pattern that matches a parameter's "
    "whole name multiplies its learning rate; 0 freezes it",
  ),
  "schedule.warmup": Key("10000 steps", "linear, from 0"),
  "schedule.decay": _choice("to 0 at the end", "linear", "cosine", "constant"),
  "sweep.learning_rates": Key((), "those that `mixer sweep` tries", free=True),
  "sweep.train_split": Key("", "what their runs train on", free=True),
  "sweep.eval_split": Key("", "their accuracy on it decides", free=True),
  "steps_per_dispatch": Key(1, "updates sent at once", 1, 10**4, True),
  "log_every": Key("50 steps", "interval of metrics; 0: never", free=True),
  "eval_every": Key("1 epochs", "of evaluations; 0: at the end", free=True),
  "checkpoint_every": Key("1 epochs", "likewise of checkpoints", free=True),
  "keep_checkpoints": Key(3, "newest checkpoints to keep", 1, _MANY, True),
  "keep_every": Key("", "keep those at its multiples as well", free=True),
  "keep_best": _choice(
    "save and keep the best by this metric as well; commands then take it",
    *("", "eval/accuracy", "eval/balanced_accuracy", "eval/macro_f1"),
    *("eval/accuracy_top5", "eval/loss"),
    free=True,
  ),
  "log.wandb": Key("", "project on Weights & Biases; empty: none", free=True),
  "report": Key(True, "write report.html at the end", free=True),
  "sharding.zero1": Key(True, "split optimizer state (ZeRO-1)", free=True),
  "sharding.fsdp": Key(1, "devices to a copy of weights", 1, 10**6, True),
  "sharding.min_size": Key(65_536, "smallest to split", 1, 10**18, True),
  "sharding.reduce_dtype": _choice("of gradients", "float32", "bfloat16"),
  "nonfinite": _choice("at a NaN or infinity", "stop", "skip", free=True),
  "nonfinite_limit": Key(10, "most skipped in a row", 1, _MANY, True),
  "hang_seconds": Key(1800, "end a hanging run; 0: never", 0, _MANY, True),
  "fewshot.name": Key("", "data set; empty: no few-shot evaluation"),
  "fewshot.train_split": Key("train", "labelled examples are from it"),
  "fewshot.eval_split": Key("test", "accuracy is on it"),
  "fewshot.shots": Key((1, 5, 10, 25), "labelled examples per class"),
  "fewshot.seeds": Key(3, "draws of them, averaged", 1, 1000),
  "fewshot.l2": Key(1024.0, "weight of the ridge", 0, _FLOAT),
}
# Those that a resumed run may change.
FREE_KEYS = tuple(name for name, key in KEYS.items() if key.free)


def default() -> Config:
  """A new config of all keys with their defaults."""
  groups = {name.partition(".")[0]: {} for name in KEYS if "." in name}
  return changed(groups, {name: key.default for name, key in KEYS.items()})


def changed(config: Config, values: Mapping[str, Any]) -> Config:
  """A copy with other values, named as by `flatten`."""
  copy: Config = ml_collections.ConfigDict(config)
  copy = copy.copy_and_resolve_references()
  copy.update_from_flattened_dict(values)
  return copy


def image_size(config: Config) -> tuple[int, int]:
  """(height, width) of the images, in pixels."""
  return config.image_size, config.image_width or config.image_size


def flatten(config: Config, prefix: str = "") -> dict[str, Any]:
  """`{"model.variant": "B/16", ...}` from a nested config; lists for tuples."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    name, group = prefix + key, isinstance(value, _GROUPS)
    if group and name not in KEYS:
      flat |= flatten(value, f"{name}.")
    else:
      flat[name] = dict(value) if group else _convert(value, list)
  return flat


def differences(old: Config, new: Config) -> dict[str, str]:
  """For each key whose value differs, a line `key: old -> new`."""
  before, after, absent = flatten(old), flatten(new), "(absent)"
  return {
    key: f"{key}: {before.get(key, absent)!r} -> {after.get(key, absent)!r}"
    for key in sorted({*before, *after})
    if before.get(key, absent) != after.get(key, absent)
  }


def to_json(config: Config) -> dict[str, Any]:
  """The config as plain JSON values."""
  return json.loads(json.dumps(config.to_dict()))


def from_json(stored: Mapping[str, Any], resolved: Mapping[str, Any]) -> Config:
  """The config in a config.json; keys added since have their defaults."""
  flat = flatten(stored)
  # Of weights that the run fitted to its resolution.
  if resolved.get("tokens_mlp_dim"):
    flat["model.tokens_mlp_dim"] = resolved["tokens_mlp_dim"]
  known = {k: _convert(flat[k], tuple) for k in KEYS if k in flat}
  return changed(default(), known)


def _convert(value: Any, new: type) -> Any:
  """Tuples for lists, or lists for tuples as in JSON, at any depth."""
  if not isinstance(value, tuple | list):
    return value
  return new(_convert(item, new) for item in value)


def shown(value: Any) -> str:
  """A value for a message: its `repr`, shortened."""
  text = repr(value)
  return text if len(text) <= 100 else f"{text[:60]}..."


def override(key: str, value: Any) -> str:
  """`--config.KEY=VALUE`, quoted where a shell needs it."""
  text = str(value).replace("'", '"')
  return f"--config.{key}={shlex.quote(text)}"


def unknown(key: str) -> str:
  """A sentence on a key that doesn't exist."""
  meant = f"did you mean {near(key)!r}? " if near(key) else ""
  return f"the config has no key {shown(key)}; {meant}mixer/config.py has all."


def near(key: str) -> str:
  """The existing key that another name most likely means; "" if none."""
  key = key.lower().replace("-", "_")
  names = {name.rpartition(".")[2]: name for name in reversed(KEYS)}
  names |= {"lr": "optimizer.learning_rate", "epochs": "total"}
  names |= {name: name for name in KEYS}
  for text in (key.rpartition(".")[2], key):
    for found in difflib.get_close_matches(text, names, 1):
      return names[found]
  return ""
