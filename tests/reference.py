"""A forward pass of MLP-Mixer in plain numpy, float64, with appendix A.1.

Written from the paper (section 2) and the layout of the released checkpoints,
sharing no code with the model.
"""

from typing import Any

import numpy as np


def _layer_norm(x: np.ndarray, p: dict[str, Any]) -> np.ndarray:
  mean = x.mean(axis=-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def _mlp(x: np.ndarray, p: dict[str, Any]) -> np.ndarray:
  x = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
  x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def _mix(x_BSC: np.ndarray, block: dict[str, Any], mixing: Any) -> np.ndarray:
  """A vector for each group of channels, its MLP, and back to columns."""
  g, c = (mixing.groups if mixing else 1), x_BSC.shape[-1]
  if mixing and mixing.projection:
    # View k is a linear function of its own: columns k, k + G, ...
    kernel = block["group_projection"]["kernel"]
    views = [x_BSC @ kernel[:, k::g] for k in range(g)]  # Each [B, S, C / G].
    groups = [[v[..., j] for v in views] for j in range(c // g)]
  else:
    columns = [x_BSC[..., i] for i in range(c)]
    groups = [columns[j : j + g] for j in range(0, c, g)]
  out = []
  for j, group in enumerate(groups):
    p = block["token_mixing"]
    if mixing and mixing.untied:
      p = {k: {n: v[j] for n, v in dense.items()} for k, dense in p.items()}
    out.extend(np.split(_mlp(np.concatenate(group, axis=-1), p), g, axis=-1))
  return np.stack(out, axis=-1)


def forward(
  params: dict[str, Any],
  images: np.ndarray,
  *,
  head: bool = True,
  mixing: Any = None,
) -> np.ndarray:
  """Logits, or pre-logits without `head`, of images `[B, H, W, 3]`.

  `mixing` is a `block.TokenMixing`, None for the paper's own.
  """

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
    y = _mix(_layer_norm(x, block["LayerNorm_0"]), block, mixing)
    if "token_shortcut" in block:
      x = np.einsum("bsc,st->btc", x, block["token_shortcut"]["kernel"])
    x = x + y
    x = x + _mlp(_layer_norm(x, block["LayerNorm_1"]), block["channel_mixing"])
    i += 1
  x = _layer_norm(x, p["pre_head_layer_norm"]).mean(axis=1)
  return x @ p["head"]["kernel"] + p["head"]["bias"] if head else x
