"""Weights for timm (huggingface/pytorch-image-models), and what it must know.

timm's MlpMixer computes the same but for its GELU, which is the exact one
unless it is told otherwise, and nothing in a file can tell it.
"""

import json
import math
from typing import Any

import numpy as np

from mixer import __version__, export, files, metadata, trained, weights
from mixer.errors import UserError, first_line

SUFFIX, PACKAGES = ".safetensors", ("safetensors",)
MEMBERS = ("config.json", "model.safetensors")
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
_NOTE = (
  "Keep act_layer: without it timm takes the exact GELU, and the model was "
  "trained with its tanh approximation."
)


def state_dict(params: weights.Params) -> dict[str, np.ndarray]:
  """timm's names and layout: `{"stem.proj.weight": [C, 3, P, P], ...}`.

  A linear layer's weight is `[O, I]` there, where a kernel is `[I, O]`.
  """
  found = {}
  for name, value in weights.flatten(params).items():
    *modules, leaf = name.split("/")
    parts = [
      _MODULES.get(m, m.replace("MixerBlock_", "blocks.")) for m in modules
    ]
    array = np.asarray(value)
    if leaf == "kernel":
      # Of a convolution from [P, P, 3, C], rows before columns in both.
      array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    last = "bias" if leaf == "bias" else "weight"
    found[".".join([*parts, last])] = np.ascontiguousarray(array)
  return found


def arguments(model: trained.Trained) -> dict[str, Any]:
  """Arguments of timm's MlpMixer, but for the GELU."""
  module, c = model.module, model.module.hidden_dim

  def ratio(width: int) -> float:
    """What timm multiplies and cuts off to get `width`."""
    exact = width / c
    return exact if int(exact * c) == width else (width + 0.5) / c

  return {
    "num_classes": module.num_classes,
    "img_size": list(model.image_size),
    "patch_size": module.patch_size,
    "num_blocks": module.num_blocks,
    "embed_dim": c,
    "mlp_ratio": [ratio(module.tokens_mlp_dim), ratio(module.channels_mlp_dim)],
  }


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
  crop = 1.0
  if model.short_side:
    # The share of the short side that is kept; timm cuts off size / share.
    side = max(model.image_size)
    crop = side / model.short_side
    if math.floor(side / crop) != model.short_side:
      crop = side / (model.short_side + 0.5)
  pretrained: dict[str, Any] = {
    "tag": "mixer",
    "custom_load": False,
    "input_size": [3, *model.image_size],
    "fixed_input_size": True,
    "interpolation": "bilinear",
    "crop_pct": crop,
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


def loading(model: trained.Trained, place: export.Place) -> str:
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
  file = str(place.path / MEMBERS[1]) if place.is_folder else path
  return (
    "import safetensors.torch\nimport timm\n\n"
    f"arguments = {arguments(model)}\n"
    "model = timm.models.mlp_mixer.MlpMixer(\n"
    "  **arguments, act_layer=timm.layers.GELUTanh\n"
    ").eval()\n"
    f"model.load_state_dict(safetensors.torch.load_file({file!r}))"
  )


def write(model: trained.Trained, place: export.Place) -> export.Written:
  """Writes the file or the folder; it is run by timm, if that is there."""
  export.refuse_variant(model, "timm's MlpMixer")
  safetensors, numpy_files = export.load("safetensors", "safetensors.numpy")
  file = place.part / MEMBERS[1] if place.is_folder else place.part
  strings = model.metadata.to_strings(
    format="pt", mixer_version=__version__, source=model.origin
  )
  with files.writing(place.path):
    try:
      numpy_files.save_file(state_dict(model.params), file, metadata=strings)
    except safetensors.SafetensorError as e:
      raise UserError(f"{place.path} can't be written: {first_line(e)}.") from e
    if place.is_folder:
      text = json.dumps(config(model), indent=2) + "\n"
      (place.part / MEMBERS[0]).write_text(text)
  lines = loading(model, place)
  try:
    torch, timm, torch_files = export.load("torch", "timm", "safetensors.torch")
  except export.MissingError as e:
    return export.Written(lines, (_NOTE,), str(e))
  with safetensors.safe_open(file, "numpy") as opened:
    found = metadata.parse(opened.metadata(), str(place.path))
  gelu = timm.layers.GELUTanh
  if place.is_folder and _architecture(model):
    made = timm.create_model(
      f"local-dir:{place.part}", pretrained=True, act_layer=gelu
    )
  else:
    made = timm.models.mlp_mixer.MlpMixer(**arguments(model), act_layer=gelu)
    made.load_state_dict(torch_files.load_file(file))
  made.eval()

  def run(batch: np.ndarray) -> export.Outputs:
    x = (batch.astype(np.float32) / np.float32(255) - np.float32(0.5)) * 2
    x = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    with torch.inference_mode():
      tokens = made.forward_features(x)
      features = made.forward_head(tokens, pre_logits=True).numpy()
      return {
        "features": features,
        "logits": made.forward_head(tokens).numpy(),
      }

  against = f"timm {timm.__version__}, torch {torch.__version__}"
  return export.Written(
    lines, (_NOTE,), "", against, bound=1e-4, run=run, metadata=found
  )
