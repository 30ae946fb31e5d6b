"""How far token mixing reaches, block by block, as the weights say.

The counterpart of ViT's mean attention distance (arXiv 2010.11929, figure 7,
appendix D.7), where the weights with which tokens are mixed are attention. A
Mixer's are fixed: without its GELU the token MLP were the linear map W2 W1.
What the skip connection passes on in place is not counted.
"""

import dataclasses

import numpy as np

from mixer import model as model_lib
from mixer import weights
from mixer.insight import tokens


@dataclasses.dataclass(frozen=True)
class Reach:
  """Mixing distances of a block, in patches.

  Attributes:
    block: counted from 0.
    whole: of the linear map, `mean_distance` of it.
    units: of each hidden unit, float64 `[T]`: of the map of rank 1 that goes
      through it. The counterpart of ViT's heads.
  """

  block: int
  whole: float
  units: np.ndarray


def mean_distance(mixing: np.ndarray, distance: np.ndarray) -> float:
  """Distance between output and input token, weighted by |weight|.

  For each output token: sum(|weight| distance) / sum(|weight|) over the input
  tokens; then the mean over output tokens. An output without weights is left
  out. 0 for a diagonal map; the mean of `distance` for a uniform one.

  Args:
    mixing: float `[S, S]`, from the first axis to the second.
    distance: `[S, S]` between tokens.

  Returns:
    In the unit of `distance`; NaN if all weights are 0.
  """
  size = np.abs(mixing, dtype=np.float64)
  total = size.sum(axis=0)
  used = total > 0
  if not used.any():
    return float("nan")
  return float(((size * distance).sum(axis=0)[used] / total[used]).mean())


def reaches(
  module: model_lib.MlpMixer,
  params: weights.Params,
  image_size: tuple[int, int],
) -> list[Reach]:
  """The reach of every block, up to a pyramid's first step.

  Grouped channels are taken together, untied MLPs averaged.

  Args:
    module: the model; not one that permutes all pixels.
    params: its weights.
    image_size: (height, width) in pixels.
  """
  grid = tokens.grid_of(module, image_size)
  where = tokens.places(module, image_size)
  assert where is not None
  distance = tokens.distances(grid)[np.ix_(where, where)]
  found = []
  for i in range(module.num_blocks):
    mlp = params[f"MixerBlock_{i}"]["token_mixing"]
    first = np.asarray(mlp["Dense_0"]["kernel"], np.float32)
    second = np.asarray(mlp["Dense_1"]["kernel"], np.float32)
    if second.shape[-1] != first.shape[-2]:
      break  # From here on tokens have no place.
    found.append(_reach(i, first, second, distance))
  return found


def _reach(
  block: int, first: np.ndarray, second: np.ndarray, distance: np.ndarray
) -> Reach:
  """Of `[(C,) G S, T]` and `[(C,) T, G S]`."""
  s = len(distance)
  wholes, units = [], []
  t = first.shape[-1]
  for w1, w2 in zip(
    first.reshape(-1, *first.shape[-2:]),
    second.reshape(-1, *second.shape[-2:]),
    strict=True,
  ):
    groups = len(w1) // s
    mixing = np.abs(w1 @ w2).reshape(groups, s, groups, s).sum(axis=(0, 2))
    wholes.append(mean_distance(mixing, distance))
    into = np.abs(w1).reshape(groups, s, t).sum(axis=0, dtype=np.float64)
    out = np.abs(w2).reshape(t, groups, s).sum(axis=1, dtype=np.float64)
    weight = into.sum(axis=0) * out.sum(axis=1)
    apart = ((distance @ into).T * out).sum(axis=1)
    none = weight == 0
    units.append(np.where(none, np.nan, apart / np.where(none, 1, weight)))
  return Reach(block, float(np.mean(wholes)), np.concatenate(units))
