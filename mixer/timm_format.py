"""Weights as timm (huggingface/pytorch-image-models) has them.

A .safetensors file under timm's names, and what is known of it: by its own
metadata if `mixer export` wrote it, else by timm's config.json beside it.
"""

import contextlib
import json
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from mixer import files, weights
from mixer.datasets import wordnet
from mixer.errors import UserError

SUFFIX, CONFIG, WEIGHTS = ".safetensors", "config.json", "model.safetensors"
_MODULES = {
  "LayerNorm_0": "norm1",
  "LayerNorm_1": "norm2",
  "token_mixing": "mlp_tokens",
  "channel_mixing": "mlp_channels",
  "Dense_0": "fc1",
  "Dense_1": "fc2",
  "pre_head_layer_norm": "norm",
  "stem": "stem.proj",
}
# Arguments of timm's MlpMixer that the weights or the size of images tell, or
# that act in training alone.
_ARGUMENTS = {
  *("num_classes", "img_size", "in_chans", "patch_size", "num_blocks"),
  *("embed_dim", "mlp_ratio", "global_pool"),
  *("drop_rate", "proj_drop_rate", "drop_path_rate"),
}
# Classes by what a tag such as goog_in21k_ft_in1k ends in, and their number.
_CLASSES = {
  ("in1k", 1_000): "imagenet1k",
  ("in21k", 11_221): "fall11_p",
  ("in21k", 21_843): "head",
}
# Of our own metadata; all values are strings there.
_TEXTS = ("gelu", "interpolation", "scores")
_JSON = "image_height image_width short_side class_ids class_names".split()
_HALF = [0.5, 0.5, 0.5]  # The mean and std that make [-1, 1] of [0, 1].


def name_of(name: str) -> str:
  """timm's name of a parameter: `stem.proj.weight` for `stem/kernel`."""
  *modules, leaf = name.replace("MixerBlock_", "blocks.").split("/")
  parts = [_MODULES.get(module, module) for module in modules]
  return ".".join([*parts, "bias" if leaf == "bias" else "weight"])


def load(file: pathlib.Path) -> dict[str, Any]:
  """The weights in a file, as `weights.load`, for images in [-1, 1]."""
  known = about(file)
  with _opened(file) as opened:
    arrays = {name: opened.get_tensor(name) for name in opened.keys()}
  count = len({k.split(".")[1] for k in arrays if k.startswith("blocks.")})
  names = weights.expected(weights.Shape(1, count, 1, 1, 1, 1, 1))
  ours, axes = {name_of(name): name for name in names}, {4: (2, 3, 1, 0)}
  flat: dict[str, Any] = {
    ours.get(name) or name: np.ascontiguousarray(
      np.transpose(x, axes.get(x.ndim)), np.float32
    )
    for name, x in arrays.items()
  }
  shape = weights.shape_of(flat, where := f"the weights in {file}")
  weights.check_finite(flat, where)
  if (told := known.get("num_classes", shape.num_classes)) != shape.num_classes:
    raise UserError(
      f"{file} has {shape.num_classes:,} outputs, but {CONFIG} beside it has "
      f"{told:,} classes: fetch both anew."
    )
  mean, std = (np.asarray(known.get(k, _HALF)) for k in ("mean", "std"))
  if [*mean, *std] != _HALF * 2:
    # With x in [-1, 1], timm's input (x / 2 + 0.5 - mean) / std is linear in x.
    kernel = flat["stem/kernel"].astype(np.float64)
    shift = np.einsum("yxic,i->c", kernel, (0.5 - mean) / std)
    scaled = kernel / (2 * std)[:, None]
    flat["stem/kernel"] = scaled.astype(np.float32)
    flat["stem/bias"] = (flat["stem/bias"] + shift).astype(np.float32)
  return weights.unflatten(flat)


def about(file: pathlib.Path) -> dict[str, Any]:
  """What is known of a file's model, as `trained.metadata` has it.

  Of a file that isn't ours also its `mean`, `std` and `num_classes`.
  """
  with _opened(file) as opened:
    own = opened.metadata() or {}
    if "mixer_version" in own:
      texts = {k: own[k] for k in _TEXTS if k in own}
      return texts | {k: json.loads(own[k]) for k in _JSON if k in own}
  place = file.with_name(CONFIG)
  if not place.exists():
    return {"gelu": "exact"}
  config = files.read_json(place, "timm's config of a model")
  try:
    found, refused = _of_config(config)
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(
      f"{place} is damaged, or no config of a timm model: {type(e).__name__} "
      f"of {e}. Fetch it anew."
    ) from e
  if refused:
    raise UserError(f"{place} is of a model that is not supported: {refused}.")
  return found


def _of_config(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
  """What a config.json of timm says, and what of it can't be honoured."""
  args, name = config.get("model_args") or {}, config["architecture"]
  fixed = {**config.get("pretrained_cfg", {}), **config}
  _, height, width = fixed["input_size"]
  if size := args.get("img_size"):
    height, width = (size, size) if isinstance(size, int) else size
  mode, share = fixed.get("crop_mode") or "center", fixed.get("crop_pct")
  share = share or 0.875  # As timm's default.
  way = fixed.get("interpolation") or "bicubic"
  other = sorted(args.keys() - _ARGUMENTS)
  cropped = mode == "center" and height == width and 0 < share <= 1
  rules = {
    f"architecture {name}": re.match("mixer_|mlp_mixer$", name),
    f"model_args {', '.join(other)}": not other,
    "another pooling than avg": args.get("global_pool", "avg") == "avg",
    f"crop_mode {mode}, crop_pct {share} for {height} x {width} px": cropped
    or (mode == "squash" and share == 1),
    f"interpolation {way}": way in ("bilinear", "bicubic"),
  }
  labels, texts = fixed.get("label_names"), fixed.get("label_descriptions")
  if isinstance(labels, dict):
    labels = [labels[k] for k in sorted(labels, key=int)]
  if not labels:
    tags = ["", *re.findall(r"in\d+k", f"{name}.{fixed.get('tag')}")]
    which = _CLASSES.get((tags[-1], fixed["num_classes"]))
    labels = wordnet.classes(which) if which else None
  found = {
    "image_height": height,
    "image_width": width,
    "short_side": 0 if mode == "squash" else math.floor(height / share),
    "interpolation": f"pillow_{way}",
    "gelu": config.get("gelu", "exact"),
    "class_ids": labels,
    "class_names": labels and texts and [texts.get(k, k) for k in labels],
    "num_classes": fixed["num_classes"],
    "mean": [float(x) for x in fixed["mean"]],
    "std": [float(x) for x in fixed["std"]],
  }
  return found, "; ".join(text for text, right in rules.items() if not right)


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[Any]:
  """Opens a file; whatever goes wrong while it is open is one sentence."""
  try:
    import safetensors
  except ImportError as e:
    raise UserError(
      f"{file} takes safetensors to be read: make setup-hub, or pip install "
      "huggingface_hub safetensors."
    ) from e
  try:
    files.open_regular(file).close()
    with safetensors.safe_open(file, "np") as opened:
      yield opened
  except (OSError, ValueError, safetensors.SafetensorError) as e:
    raise UserError(
      f"{file} is no .safetensors file, or it is damaged ({files.reason(e)}); "
      "fetch or write it anew."
    ) from e
