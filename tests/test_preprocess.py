"""Preprocessing against its definitions, in float64 and by counting."""

import hashlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mixer import errors, preprocess, randaugment
from tests.conftest import ROOT
from tests.test_images import encode, picture

_SIDES = st.tuples(st.integers(1, 120), st.integers(1, 120))


def bilinear_enlarge(image, height, width):
  """Interpolates between pixel centres, the border repeated."""
  for axis, size in enumerate((height, width)):
    old = image.shape[axis]
    place = ((np.arange(size) + 0.5) * old / size - 0.5).clip(0, old - 1)
    low = np.floor(place).astype(int)
    part = (place - low).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
    high = np.minimum(low + 1, old - 1)
    image = (1 - part) * image.take(low, axis) + part * image.take(high, axis)
  return image


@pytest.mark.parametrize("shape", [(1000, 1000), (750, 1000), (1600, 800)])
def test_inception_crop_follows_its_law(shape):
  height, width = shape
  rng = np.random.default_rng(0)
  boxes = [preprocess.crop_box(*shape, rng, 0.05) for _ in range(20_000)]
  left, top, right, bottom = np.array(boxes).T
  # P(area <= fraction), from the law that the docstring states.
  r, pixels = np.linspace(3 / 4, 4 / 3, 2001), height * width
  high = np.minimum(np.sqrt(pixels / r), np.minimum(height, width / r))
  low = np.sqrt(0.05 * pixels / r)
  got = (right - left) * (bottom - top) / pixels
  for fraction in np.linspace(0.05, 1, 20):
    below = np.sqrt(fraction * pixels / r)
    want = ((below - low) / (high - low)).clip(0, 1).mean()
    # Five standard deviations of 20,000 draws are below 0.018.
    assert abs((got <= fraction).mean() - want) < 0.02, fraction
  ratio = (right - left) / (bottom - top)
  for r in np.linspace(3 / 4, 4 / 3, 20):
    want = (r - 3 / 4) / (4 / 3 - 3 / 4)
    assert abs((ratio <= r).mean() - want) < 0.02, r
  # Its place is uniform among those that it can take.
  for start, free in (
    (left, width - right + left),
    (top, height - bottom + top),
  ):
    place = start[free > 50] / free[free > 50]
    assert abs(place.mean() - 0.5) < 0.02
    assert abs(place.var() - 1 / 12) < 0.01


@hypothesis.given(_SIDES, st.floats(0.01, 1), st.integers(0, 2**32))
@hypothesis.example((10, 400), 0.05, 0)  # A strip is taken whole.
@hypothesis.settings(max_examples=200)
def test_crops_lie_inside_and_within_the_limits(sides, area, seed):
  (height, width), rng = sides, np.random.default_rng(seed)
  left, top, right, bottom = preprocess.crop_box(height, width, rng, area)
  assert 0 <= left < right <= width and 0 <= top < bottom <= height
  wide, tall = right - left, bottom - top
  if (wide, tall) != (width, height):  # The whole where there is no crop.
    assert area * height * width <= wide * tall
    # The width is the rounded product of the height and a ratio in range.
    assert 3 / 4 * tall - 0.5 <= wide <= 4 / 3 * tall + 0.5


def test_resize_enlarges_bilinearly_and_shrinks_without_aliasing():
  image = picture(24, 17)
  got = preprocess.resize(image, (61, 50))
  assert np.abs(got - bilinear_enlarge(image, 61, 50)).max() <= 1
  np.testing.assert_array_equal(preprocess.resize(image, (24, 17)), image)
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::2] = 254
  got = preprocess.resize(stripes, 16)[:, 1:-1]
  assert np.abs(got.astype(int) - 127).max() <= 1


def test_affine_turns_scales_and_shifts_by_what_is_drawn():
  image = np.zeros((33, 33, 3), np.uint8)
  image[12:21, 12:21] = image[16, 16:] = 255
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:33, :33] + 0.5
  for _ in range(50):
    state = rng.bit_generator.state
    got = preprocess.affine(image, rng, 40, 0.5, 0.3)[..., 0].astype(int)
    rng.bit_generator.state = state
    angle, grow, right, down = 2 * rng.random(4) - 1
    # From each place in the result to where it comes from.
    u, v = x - 16.5 - right * 0.3 * 33, y - 16.5 - down * 0.3 * 33
    cos, sin = np.cos(np.radians(40 * angle)), np.sin(np.radians(40 * angle))
    u, v = ((cos * u - sin * v), (sin * u + cos * v))
    i = np.floor(v / (1 + 0.5 * grow) + 16.5).astype(int)
    j = np.floor(u / (1 + 0.5 * grow) + 16.5).astype(int)
    inside = (np.minimum(i, j) >= 0) & (np.maximum(i, j) < 33)
    nearest = np.where(inside, image[i.clip(0, 32), j.clip(0, 32), 0], 0)
    assert np.abs(got - nearest).mean() < 12
    assert abs((got > 127).sum() - (nearest > 127).sum()) <= 25
  same = preprocess.affine(image, np.random.default_rng(0), 0, 0, 0)
  np.testing.assert_array_equal(same, image)


def pattern(height, width):
  """Whole numbers by whole numbers: the same everywhere."""
  y, x = np.mgrid[:height, :width].astype(np.int64)
  rows = x // 9 * y // 7 * 11
  channels = [x * (5 + k) + y * (3 + 2 * k) + rows for k in range(3)]
  return (np.stack(channels, -1) % 256).astype(np.uint8)


def digest(pixels):
  return hashlib.blake2b(pixels.tobytes(), digest_size=6).hexdigest()


# Digests of what TensorFlow 2.21 made of `pattern`: big_vision's resize_small
# to 256 (method="area", cast to uint8), then the central crop of 224.
_TENSORFLOW = {
  (375, 500): "c7773445d237",
  (500, 375): "4176611b02eb",
  (427, 640): "01e19823bd72",
  (224, 224): "0b82cc763928",
  (120, 180): "29fe93912c5b",
  (600, 300): "7a5d37b36db4",
  (32, 32): "5d388cdcdbb4",
  (255, 130): "0f4d3b2a3cdc",
  (129, 400): "005dbf01ceaa",
  (700, 409): "d63fbaf84be3",
  (1, 50): "0fa5728eceb1",
}


def test_evaluation_is_tensorflows_to_the_bit(monkeypatch):
  for block in (1 << 17, 5000):  # A few rows at a time.
    monkeypatch.setattr(preprocess, "_BLOCK", block)
    for shape, want in _TENSORFLOW.items():
      assert digest(preprocess.evaluation(pattern(*shape))) == want, shape


# JPEGs of 44 x 60, and digests of TensorFlow's decode_jpeg and of its resizing
# to 32 and cropping to 28.
_JPEGS = {
  "420": ("ead83bfe2a45", "d42a74515717"),
  "inks": ("342f615306f0", "f82427039039"),
  "grey": ("efdff4db7eb0", "db893739382b"),
}


@pytest.mark.parametrize("kind", _JPEGS)
def test_jpegs_are_tensorflows_to_the_bit(kind):
  whole, cropped = _JPEGS[kind]
  encoded = (ROOT / "tests" / "golden" / f"{kind}.jpg").read_bytes()
  assert digest(preprocess.decode(encoded)) == whole
  assert digest(preprocess.evaluation(encoded, 28, 32)) == cropped
  options = preprocess.TrainOptions(size=(44, 60), crop="resize", flip=False)
  got = preprocess.train(encoded, np.random.default_rng(0), options)
  assert digest(got) == whole


@hypothesis.given(
  _SIDES,
  st.tuples(st.integers(1, 40), st.integers(1, 40)),
  st.integers(0, 20),
)
@hypothesis.settings(max_examples=100)
def test_evaluation_cuts_what_is_resized(sides, crop, more):
  image, short = picture(*sides), max(crop) + more
  got = preprocess.evaluation(encode(image, "bmp"), crop, short)
  resized = preprocess.resize_short(image, short)
  assert min(resized.shape[:2]) == short
  top, left = ((n - c) // 2 for n, c in zip(resized.shape, crop, strict=False))
  want = resized[top : top + crop[0], left : left + crop[1]]
  assert got.flags.c_contiguous and got.flags.writeable
  np.testing.assert_array_equal(got, want)
  squeezed = preprocess.evaluation(image, crop, short_side=0)
  np.testing.assert_array_equal(squeezed, preprocess.resize(image, crop))
  assert not np.shares_memory(squeezed, image)


@pytest.mark.parametrize("crop", ["inception", "resize", "pad"])
def test_train_is_its_parts_in_order(crop):
  image = picture(90, 130)
  options = preprocess.TrainOptions(
    size=(40, 56), crop=crop, crop_area_min=0.2,
    affine_degrees=20, affine_scale=0.2, affine_translate=0.3,
    randaugment_layers=2, randaugment_magnitude=15,
  )  # fmt: skip
  batch, flipped = np.full((3, 40, 56, 3), 7, np.uint8), 0
  for seed in range(20):
    rng, want = np.random.default_rng(seed), image
    if crop == "inception":
      left, top, right, bottom = preprocess.crop_box(90, 130, rng, 0.2)
      want = image[top:bottom, left:right]
    want = preprocess.resize(want, (40, 56))
    if crop == "pad":
      y, x = rng.integers(11), rng.integers(15)
      edges = ((5, 5), (7, 7), (0, 0))
      want = np.pad(want, edges, "reflect")[y : y + 40, x : x + 56].copy()
    if rng.random() < 0.5:
      want, flipped = want[:, ::-1].copy(), flipped + 1
    want = preprocess.affine(want, rng, 20, 0.2, 0.3)
    want = randaugment.apply(want, rng, 2, 15)
    rng = np.random.default_rng(seed)
    got = preprocess.train(encode(image), rng, options)
    np.testing.assert_array_equal(got, want)
    # Of pixels, and into a place of a batch.
    rng = np.random.default_rng(seed)
    preprocess.train(image, rng, options, batch[1])
    np.testing.assert_array_equal(batch[1], want)
    assert (batch[::2] == 7).all()
  assert 4 < flipped < 16


def test_sizes_that_cannot_be():
  for size in (0, (1, 2, 3), (5, -1)):
    with pytest.raises(errors.UserError, match="positive number or"):
      preprocess.evaluation(picture(9, 9), size)
  with pytest.raises(errors.UserError, match="short_side of at least 448"):
    preprocess.evaluation(picture(9, 9), 448)
