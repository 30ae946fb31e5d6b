"""Weights for timm (huggingface/pytorch-image-models), and what it must know.

timm's MlpMixer computes the same but for its GELU, which is the exact one
unless it is told otherwise, and nothing in a file can tell it.
"""

import json
import math
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy

from mixer import trained, weights

SUFFIX, BOUND = ".safetensors", 1e-4
MEMBERS = ("config.json", "model.safetensors")
# (P, blocks, C) of those that timm makes by name, all for 224 px by default.
_ARCHITECTURES = {
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


def name_of(name: str) -> str:
  """timm's name of a parameter: `stem.proj.weight` for `stem/kernel`."""
  *modules, leaf = name.replace("MixerBlock_", "blocks.").split("/")
  parts = [_MODULES.get(module, module) for module in modules]
  return ".".join([*parts, "bias" if leaf == "bias" else "weight"])


def state_dict(params: weights.Params) -> dict[str, np.ndarray]:
  """timm's names and layout: `{"stem.proj.weight": [C, 3, P, P], ...}`.

  A linear layer's weight is `[O, I]` there, where a kernel is `[I, O]`; of a
  convolution rows come before columns in both.
  """
  axes = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
  return {
    name_of(name): np.ascontiguousarray(np.transpose(x, axes[np.ndim(x)]))
    for name, x in weights.flatten(params).items()
  }


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


def config(model: trained.Trained) -> dict[str, Any]:
  """`config.json` as timm reads it from a folder.

  Of a size that timm has no name for, the architecture is one that it refuses
  to make by name, and all arguments are there for who makes it by class.
  """
  args, module = arguments(model), model.module
  key = module.patch_size, module.num_blocks, module.hidden_dim
  architecture = _ARCHITECTURES.get(key, "")
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
  if ids := model.class_ids:
    pairs = zip(ids, model.class_names or ids, strict=True)
    labels = {"label_names": [*ids], "label_descriptions": dict(pairs)}
    pretrained |= labels
  return {
    "architecture": architecture or "mlp_mixer",
    "num_classes": model.num_classes,
    "num_features": module.hidden_dim,
    "global_pool": "avg",
    "model_args": args,
    "pretrained_cfg": pretrained,
  }


def write(model: trained.Trained, target: pathlib.Path) -> None:
  """Writes the file, or the files of a folder."""
  strings = {"format": "pt", **trained.strings(trained.metadata(model))}
  file = target / MEMBERS[1] if target.is_dir() else target
  # By itself safetensors has other errors of a disk that is full.
  found = safetensors.numpy.save(state_dict(model.params), strings)
  file.write_bytes(found)
  if target.is_dir():
    text = json.dumps(config(model), indent=2) + "\n"
    (target / MEMBERS[0]).write_text(text)


def loading(model: trained.Trained, path: pathlib.Path) -> str:
  """Lines of Python that load and run it, with the GELU it was trained with."""
  file = str(path / MEMBERS[1] if path.is_dir() else path)
  return f"""
    import safetensors.torch
    import timm
    import torch

    arguments = {arguments(model)}
    model = timm.models.mlp_mixer.MlpMixer(
      **arguments, act_layer=timm.layers.GELUTanh  # Not timm's own GELU.
    )
    model.load_state_dict(safetensors.torch.load_file({file!r}))
    model.eval()

    def run(images):
      x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
      with torch.inference_mode():
        x = model.forward_head(model.forward_features(x), pre_logits=True)
        return {{"features": x.numpy(), "logits": model.head(x).numpy()}}"""
