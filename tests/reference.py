"""A forward pass of MLP-Mixer in plain numpy, float64.

Written from the paper (section 2) and the layout of the released checkpoints,
sharing no code with the model.
"""

from typing import Any

import numpy as np


def _layer_norm(x: np.ndarray, p: dict[str, Any]) -> np.ndarray:
  mean = x.mean(axis=-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def _dense(x: np.ndarray, p: dict[str, Any]) -> np.ndarray:
  return np.einsum("...i,io->...o", x, p["kernel"]) + p["bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _mlp(x: np.ndarray, p: dict[str, Any]) -> np.ndarray:
  return _dense(_gelu(_dense(x, p["Dense_0"])), p["Dense_1"])


def forward(
  params: dict[str, Any], images: np.ndarray, *, head: bool = True
) -> np.ndarray:
  """Logits, or pre-logits without `head`, of images `[B, H, W, 3]`."""

  def double(tree: Any) -> Any:
    if isinstance(tree, dict):
      return {k: double(v) for k, v in tree.items()}
    return np.asarray(tree, np.float64)

  p = double(params)
  images = np.asarray(images, np.float64)
  size = p["stem"]["kernel"].shape[0]
  tokens = []  # In raster order.
  for top in range(0, images.shape[1], size):
    for left in range(0, images.shape[2], size):
      patch = images[:, top : top + size, left : left + size, :]
      tokens.append(
        np.einsum("bhwc,hwcd->bd", patch, p["stem"]["kernel"])
        + p["stem"]["bias"]
      )
  x = np.stack(tokens, axis=1)
  i = 0
  while f"MixerBlock_{i}" in p:
    block = p[f"MixerBlock_{i}"]
    y = _layer_norm(x, block["LayerNorm_0"])
    y = _mlp(y.transpose(0, 2, 1), block["token_mixing"])
    x = x + y.transpose(0, 2, 1)
    y = _layer_norm(x, block["LayerNorm_1"])
    x = x + _mlp(y, block["channel_mixing"])
    i += 1
  x = _layer_norm(x, p["pre_head_layer_norm"]).mean(axis=1)
  return _dense(x, p["head"]) if head else x
