"""Weights as pictures, against closed forms and a plain search."""

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mixer import model
from mixer.errors import UserError
from mixer.insight import kernels
from tests import trained_files


def wave(rows, columns, height, width, phase=0.0):
  """So many periods over the height and the width."""
  y, x = np.mgrid[:height, :width]
  angle = 2 * np.pi * (rows * y / height + columns * x / width)
  return np.cos(angle + phase)


def params_of(units):
  """Of a model whose block 0 has these hidden units, `[T, h, w]`."""
  kernel = units.reshape(len(units), -1).T.astype(np.float32)
  return {"MixerBlock_0": {"token_mixing": {"Dense_0": {"kernel": kernel}}}}


@pytest.mark.parametrize(
  "rows, columns, expected",
  [(0, 0, 0.0), (1, 0, 1 / 6), (0, 2, 2 / 8), (3, 4, 0.5**0.5)],
)
def test_frequency_of_waves(rows, columns, expected):
  image = wave(rows, columns, 6, 8)
  found = kernels.frequencies(np.stack([image, -3 * image]))
  np.testing.assert_allclose(found, expected, atol=1e-12)


def test_frequency_of_two_waves_is_the_mean_by_power():
  both = wave(1, 0, 8, 8) + 2 * wave(3, 0, 8, 8)
  found = kernels.frequencies(both[None])
  np.testing.assert_allclose(found, (1 * 1 / 8 + 4 * 3 / 8) / 5)
  colours = np.stack([wave(1, 0, 8, 8), 2 * wave(3, 0, 8, 8), 0 * both], -1)
  np.testing.assert_allclose(kernels.frequencies(colours[None]), found)


def test_waves_are_found_low_first_beside_their_inverse():
  low, high = wave(0, 1, 4, 6), wave(2, 3, 4, 6)
  units = np.stack([high, -0.5 * low, low, -2 * high, wave(1, 1, 4, 6)])
  found = kernels.token_units(params_of(units), 0, (4, 6))
  assert found.dtype == np.float32
  expected = units[[1, 2, 4, 0, 3]]
  # Of the middle one, all that is left are at right angles: the lower index.
  np.testing.assert_allclose(found, expected, atol=1e-6)


@hypothesis.given(
  hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)),
    elements=st.integers(-3, 3),
  )
)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_the_order_is_a_permutation_that_scaling_leaves_alone(units):
  order = kernels.pair_order(units)
  assert sorted(order) == list(range(len(units)))
  np.testing.assert_array_equal(kernels.pair_order(units * 4), order)
  # First of each pair: the lowest frequency that was left.
  frequency = np.round(kernels.frequencies(units), 9)
  for place in range(0, len(order), 2):
    assert frequency[order[place]] == frequency[order[place:]].min()


def test_weights_off_the_grid_are_refused():
  params = params_of(np.ones((3, 4, 4)))
  with pytest.raises(UserError, match="take in 16 numbers.*2 x 4 = 8 tokens"):
    kernels.token_units(params, 0, (2, 4))
  with pytest.raises(UserError, match="no block 1: the model has 1"):
    kernels.token_units(params, 1, (4, 4))
  dense = params["MixerBlock_0"]["token_mixing"]["Dense_0"]
  dense["kernel"] = np.ones((8, 16, 3), np.float32)
  with pytest.raises(UserError, match="each of 8 channels"):
    kernels.token_units(params, 0, (4, 4))


def test_stem_kernels_keep_their_signs_and_use_the_whole_range():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(5, 5, 3, 7)).astype(np.float32)
  kernel[..., 3] = 0
  found = kernels.stem_kernels({"stem": {"kernel": kernel}})
  assert found.shape == (7, 5, 5, 3) and found.dtype == np.float32
  np.testing.assert_array_equal(found[0], 0.5)  # All zero: frequency 0.
  order = np.argsort(kernels.frequencies(np.moveaxis(kernel, -1, 0)))
  for image, channel in zip(found[1:], order[1:], strict=True):
    own = kernel[..., channel]
    np.testing.assert_allclose(
      (image - 0.5) * 2 * np.abs(own).max(), own, atol=1e-6
    )


def test_montage_puts_every_picture_in_its_place():
  images = np.arange(5, dtype=np.float32)[:, None, None, None] / 5
  images = np.broadcast_to(images, (5, 2, 3, 3))
  found = kernels.montage(images, 2, pad=1)
  assert found.shape == (3 * 3 - 1, 2 * 4 - 1, 3) and found.dtype == np.uint8
  for i in range(5):
    y, x = i // 2 * 3, i % 2 * 4
    assert (found[y : y + 2, x : x + 3] == round(i / 5 * 255)).all()
  assert (found[2] == 255).all() and (found[:, 3] == 255).all()
  assert (found[6:, 4:] == 255).all()


def test_montage_of_numbers_is_symmetric_about_0():
  images = np.array([[[-2.0, 0.0, 2.0]], [[-1.0, 0.0, 1.0]]], np.float32)
  own = kernels.montage(images, 1, pad=0)
  np.testing.assert_array_equal(own[0], own[1])
  blue, zero, red = own[0].astype(int)
  assert blue[2] > blue[0] and red[0] > red[2] and zero.min() > 240
  shared = kernels.montage(images, 1, pad=0, limit=2.0)
  np.testing.assert_array_equal(shared[0], own[0])
  assert shared[1, 2].sum() > own[1, 2].sum()  # Paler.


def test_units_of_a_whole_model():

  module = model.MlpMixer(4, 2, 8, 7, 12)
  params = trained_files.random_params(module, 12)
  found = kernels.token_units(params, 1, (3, 3))
  own = params["MixerBlock_1"]["token_mixing"]["Dense_0"]["kernel"].T
  assert found.shape == (7, 3, 3)
  np.testing.assert_array_equal(
    np.sort(found.reshape(7, -1), axis=0), np.sort(own, axis=0)
  )
