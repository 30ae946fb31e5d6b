"""RandAugment against definitions written out here in plain numpy."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mixer import errors, randaugment

MAGNITUDES = [10, 15, 20]


def picture(height=61, width=83, seed=0):
  """Smooth colours and some noise, uint8 [H, W, 3], not the full range."""
  rng = np.random.default_rng(seed)
  y, x, _ = np.mgrid[:height, :width, :1]
  waves = 120 + 70 * np.sin(x / 9 + np.arange(3)) * np.cos(y / 7)
  noisy = waves + rng.normal(0, 12, (height, width, 3))
  return noisy.clip(7, 243).astype(np.uint8)


def run(operation, image, *arguments):
  before = image.copy()
  result = operation(image, *arguments)
  np.testing.assert_array_equal(image, before)
  return result


def apart(got, want):
  """Largest difference of any value."""
  return int(np.abs(got.astype(int) - want.astype(int)).max())


def blend(degenerate, image, factor):
  mix = degenerate + factor * (image.astype(float) - degenerate)
  return np.trunc(mix.clip(0, 255) + 1e-5).astype(np.uint8)


def grey_levels(image):
  return np.rint(image @ [0.299, 0.587, 0.114])[..., None] * np.ones(3)


def sample_nearest(image, a, b, c, d, e, f):
  """Output (x, y) <- round(a x + b y + c), round(d x + e y + f), fill 128.

  Also says where the source lies clear of the middle between two pixels, so
  that rounding can't be in doubt.
  """
  height, width, _ = image.shape
  result, clear = np.full_like(image, 128), np.zeros((height, width), bool)
  for y in range(height):
    for x in range(width):
      u, v = a * x + b * y + c, d * x + e * y + f
      i, j = int(np.floor(u + 0.5)), int(np.floor(v + 0.5))
      if 0 <= i < width and 0 <= j < height:
        result[y, x] = image[j, i]
      clear[y, x] = max(abs(u - i), abs(v - j)) < 0.49
  return result, clear


def assert_nearest(got, image, matrix):
  want, clear = sample_nearest(image, *matrix)
  np.testing.assert_array_equal(got[clear], want[clear])
  assert clear.mean() > 0.9


def test_autocontrast():
  image = picture()
  got = run(randaugment.autocontrast, image)
  low, high = image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)
  want = np.floor((image - low) / (high - low) * 255 + 1e-6).astype(np.uint8)
  np.testing.assert_array_equal(got, want)
  assert got.min() == 0 and got.max() == 255
  flat = np.full((5, 4, 3), 77, np.uint8)
  np.testing.assert_array_equal(run(randaugment.autocontrast, flat), flat)


def test_equalize():
  image = picture()
  want = np.empty_like(image)
  for c in range(3):
    values = image[..., c]
    counts = [int((values == v).sum()) for v in range(256)]
    step = (sum(counts) - counts[values.max()]) // 255
    for v in range(256):
      mapped = min((sum(counts[:v]) + step // 2) // step, 255)
      want[..., c][values == v] = mapped
  np.testing.assert_array_equal(run(randaugment.equalize, image), want)
  flat = np.full((5, 4, 3), 77, np.uint8)
  np.testing.assert_array_equal(run(randaugment.equalize, flat), flat)


def test_invert():
  image = picture()
  got = run(randaugment.invert, image)
  np.testing.assert_array_equal(got, 255 - image)
  np.testing.assert_array_equal(run(randaugment.invert, got), image)


@pytest.mark.parametrize("bits", range(10))
def test_posterize(bits):
  image = picture()
  shift = 8 - min(max(bits, 1), 8)
  want = (image >> shift) << shift
  np.testing.assert_array_equal(run(randaugment.posterize, image, bits), want)


@pytest.mark.parametrize("threshold", [0, 1, 128, 255])
def test_solarize(threshold):
  image = picture()
  want = np.where(image.astype(int) < threshold, image, 255 - image)
  got = run(randaugment.solarize, image, threshold)
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("addition", [0, 55, 110, 165, 220])
def test_solarize_add(addition):
  image = picture()
  bright = np.minimum(image.astype(int) + addition, 255)
  want = np.where(image < 128, bright, image)
  got = run(randaugment.solarize_add, image, addition)
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("factor", [0.1, 1.0, 1.9, 2.8, 3.7])
def test_enhancements(factor):
  image = picture()
  # Grey may be rounded differently by one, and so may the blend.
  got = run(randaugment.color, image, factor)
  assert apart(got, blend(grey_levels(image), image, factor)) <= 1 + factor
  got = run(randaugment.brightness, image, factor)
  assert apart(got, blend(np.zeros(3), image, factor)) <= 1
  grey = 61 * 83 // 256
  got = run(randaugment.contrast, image, factor)
  assert apart(got, blend(np.full(3, grey), image, factor)) <= 1
  smooth = image.astype(float)
  middle = 4 * smooth[1:-1, 1:-1]
  for y in range(3):
    for x in range(3):
      middle = middle + image[y : y + 59, x : x + 81]
  smooth[1:-1, 1:-1] = middle / 13
  got = run(randaugment.sharpness, image, factor)
  assert apart(got, blend(smooth, image, factor)) <= 1 + factor
  np.testing.assert_array_equal(got[0], image[0])


def test_enhancement_of_factor_one_is_the_image():
  image = picture()
  for name in ("color", "brightness", "contrast", "sharpness"):
    got = run(getattr(randaugment, name), image, 1.0)
    np.testing.assert_array_equal(got, image, err_msg=name)


def test_contrast_pivots_on_196_at_224_pixels():
  flat = np.full((224, 224, 3), 196, np.uint8)
  np.testing.assert_array_equal(run(randaugment.contrast, flat, 2.8), flat)


@pytest.mark.parametrize("degrees", [-60, -45, 30, 45])
def test_rotate(degrees):
  image = picture()
  angle = np.deg2rad(degrees)
  cos, sin = np.cos(angle), np.sin(angle)
  x, y = 41, 30  # The middle of 83 x 61 pixels.
  matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
  assert_nearest(run(randaugment.rotate, image, degrees), image, matrix)


def test_rotate_by_quarter_and_half_turns():
  image = picture(40, 40)
  got = run(randaugment.rotate, image, 90)
  np.testing.assert_array_equal(got, np.rot90(image, 1))
  got = run(randaugment.rotate, image, 180)
  np.testing.assert_array_equal(got, image[::-1, ::-1])


@pytest.mark.parametrize("level", [-0.6, -0.45, 0.3, 0.45])
def test_shear(level):
  image = picture()
  got = run(randaugment.shear_x, image, level)
  assert_nearest(got, image, (1, level, 0, 0, 1, 0))
  np.testing.assert_array_equal(got[0], image[0])
  got = run(randaugment.shear_y, image, level)
  assert_nearest(got, image, (1, 0, 0, level, 1, 0))
  np.testing.assert_array_equal(got[:, 0], image[:, 0])


@hypothesis.given(st.integers(-90, 90))
@hypothesis.settings(max_examples=50, deadline=None)
def test_translate(pixels):
  image = picture()
  padded = np.pad(
    image, ((90, 90), (90, 90), (0, 0)), constant_values=randaugment.FILL[0]
  )
  got = run(randaugment.translate_x, image, pixels)
  np.testing.assert_array_equal(got, padded[90:151, 90 + pixels :][:, :83])
  got = run(randaugment.translate_y, image, pixels)
  np.testing.assert_array_equal(got, padded[90 + pixels :, 90:173][:61])


@hypothesis.given(st.integers(0, 82), st.integers(0, 60), st.integers(0, 90))
@hypothesis.settings(max_examples=50, deadline=None)
def test_cutout(x, y, pad):
  image = picture()
  want = image.copy()
  rows, columns = np.mgrid[:61, :83]
  inside = (rows >= y - pad) & (rows < y + pad)
  want[inside & (columns >= x - pad) & (columns < x + pad)] = 128
  np.testing.assert_array_equal(run(randaugment.cutout, image, x, y, pad), want)


@pytest.mark.parametrize(
  ("name", "operation", "arguments"),
  [
    ("Rotate", "rotate", [30, 45, 60]),
    ("ShearX", "shear_x", [0.3, 0.45, 0.6]),
    ("ShearY", "shear_y", [0.3, 0.45, 0.6]),
    ("TranslateX", "translate_x", [100, 150, 200]),
    ("TranslateY", "translate_y", [100, 150, 200]),
    ("Color", "color", [1.9, 2.8, 3.7]),
    ("Contrast", "contrast", [1.9, 2.8, 3.7]),
    ("Brightness", "brightness", [1.9, 2.8, 3.7]),
    ("Sharpness", "sharpness", [1.9, 2.8, 3.7]),
    ("Posterize", "posterize", [4, 6, 8]),
    ("Solarize", "solarize", [0, 128, 0]),
    ("SolarizeAdd", "solarize_add", [110, 165, 220]),
    ("Cutout", "cutout", [40, 60, 80]),
  ],
)
def test_magnitudes(monkeypatch, name, operation, arguments):
  seen = []

  def record(image, *given):
    seen.append(given[-1])
    return image

  monkeypatch.setattr(randaugment, operation, record)
  rng = np.random.default_rng(0)
  image = picture()
  for magnitude, argument in zip(MAGNITUDES, arguments, strict=True):
    seen.clear()
    for _ in range(40):
      randaugment.OPERATIONS[name](image, rng, magnitude)
    assert np.abs(seen) == pytest.approx(argument)
    if name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
      assert 8 < (np.array(seen) < 0).sum() < 32  # Either way, evenly.


@pytest.mark.parametrize(
  "name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout"]
)
def test_magnitude_zero_moves_nothing(name):
  image = picture()
  rng = np.random.default_rng(0)
  for _ in range(4):
    got = run(randaugment.OPERATIONS[name], image, rng, 0)
    np.testing.assert_array_equal(got, image)


def test_cutout_centre_is_uniform():
  rng = np.random.default_rng(0)
  black = np.zeros((8, 4, 3), np.uint8)
  hits = np.zeros((8, 4))
  for _ in range(4000):
    # Pad 1: rows y-1 and y, columns x-1 and x.
    grey = randaugment.OPERATIONS["Cutout"](black, rng, 0.25)[..., 0]
    hits[tuple(np.argwhere(grey == 128).max(0))] += 1
  assert hits.min() > 80 and hits.max() < 175  # 125 expected.


def test_operations_are_drawn_uniformly_with_replacement(monkeypatch):
  names = list(randaugment.OPERATIONS)
  assert len(names) == 16
  drawn = []

  def recorder(name):
    return lambda image, rng, m: (drawn.append(name), image)[1]

  monkeypatch.setattr(
    randaugment, "_OPERATIONS", tuple(recorder(name) for name in names)
  )
  rng = np.random.default_rng(0)
  for _ in range(4000):
    randaugment.apply(picture(2, 2), rng, 2, 10)
  counts = collections.Counter(drawn)
  assert set(counts) == set(names) and sum(counts.values()) == 8000
  assert min(counts.values()) > 400 and max(counts.values()) < 600
  pairs = collections.Counter(zip(drawn[::2], drawn[1::2], strict=True))
  assert sum(n for (a, b), n in pairs.items() if a == b) > 150  # 250 expected.


@hypothesis.given(
  st.integers(1, 40),
  st.integers(1, 40),
  st.integers(0, 4),
  st.floats(0, 30),
  st.integers(0, 2**32),
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_apply_is_a_function_of_the_generator(
  height, width, layers, magnitude, seed
):
  image = picture(height, width, seed)
  before = image.copy()
  got = [
    randaugment.apply(image, np.random.default_rng(seed), layers, magnitude)
    for _ in range(2)
  ]
  np.testing.assert_array_equal(got[0], got[1])
  np.testing.assert_array_equal(image, before)
  assert got[0].shape == image.shape and got[0].dtype == np.uint8
  assert got[0].flags.c_contiguous and got[0].flags.writeable
  if layers == 0:
    np.testing.assert_array_equal(got[0], image)


def test_options_out_of_range_are_refused():
  with pytest.raises(errors.UserError, match="magnitude 0 to 30"):
    randaugment.RandAugment(layers=2, magnitude=31)
  with pytest.raises(errors.UserError, match="layers must be 0 or more"):
    randaugment.RandAugment(layers=-1)
