"""The names that the authors' weights once had, and those that they have now.

The authors' loader (google-research/big_vision, models/mlp_mixer.py) reads
both. The older ones, and what they are in `mixer.weights`:

  embedding/...                              stem/...
  Mixer/encoderblock_{i}/                    MixerBlock_{i}/
    LayerNorm_{n}/...                          LayerNorm_{0,1}/...
    token_mixing_phase_{n}/kernel1, bias1      token_mixing/Dense_0/kernel, bias
    token_mixing_phase_{n}/kernel2, bias2      token_mixing/Dense_1/kernel, bias
    (and so with channel_mixing)
  Mixer/encoder_norm/...                     pre_head_layer_norm/...
  head/...                                   head/...

Flax's older interface counted modules of all kinds together, the newer each
kind by itself: n may be either. Arrays of the MLPs have singleton axes besides
their own; where these stood isn't published.
"""

import re
from collections.abc import Collection, Mapping

import numpy as np

from mixer.errors import UserError

_MLP = re.compile(
  r"Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_\d+"
  r"/(kernel|bias)([12])"
)
_NORM = re.compile(r"Mixer/encoderblock_(\d+)/LayerNorm_(\d+)/(.*)")


def is_older(keys: Collection[str]) -> bool:
  """Whether these are the names of the older layout."""
  return any(key.startswith("Mixer/") for key in keys)


def current_names(keys: Collection[str], where: str) -> dict[str, str]:
  """The current name of each older one; one that isn't known stays.

  Args:
    keys: all of a file's.
    where: what to call the file in an error.

  Raises:
    UserError: two of them stand for the same parameter.
  """
  norms: dict[str, set[int]] = {}
  for key in keys:
    if m := _NORM.fullmatch(key):
      norms.setdefault(m[1], set()).add(int(m[2]))
  names: dict[str, str] = {}
  taken: dict[str, str] = {}
  for key in keys:
    if m := _MLP.fullmatch(key):
      dense = f"Dense_{int(m[4]) - 1}/{m[3]}"
      new = f"MixerBlock_{m[1]}/{m[2]}_mixing/{dense}"
    elif m := _NORM.fullmatch(key):
      rank = sorted(norms[m[1]]).index(int(m[2]))
      new = f"MixerBlock_{m[1]}/LayerNorm_{rank}/{m[3]}"
    else:
      new = re.sub(r"^Mixer/encoder_norm/", "pre_head_layer_norm/", key)
      new = re.sub(r"^embedding/", "stem/", new)
    if new in taken:
      raise UserError(
        f"{where} holds the same parameter twice, as {taken[new]} and as {key}."
      )
    names[key], taken[new] = new, key
  return names


def older_name(name: str) -> str:
  """The older name of a current one; one that isn't known stays."""
  name = re.sub(
    r"_mixing/Dense_([01])/(kernel|bias)$",
    lambda m: f"_mixing_phase_0/{m[2]}{int(m[1]) + 1}",
    name,
  )
  name = re.sub(r"^MixerBlock_(\d+)/", r"Mixer/encoderblock_\1/", name)
  name = re.sub(r"^pre_head_layer_norm/", "Mixer/encoder_norm/", name)
  return re.sub(r"^stem/", "embedding/", name)


def squeezed(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of an array of the older layout without the axes in excess."""
  m = _MLP.fullmatch(key)
  if not m:
    return shape
  # Those in excess, not all: a model may well be 1 wide.
  axes = list(shape)
  while len(axes) > (2 if m[3] == "kernel" else 1) and 1 in axes:
    axes.remove(1)
  return tuple(axes)


def to_older(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Renames current weights, with one singleton axis in front of the MLPs'."""
  renamed = {older_name(k): v for k, v in flat.items()}
  return {k: v[None] if _MLP.fullmatch(k) else v for k, v in renamed.items()}


def in_own_words(sentence: str, names: Mapping[str, str]) -> str:
  """Puts a file's own names into a sentence that has the current ones.

  Args:
    sentence: with names between blanks.
    names: current ones by the file's own.
  """
  own = {new: old for old, new in names.items()}
  return re.sub(
    r"\w+(/\w+)+", lambda m: own.get(m[0]) or older_name(m[0]), sentence
  )
