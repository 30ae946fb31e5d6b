"""Weights for timm (huggingface/pytorch-image-models) and the hub.

timm's MlpMixer computes the same but for its GELU, which is the exact one
unless it is told otherwise, and nothing in a file can tell it: our own reading
heeds `gelu` in config.json.
"""

import math
import pathlib
import textwrap
from typing import Any

import numpy as np
import safetensors.numpy

from mixer import (
  checkpoints,
  errors,
  files,
  metrics,
  timm_format,
  trained,
  weights,
)
from mixer import config as config_lib
from mixer.timm_format import CONFIG, SUFFIX, WEIGHTS

BOUND, CARD = 1e-4, "README.md"
MEMBERS = (CONFIG, CARD, WEIGHTS)
# (P, blocks, C) of those that timm makes by name, all for 224 px by default.
_ARCHITECTURES = {
  (32, 8, 512): "mixer_s32_224",
  (16, 8, 512): "mixer_s16_224",
  (32, 12, 768): "mixer_b32_224",
  (16, 12, 768): "mixer_b16_224",
  (32, 24, 1024): "mixer_l32_224",
  (16, 24, 1024): "mixer_l16_224",
}


def state_dict(params: weights.Params) -> dict[str, np.ndarray]:
  """timm's names and layout: `{"stem.proj.weight": [C, 3, P, P], ...}`.

  A linear layer's weight is `[O, I]` there, where a kernel is `[I, O]`; of a
  convolution rows come before columns in both.
  """
  axes = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
  return {
    timm_format.name_of(name): np.ascontiguousarray(
      np.transpose(x, axes[np.ndim(x)])
    )
    for name, x in weights.flatten(params).items()
  }


def _architecture(model: trained.Trained) -> str:
  """timm's name of a model; "" where it has none."""
  module = model.module
  key = module.patch_size, module.num_blocks, module.hidden_dim
  return _ARCHITECTURES.get(key, "")


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
  args, architecture = arguments(model), _architecture(model)
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
    "interpolation": model.interpolation[len("pillow_") :] or "bilinear",
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
    "num_features": model.module.hidden_dim,
    "gelu": model.module.gelu,
    "global_pool": "avg",
    "model_args": args,
    "pretrained_cfg": pretrained,
  }


def card(model: trained.Trained) -> str:
  """README.md of a repository on the hub: its model card."""
  about, facts = trained.metadata(model), [f"The weights of {model.origin}."]
  if model.config is not None:
    workdir, step = checkpoints.locate(model.checkpoint)
    found = {
      k: v
      for record in metrics.read(workdir)
      for k, v in record.items()
      if record["step"] <= step and k.startswith(("eval/", "fewshot/"))
    }
    facts = [f"data.name: {model.config.data.name}", f"updates: {step}"]
    facts += [f"{k}: {v}" for k, v in found.items()]
    changed = config_lib.differences(config_lib.default(), model.config)
    changed.pop("data.data_dir", "")  # Nobody else's business.
    facts += changed.values()
  tanh = (
    "Its GELU is the tanh approximation, that of timm's Mixer the exact one: "
    "without act_layer, logits differ by some 2e-4 of the largest.\n\n"
  ) * (model.module.gelu == "tanh")
  lines = textwrap.dedent(loading(model, pathlib.Path("DIR"))).strip()
  return f"""---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, mlp-mixer]
# license: to be named by who publishes this
---

# MLP-Mixer

[MLP-Mixer](https://arxiv.org/abs/2105.01601) of {model.num_classes:,} classes,
with {model.loss} scores. Images: {about["preprocessing"]}

## Training

Data, metrics, and the recipe as changes of the defaults of mixer:

{textwrap.indent(errors.printable(chr(10).join(facts), chr(10)), "    ")}

## Use

{tanh}DIR is a copy of this repository; `hf-hub:OWNER/NAME` can replace
`local-dir:DIR`. In mixer: `mixer.load("hf-hub:OWNER/NAME")`.

```python
{lines}
```
"""


def write(model: trained.Trained, target: pathlib.Path) -> None:
  """Writes the file, or the files of a folder."""
  strings = {"format": "pt", **trained.strings(trained.metadata(model))}
  file = target / WEIGHTS if target.is_dir() else target
  # By itself safetensors has other errors of a disk that is full.
  found = safetensors.numpy.save(state_dict(model.params), strings)
  file.write_bytes(found)
  if target.is_dir():
    text = files.json_text(config(model), indent=2) + "\n"
    (target / CONFIG).write_text(text, "utf-8")
    (target / CARD).write_text(card(model), "utf-8")


def loading(model: trained.Trained, path: pathlib.Path) -> str:
  """Lines of Python that load and run it, with the GELU it was trained with."""
  tanh = model.module.gelu == "tanh"
  gelu = ", act_layer=timm.layers.GELUTanh" * tanh
  note = "  # Not timm's own GELU." * tanh
  folder = path.suffix != SUFFIX
  file = str(path / WEIGHTS if folder else path)
  loaded = f"""
    import safetensors.torch
    import timm
    import torch

    arguments = {arguments(model)}
    model = timm.models.mlp_mixer.MlpMixer(
      **arguments{gelu}{note}
    )
    model.load_state_dict(safetensors.torch.load_file({file!r}))"""
  if folder and _architecture(model):
    loaded = f"""
    import timm
    import torch

    model = timm.create_model(
      {f"local-dir:{path}"!r}, pretrained=True{gelu}{note}
    )"""
  return f"""{loaded}
    model.eval()

    def run(images):
      x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
      with torch.inference_mode():
        x = model.forward_head(model.forward_features(x), pre_logits=True)
        return {{"features": x.numpy(), "logits": model.head(x).numpy()}}"""
