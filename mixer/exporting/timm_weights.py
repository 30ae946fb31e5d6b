"""Weights for timm (huggingface/pytorch-image-models), and what it must know.

timm's MlpMixer computes the same but for its GELU, which is the exact one
unless it is told otherwise, and nothing in a file can tell it.
"""

import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer import __version__, trained, weights
from mixer import metadata as metadata_lib
from mixer.errors import UserError, first_line
from mixer.exporting import npz_file, packages, placing, verification
from mixer.files import writing

MEMBERS = ("config.json", "model.safetensors")
_CONFIG, _WEIGHTS = MEMBERS
# Of the largest logit, in float32.
BOUND = 1e-4
# (P, blocks, C) of those that timm makes by name, all for 224 px by default.
_NAMES = {
  (32, 8, 512): "mixer_s32_224",
  (16, 8, 512): "mixer_s16_224",
  (32, 12, 768): "mixer_b32_224",
  (16, 12, 768): "mixer_b16_224",
  (32, 24, 1024): "mixer_l32_224",
  (16, 24, 1024): "mixer_l16_224",
}
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


def state_dict(params: weights.Params) -> dict[str, np.ndarray]:
  """timm's names and layout: `{"stem.proj.weight": [C, 3, P, P], ...}`.

  A linear layer's weight is `[O, I]` there, where a kernel is `[I, O]`.

  Args:
    params: nested dict of float32 arrays, of a plain Mixer.
  """
  flat = weights.flatten(params)
  return {_name(k): _layout(k, np.asarray(v)) for k, v in flat.items()}


def _name(name: str) -> str:
  *modules, leaf = name.split("/")
  parts = [
    re.sub(r"^MixerBlock_(\d+)$", r"blocks.\1", _MODULES.get(m, m))
    for m in modules
  ]
  return ".".join([*parts, "bias" if leaf == "bias" else "weight"])


def _layout(name: str, value: np.ndarray) -> np.ndarray:
  if name.endswith("kernel"):
    # Of a convolution from [P, P, 3, C], rows before columns in both.
    value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
  return np.ascontiguousarray(value)


def arguments(model: trained.Trained) -> dict[str, Any]:
  """Arguments of timm's MlpMixer, but for the GELU.

  Args:
    model: a plain Mixer.
  """
  module = model.module
  c = module.hidden_dim
  return {
    "num_classes": module.num_classes,
    "img_size": list(model.image_size),
    "patch_size": module.patch_size,
    "num_blocks": module.num_blocks,
    "embed_dim": c,
    "mlp_ratio": [
      _ratio(module.tokens_mlp_dim, c),
      _ratio(module.channels_mlp_dim, c),
    ],
  }


def _ratio(width: int, channels: int) -> float:
  """What timm multiplies and cuts off to get `width`."""
  ratio = width / channels
  return ratio if int(ratio * channels) == width else (width + 0.5) / channels


def _architecture(model: trained.Trained) -> str:
  module = model.module
  key = module.patch_size, module.num_blocks, module.hidden_dim
  return _NAMES.get(key, "")


def config(model: trained.Trained) -> dict[str, Any]:
  """`config.json` as timm reads it from a folder.

  Of a size that timm has no name for, the architecture is one that it refuses
  to make by name, and all arguments are there for who makes it by class.
  """
  args = arguments(model)
  architecture = _architecture(model)
  if architecture:
    args = {k: args[k] for k in ("img_size", "mlp_ratio")}
  pretrained: dict[str, Any] = {
    "tag": "mixer",
    "custom_load": False,
    "input_size": [3, *model.image_size],
    "fixed_input_size": True,
    "interpolation": "bilinear",
    "crop_pct": _crop(model),
    "crop_mode": "center" if model.short_side else "squash",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "num_classes": model.num_classes,
    "pool_size": None,
    "first_conv": "stem.proj",
    "classifier": "head",
  }
  if model.class_ids:
    pretrained["label_names"] = list(model.class_ids)
    names = model.class_names or model.class_ids
    pairs = zip(model.class_ids, names, strict=True)
    pretrained["label_descriptions"] = dict(pairs)
  return {
    "architecture": architecture or "mlp_mixer",
    "num_classes": model.num_classes,
    "num_features": model.module.hidden_dim,
    "global_pool": "avg",
    "model_args": args,
    "pretrained_cfg": pretrained,
  }


def _crop(model: trained.Trained) -> float:
  """The share of the short side that is kept; timm cuts off size / share."""
  side = max(model.image_size)
  if not model.short_side:
    return 1.0
  share = side / model.short_side
  exact = math.floor(side / share) == model.short_side
  return share if exact else side / (model.short_side + 0.5)


def loading(model: trained.Trained, place: placing.Place) -> str:
  """Lines of Python that make the model, with the right GELU."""
  path = str(place.path)
  if place.is_folder and _architecture(model):
    return (
      "import timm\n\n"
      "model = timm.create_model(\n"
      f"  {'local-dir:' + path!r},\n"
      "  pretrained=True,\n"
      "  act_layer=timm.layers.GELUTanh,\n"
      ").eval()"
    )
  file, args, needs = path, repr(arguments(model)), ""
  if place.is_folder:
    file = str(place.path / _WEIGHTS)
    args = f'json.load(open({str(place.path / _CONFIG)!r}))["model_args"]'
    needs = "import json\n\n"
  return (
    f"{needs}import safetensors.torch\nimport timm\n\n"
    f"arguments = {args}\n"
    "model = timm.models.mlp_mixer.MlpMixer(\n"
    "  **arguments, act_layer=timm.layers.GELUTanh\n"
    ").eval()\n"
    f"model.load_state_dict(safetensors.torch.load_file({file!r}))"
  )


def export(
  model: trained.Trained,
  place: placing.Place,
  images: Sequence[Any],
) -> verification.Outcome:
  """Writes the file or the folder; runs it in timm, if that is there.

  Raises:
    UserError: timm has no such model, or the disk refuses.
  """
  npz_file.refuse(model, "timm's MlpMixer")
  safetensors, numpy_files = packages.load("safetensors", "safetensors.numpy")
  file = place.part / _WEIGHTS if place.is_folder else place.part
  with writing(place.path):
    try:
      said = model.metadata.to_strings(
        format="pt", mixer_version=__version__, source=model.origin
      )
      numpy_files.save_file(state_dict(model.params), file, metadata=said)
    except safetensors.SafetensorError as e:
      raise UserError(f"{place.path} can't be written: {first_line(e)}.") from e
    if place.is_folder:
      text = json.dumps(config(model), indent=2) + "\n"
      (place.part / _CONFIG).write_text(text)
  lines = loading(model, place)
  try:
    torch, timm, _ = packages.load("torch", "timm", "safetensors.torch")
  except packages.MissingError as e:
    return verification.Outcome(None, str(e), lines, _NOTES)
  with safetensors.safe_open(file, "numpy") as opened:
    found = metadata_lib.parse(opened.metadata(), str(place.path))
  metadata_lib.check(found, model.metadata, str(place.path))
  ours = verification.outputs(
    model, verification.batches(images, model), "float32"
  )
  batches = verification.batches(images, found)
  theirs = _run(model, place, file, batches, timm.layers.GELUTanh)
  exact = _run(model, place, file, batches, torch.nn.GELU)
  against = f"timm {timm.__version__}, torch {torch.__version__}"
  off = verification.compare(ours, exact, "", BOUND).differences[-1]
  return verification.Outcome(
    verification.compare(ours, theirs, against, BOUND),
    "",
    lines,
    (
      f"{_NOTES[0]} Here {off.name} would be off by {off.relative:.1e} "
      "(relative).",
      *verification.bfloat16_note(model, batches, ours),
    ),
  )


_NOTES = (
  "Keep act_layer: without it timm takes the exact GELU, and the model was "
  "trained with its tanh approximation.",
)


def _run(
  model: trained.Trained,
  place: placing.Place,
  file: pathlib.Path,
  batches: Sequence[np.ndarray],
  gelu: Any,
) -> verification.Outputs:
  """Loads it as `loading` says, and scales as its configuration does."""
  torch, timm, files = packages.load("torch", "timm", "safetensors.torch")
  if place.is_folder and _architecture(model):
    made = timm.create_model(
      f"local-dir:{place.part}", pretrained=True, act_layer=gelu
    )
  else:
    made = timm.models.mlp_mixer.MlpMixer(**arguments(model), act_layer=gelu)
    made.load_state_dict(files.load_file(file))
  made.eval()
  mean, std = np.float32(0.5), np.float32(0.5)
  features, logits = [], []
  with torch.inference_mode():
    for batch in batches:
      x = (batch.astype(np.float32) / np.float32(255) - mean) / std
      x = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
      tokens = made.forward_features(x)
      features.append(made.forward_head(tokens, pre_logits=True).numpy())
      logits.append(made.forward_head(tokens).numpy())
  return verification.Outputs(
    np.concatenate(features),
    np.concatenate(logits) if model.num_classes else None,
  )
