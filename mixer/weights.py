"""Trees of weights, and what they say of their model.

Names are those of the released checkpoints, '/'-joined:
`MixerBlock_0/token_mixing/Dense_0/kernel`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mixer.errors import UserError

# A nested dict of arrays.
Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Shape:
  """The shape of a Mixer, as its weights have it."""

  patch_size: int  # P, in pixels.
  num_blocks: int
  hidden_dim: int  # C
  tokens_mlp_dim: int  # T
  channels_mlp_dim: int  # F
  num_tokens: int  # S
  num_classes: int  # K; 0 without a head.


def flatten(params: Params) -> dict[str, Any]:
  """`{"stem/kernel": array, ...}` of a nested dict."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The nested dict of which `flatten` gives `flat`."""
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *groups, last = name.split("/")
    place = tree
    for group in groups:
      place = place.setdefault(group, {})
    place[last] = leaf
  return tree


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
  """`{"stem/kernel": (4, 4, 3, 128), ...}` of a tree of arrays or the like."""
  return {k: tuple(v.shape) for k, v in flatten(params).items()}


def mismatches(
  found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> list[str]:
  """One line for each parameter that is missing, unexpected or misshapen."""
  lines = []
  for k in sorted(found.keys() | wanted.keys()):
    if k not in found:
      lines.append(f"{k} {wanted[k]} is missing")
    elif k not in wanted:
      lines.append(f"{k} {found[k]} is unexpected")
    elif found[k] != wanted[k]:
      lines.append(f"{k} is {found[k]} there and {wanted[k]} here")
  return lines


def shorten(lines: list[str]) -> str:
  """The first eight, and how many more there are."""
  more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
  return "; ".join(lines[:8]) + more


def expected(shape: Shape) -> dict[str, tuple[int, ...]]:
  """Name and shape of every parameter of a model."""
  p, c, s = shape.patch_size, shape.hidden_dim, shape.num_tokens
  norm = {"scale": (c,), "bias": (c,)}

  def mlp(outer: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
      "Dense_0/kernel": (outer, inner),
      "Dense_0/bias": (inner,),
      "Dense_1/kernel": (inner, outer),
      "Dense_1/bias": (outer,),
    }

  groups = {"stem": {"kernel": (p, p, 3, c), "bias": (c,)}}
  for i in range(shape.num_blocks):
    groups |= {
      f"MixerBlock_{i}/LayerNorm_0": norm,
      f"MixerBlock_{i}/token_mixing": mlp(s, shape.tokens_mlp_dim),
      f"MixerBlock_{i}/LayerNorm_1": norm,
      f"MixerBlock_{i}/channel_mixing": mlp(c, shape.channels_mlp_dim),
    }
  groups["pre_head_layer_norm"] = norm
  if k := shape.num_classes:
    groups["head"] = {"kernel": (c, k), "bias": (k,)}
  return {
    f"{g}/{n}": s for g, leaves in groups.items() for n, s in leaves.items()
  }


def shape_of(params: Params, where: str = "these weights") -> Shape:
  """The shape of the Mixer of which these are all weights; else UserError."""
  found = shapes(params)

  try:
    p, _, _, c = found["stem/kernel"]
    s, t = found["MixerBlock_0/token_mixing/Dense_0/kernel"]
    _, f = found["MixerBlock_0/channel_mixing/Dense_0/kernel"]
    _, k = found.get("head/kernel", (c, 0))
  except (KeyError, ValueError) as e:
    there = shorten([f"{k} {v}" for k, v in sorted(found.items())])
    raise UserError(
      f"{where} are not those of an MLP-Mixer, which has stem/kernel (P, P, 3, "
      f"C), MixerBlock_0/token_mixing/Dense_0/kernel (S, T) and so on; there "
      f"are {there or 'none'}."
    ) from e
  blocks = {k.split("/")[0] for k in found if k.startswith("MixerBlock_")}
  shape = Shape(p, len(blocks), c, t, f, s, k)
  if lines := mismatches(found, expected(shape)):
    raise UserError(
      f"{where} are not those of a whole MLP-Mixer: {shorten(lines)}."
    )
  return shape


def not_finite(params: Params) -> list[str]:
  """The names of the parameters that hold a NaN or an infinity."""
  leaves = flatten(params).items()
  return [k for k, leaf in leaves if not np.isfinite(np.asarray(leaf)).all()]


def check_finite(params: Params, where: str) -> None:
  """Refuses NaNs and infinities, naming the parameters."""
  if broken := not_finite(params):
    raise UserError(
      f"{where}: there are NaNs or infinities in {shorten(broken)}. Such "
      "weights compute nothing; take those of an earlier checkpoint."
    )
