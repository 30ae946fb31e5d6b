"""Mixing distances against closed forms and plain loops."""

import math

import numpy as np
import pytest

from mixer import block, model
from mixer.insight import mixing, tokens
from tests import trained_files


def pairwise(grid):
  """Distances by the definition."""
  places = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
  return np.array([[math.dist(a, b) for b in places] for a in places])


def test_distances_between_tokens():
  np.testing.assert_allclose(tokens.distances((2, 3)), pairwise((2, 3)))


def test_closed_forms():
  distance = pairwise((3, 4))
  assert mixing.mean_distance(-2 * np.eye(12), distance) == 0
  uniform = mixing.mean_distance(np.full((12, 12), -0.3), distance)
  assert uniform == pytest.approx(distance.mean())
  # Every token from its right neighbour, around the corner.
  shift = np.roll(np.eye(4), 1, axis=0)
  found = mixing.mean_distance(shift, pairwise((1, 4)))
  assert found == pytest.approx((1 + 1 + 1 + 3) / 4)
  assert np.isnan(mixing.mean_distance(np.zeros((4, 4)), pairwise((1, 4))))


def loops(w1, w2, distance):
  """`mean_distance` of |W2 W1|, one number after the other."""
  s, means = len(distance), []
  for out in range(s):
    size = [abs(float(w1[i] @ w2[:, out])) for i in range(s)]
    far = sum(a * distance[i, out] for i, a in enumerate(size))
    means.append(far / sum(size))
  return np.mean(means)


def test_a_models_blocks():
  module = model.MlpMixer(4, 2, 8, 6, 12)
  params = trained_files.random_params(module, 12)
  found = mixing.reaches(module, params, (12, 12))
  assert [reach.block for reach in found] == [0, 1]
  distance = pairwise((3, 3))
  for i, reach in enumerate(found):
    mlp = params[f"MixerBlock_{i}"]["token_mixing"]
    w1, w2 = mlp["Dense_0"]["kernel"], mlp["Dense_1"]["kernel"]
    assert reach.whole == pytest.approx(loops(w1, w2, distance), rel=1e-5)
    for unit in range(6):
      weight = np.abs(np.outer(w1[:, unit], w2[unit]))
      expected = (weight * distance).sum() / weight.sum()
      assert reach.units[unit] == pytest.approx(expected, rel=1e-5)


def test_permuted_patches_lie_where_they_came_from():
  module = model.MlpMixer(4, 1, 8, 9, 12, permute="patches", permute_seed=3)
  params = trained_files.random_params(module, 12)
  # Each token takes in what lies to its left in the image.
  order = model.random_order(9, 3)
  neighbour = {(r * 3 + c): r * 3 + c - 1 for r in range(3) for c in (1, 2)}
  w1 = np.zeros((9, 9), np.float32)
  for out, patch in enumerate(order):
    if patch in neighbour:
      w1[list(order).index(neighbour[patch]), out] = 1
  mlp = params["MixerBlock_0"]["token_mixing"]
  mlp["Dense_0"]["kernel"] = w1
  mlp["Dense_1"]["kernel"] = np.eye(9, dtype=np.float32)
  (reach,) = mixing.reaches(module, params, (12, 12))
  assert reach.whole == 1.0


@pytest.mark.parametrize(
  "how, blocks",
  [
    (block.TokenMixing(groups=2), 2),
    (block.TokenMixing(untied=True), 2),
    (block.TokenMixing(pyramid=((1, 4),)), 1),
  ],
)
def test_other_token_mixings(how, blocks):
  module = model.MlpMixer(4, 2, 8, 6, 12, mixing=how)
  params = trained_files.random_params(module, 12)
  found = mixing.reaches(module, params, (12, 12))
  assert len(found) == blocks
  most = tokens.distances((3, 3)).max()
  assert all(0 < reach.whole < most for reach in found)
  assert all(((0 < r.units) & (r.units < most)).all() for r in found)


def test_groups_that_mix_nothing_reach_nowhere():
  module = model.MlpMixer(4, 1, 8, 18, 12, mixing=block.TokenMixing(groups=2))
  params = trained_files.random_params(module, 12)
  mlp = params["MixerBlock_0"]["token_mixing"]
  # The channels change places, the tokens don't.
  mlp["Dense_0"]["kernel"] = np.roll(np.eye(18, dtype=np.float32), 9, axis=0)
  mlp["Dense_1"]["kernel"] = np.eye(18, dtype=np.float32)
  (reach,) = mixing.reaches(module, params, (12, 12))
  assert reach.whole == 0 and not reach.units.any()
