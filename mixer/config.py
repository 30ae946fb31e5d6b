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
  choices: tuple[str, ...] = ()
  least: float = 0
  below: float = 0
  free: bool = False


def _choice(meaning: str, *choices: str, free: bool = False) -> Key:
  """The first choice is the default."""
  return Key(choices[0], meaning, choices, free=free)


def _number(
  default: float, least: float, below: float, meaning: str, free: bool = False
) -> Key:
  return Key(default, meaning, (), least, below, free)


_FLOAT = 3.4e38  # Beyond it float32 has only infinity.
_SEED = 2**32
_MANY = 10**9

# Durations are strings: "300 epochs", "10000 steps", "1281167 examples" or, of
# the whole run, "5%".
KEYS: dict[str, Key] = {
  "seed": _number(0, 0, _SEED, "seed of all random numbers"),
  "batch_size": _number(4096, 1, 10**7, "examples per update, on all devices"),
  "total": Key("300 epochs", "length of training"),
  "image_size": _number(224, 1, 10**4, "pixels: side, or height"),
  "image_width": _number(0, 0, 10**4, "pixels; 0: square images"),
  "init_from": Key(
    "", "initial weights, as of `mixer predict --checkpoint`; empty: random"
  ),
  "init_head": _choice("a new head, or the weights' own", "new", "keep"),
  "init_resize": _choice(
    "how weights of another resolution are fitted; empty: as suits the size",
    *("", "tiles", "interleaved", "resample"),
  ),
  "model.variant": Key("B/16", "S, B, L or H, and the patch size in pixels"),
  "model.num_blocks": _number(0, 0, 1000, "0: as in the variant"),
  "model.hidden_dim": _number(0, 0, 10**5, "C, channels; 0: as in the variant"),
  "model.tokens_mlp_dim": _number(0, 0, 10**5, "D_S; 0: as in the variant"),
  "model.channels_mlp_dim": _number(0, 0, 10**6, "D_C; 0: as in the variant"),
  "model.dropout": _number(0.0, 0, 1, "dropout rate inside the MLPs"),
  "model.stochastic_depth": _number(0.0, 0, 1, "rate at the last block"),
  "model.head_bias": _number(0.0, -1000, 1000, "initial bias of the head"),
  "model.dtype": _choice("of activations and matmuls", "bfloat16", "float32"),
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
  "model.token_mixing": _choice(
    "one MLP, or one a channel", "shared", "untied"
  ),
  "model.token_groups": _number(1, 1, 10**5, "channels that a token MLP sees"),
  "model.group_projection": Key(False, "group learned views of all channels"),
  "model.pyramid_blocks": Key((), "blocks, from 0, that reduce the tokens"),
  "model.pyramid_tokens": Key((), "number of tokens after each of those"),
  "data.name": Key("imagenet21k", "a prepared set, or module:function"),
  "data.data_dir": Key(
    "", "data sets; empty: ~/tensorflow_datasets", free=True
  ),
  "data.train_split": Key("train", "TFDS split expression, as train[:98%]"),
  "data.eval_split": Key("validation", "likewise; auto: test or validation"),
  "data.examples_per_class": _number(0, 0, _MANY, "to train on; 0: all"),
  "data.subset_seed": _number(0, 0, _SEED, "seed of their selection"),
  "data.crop": _choice("of training; resize: none", "inception", "resize"),
  "data.crop_area_min": _number(0.05, 0, 1, "smallest share of the area"),
  "data.flip": Key(True, "flip every second image left to right"),
  "data.randaugment_layers": _number(0, 0, 100, "operations an image; 0: none"),
  "data.randaugment_magnitude": _number(10, 0, 31, "their strength"),
  # Section 3.4 of the paper.
  "data.permute": _choice(
    "a fixed permutation of all images; empty: none", "", "patches", "pixels"
  ),
  "data.permute_seed": _number(0, 0, _SEED, "seed of the permutation"),
  "data.affine_degrees": _number(0.0, 0, 181, "random rotation, up to +- this"),
  "data.affine_scale": _number(0.0, 0, 1, "random scale, up to 1 +- this"),
  "data.affine_translate": _number(0.0, 0, 1, "random shift, share of a side"),
  "data.eval_short_side": _number(256, 0, 10**5, "of resizing; 0: no crop"),
  "data.threads": _number(16, 1, 1000, "decoding threads", free=True),
  "data.prefetch_batches": _number(2, 1, 1000, "batches made ahead", free=True),
  "loss.name": _choice("cross-entropy", "softmax", "sigmoid"),
  "loss.label_smoothing": _number(0.0, 0, 1, "share given to all classes"),
  "loss.mixup": _number(0.0, 0, 1000, "p of Beta(p, p); 0: no mixup"),
  "optimizer.name": Key("adamw", "or sgd, or any of optax and optax.contrib"),
  "optimizer.args": Key({}, "more of its arguments, as \"{'nesterov': True}\""),
  "optimizer.learning_rate": _number(1e-3, 0, _FLOAT, "the highest"),
  "optimizer.weight_decay": _number(0.0, 0, _FLOAT, "times the rate; kernels"),
  "optimizer.b1": _number(0.9, 0, 1, "Adam's"),
  "optimizer.b2": _number(0.999, 0, 1, "Adam's"),
  "optimizer.eps": _number(1e-8, 0, _FLOAT, "Adam's"),
  "optimizer.momentum": _number(0.9, 0, 1, "SGD's"),
  "optimizer.clip_norm": _number(1.0, 0, _FLOAT, "of the gradient; 0: any"),
  "optimizer.ema_decay": _number(0.0, 0, 1, "of averaged weights; 0: none"),
  "optimizer.accumulate": _number(1, 1, 10**7, "micro-batches per update"),
  "optimizer.sam_rho": _number(0.0, 0, _FLOAT, "radius of SAM; 0: without it"),
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
  "steps_per_dispatch": _number(1, 1, 10**4, "updates sent at once", True),
  "log_every": Key("50 steps", "interval of metrics; 0: never", free=True),
  "eval_every": Key("1 epochs", "of evaluations; 0: at the end", free=True),
  "checkpoint_every": Key("1 epochs", "likewise of checkpoints", free=True),
  "keep_checkpoints": _number(3, 1, _MANY, "newest checkpoints to keep", True),
  "keep_every": Key("", "keep those at its multiples as well", free=True),
  "keep_best": _choice(
    "save and keep the best by this metric as well; commands then take it",
    *("", "eval/accuracy", "eval/accuracy_top5", "eval/loss"),
    free=True,
  ),
  "report": Key(True, "write report.html at the end", free=True),
  "sharding.zero1": Key(True, "split optimizer state (ZeRO-1)", free=True),
  "sharding.fsdp": _number(1, 1, 10**6, "devices to a copy of weights", True),
  "sharding.min_size": _number(65_536, 1, 10**18, "elements to split", True),
  "sharding.reduce_dtype": _choice("of gradients", "float32", "bfloat16"),
  "nonfinite": _choice("at a NaN or infinity", "stop", "skip", free=True),
  "nonfinite_limit": _number(10, 1, _MANY, "most skipped in a row", True),
  "hang_seconds": _number(1800, 0, _MANY, "end a hanging run; 0: never", True),
  "fewshot.name": Key("", "data set; empty: no few-shot evaluation"),
  "fewshot.train_split": Key("train", "labelled examples are from it"),
  "fewshot.eval_split": Key("test", "accuracy is on it"),
  "fewshot.shots": Key((1, 5, 10, 25), "labelled examples per class"),
  "fewshot.seeds": _number(3, 1, 1000, "draws of them, averaged"),
  "fewshot.l2": _number(1024.0, 0, _FLOAT, "weight of the ridge"),
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
  inside = [k for k in KEYS if k.startswith(f"{key}.")]
  if inside:
    example = override(inside[0], KEYS[inside[0]].default)
    return f"{key} is a group of keys; set one of them, as in {example}."
  meant = f"did you mean {near(key)!r}? " if near(key) else ""
  return (
    f"the config has no key {shown(key)}; {meant}mixer/config.py lists them "
    "all."
  )


# What people call keys that have other names here.
_SYNONYMS = {
  "bs": "batch_size",
  "dataset": "data.name",
  "epochs": "total",
  "lr": "optimizer.learning_rate",
  "patch_size": "model.variant",
  "pretrained": "init_from",
  "resolution": "image_size",
  "size": "image_size",
  "steps": "total",
  "wd": "optimizer.weight_decay",
}


def near(key: str) -> str:
  """The existing key that another name most likely means; "" if none."""
  key = key.lower().replace("-", "_")
  names = {name.rpartition(".")[2]: name for name in reversed(KEYS)}
  names |= {name: name for name in KEYS} | _SYNONYMS
  for text in (key.rpartition(".")[2], key):
    found = difflib.get_close_matches(text, names, 1)
    if found:
      return names[found[0]]
  return ""
