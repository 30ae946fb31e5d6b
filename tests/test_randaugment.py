"""RandAugment against definitions written out here in plain numpy."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mixer import randaugment

# The magnitudes of the recipes, and none.
MAGNITUDES = [0, 10, 15, 20]


def picture(height=61, width=83, seed=0):
  """Smooth colours and some noise, uint8 [H, W, 3], not the full range."""
  rng = np.random.default_rng(seed)
  y, x, _ = np.mgrid[:height, :width, :1]
  waves = 120 + 70 * np.sin(x / 9 + np.arange(3)) * np.cos(y / 7)
  noisy = waves + rng.normal(0, 12, (height, width, 3))
  return noisy.clip(7, 243).astype(np.uint8)


def run(name, magnitude=10, image=None, seed=0):
  """What an operation makes of an image, which it must not change."""
  image = picture() if image is None else image
  before = image.copy()
  rng = np.random.default_rng(seed)
  result = randaugment.OPERATIONS[name](image, rng, magnitude)
  np.testing.assert_array_equal(image, before)
  return result


def blend(degenerate, image, factor):
  mix = degenerate + factor * (image.astype(float) - degenerate)
  return np.trunc(mix.clip(0, 255) + 1e-5).astype(np.uint8)


def apart(got, want):
  """Largest difference of any value."""
  return int(np.abs(got.astype(int) - want.astype(int)).max())


def sample_nearest(image, a, b, c, d, e, f):
  """Output (x, y) <- round(a x + b y + c), round(d x + e y + f), fill 128.

  Also says where the source is clear of the middle between two pixels, so
  that rounding can't be in doubt.
  """
  height, width, _ = image.shape
  y, x = np.mgrid[:height, :width]
  u, v = a * x + b * y + c, d * x + e * y + f
  i, j = np.floor(u + 0.5).astype(int), np.floor(v + 0.5).astype(int)
  inside = (i >= 0) & (i < width) & (j >= 0) & (j < height)
  result = np.full_like(image, 128)
  result[inside] = image[j[inside], i[inside]]
  return result, np.maximum(np.abs(u - i), np.abs(v - j)) < 0.49


def test_autocontrast_and_equalize():
  image = picture()
  low, high = image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)
  want = np.floor((image - low) / (high - low) * 255 + 1e-6).astype(np.uint8)
  np.testing.assert_array_equal(run("AutoContrast"), want)
  for c in range(3):
    values = image[..., c]
    counts = [int((values == v).sum()) for v in range(256)]
    step = (sum(counts) - counts[values.max()]) // 255
    for v in range(256):
      mapped = min((sum(counts[:v]) + step // 2) // step, 255)
      want[..., c][values == v] = mapped
  np.testing.assert_array_equal(run("Equalize"), want)
  flat = np.full((5, 4, 3), 77, np.uint8)
  for name in ("AutoContrast", "Equalize"):
    np.testing.assert_array_equal(run(name, image=flat), flat)


@pytest.mark.parametrize("m", MAGNITUDES)
def test_operations_on_single_values(m):
  image = picture()
  v = image.astype(int)
  bits = {0: 1, 10: 4, 15: 6, 20: 8}[m]
  threshold = {0: 0, 10: 0, 15: 128, 20: 0}[m]
  addition = {0: 0, 10: 110, 15: 165, 20: 220}[m]
  for name, want in (
    ("Invert", 255 - v),
    ("Posterize", v >> (8 - bits) << (8 - bits)),
    ("Solarize", np.where(v < threshold, v, 255 - v)),
    ("SolarizeAdd", np.where(v < 128, np.minimum(v + addition, 255), v)),
  ):
    np.testing.assert_array_equal(run(name, m), want, err_msg=name)


@pytest.mark.parametrize("m", [5, *MAGNITUDES])  # 5 is factor 1: the image.
def test_enhancements(m):
  image = picture()
  factor = {0: 0.1, 5: 1.0, 10: 1.9, 15: 2.8, 20: 3.7}[m]
  grey = np.rint(image @ [0.299, 0.587, 0.114])[..., None] * np.ones(3)
  smooth = image.astype(float)
  middle = 4 * smooth[1:-1, 1:-1]
  for y in range(3):
    for x in range(3):
      middle = middle + image[y : y + 59, x : x + 81]
  smooth[1:-1, 1:-1] = middle / 13
  for name, start, most in (
    # Grey may be rounded differently by one, and so may the blend.
    ("Color", grey, 1 + factor),
    ("Brightness", np.zeros(3), 1),
    ("Contrast", np.full(3, 61 * 83 // 256), 1),
    ("Sharpness", smooth, 1 + factor),
  ):
    got = run(name, m)
    assert apart(got, blend(start, image, factor)) <= (m != 5) * most, name
  flat = np.full((224, 224, 3), 196, np.uint8)
  np.testing.assert_array_equal(run("Contrast", m, flat), flat)


@pytest.mark.parametrize("m", MAGNITUDES)
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY"])
def test_rotation_and_shears(name, m):
  image = picture()
  found = set()
  for sign in (1, -1):
    angle, shear = np.deg2rad(sign * 3 * m), sign * 0.03 * m
    cos, sin, x, y = np.cos(angle), np.sin(angle), 41, 30  # The middle.
    matrix = {
      "Rotate": (
        *(cos, -sin, x - cos * x + sin * y),
        *(sin, cos, y - sin * x - cos * y),
      ),
      "ShearX": (1, shear, 0, 0, 1, 0),
      "ShearY": (1, 0, 0, shear, 1, 0),
    }[name]
    want, clear = sample_nearest(image, *matrix)
    assert clear.mean() > 0.9
    found |= {
      seed
      for seed in range(20)
      if np.array_equal(run(name, m, seed=seed)[clear], want[clear])
    }
  assert found == set(range(20))  # Each is one of the two.


def test_quarter_turns_are_counterclockwise():
  image = picture(40, 40)
  got = {run("Rotate", 30, image, seed).tobytes() for seed in range(20)}
  assert got == {np.rot90(image, k).tobytes() for k in (1, 3)}


@pytest.mark.parametrize("m", [0, 2.5, 10])
def test_translate(m):
  image, pixels = picture(), round(10 * m)
  padded = np.pad(image, ((99, 99), (99, 99), (0, 0)), constant_values=128)
  for name in ("TranslateX", "TranslateY"):
    wanted = []
    for p in (pixels, -pixels):
      x, y = (p, 0) if name == "TranslateX" else (0, p)
      whole = padded[max(99 + y, 0) :, max(99 + x, 0) :][:61, :83]
      wanted.append(
        whole if whole.shape == image.shape else np.full_like(image, 128)
      )
    got = {run(name, m, seed=seed).tobytes() for seed in range(20)}
    assert got == {want.tobytes() for want in wanted}


def test_cutout_is_a_square_about_any_pixel():
  black = np.zeros((8, 4, 3), np.uint8)
  hits, rng = np.zeros((8, 4)), np.random.default_rng(0)
  for _ in range(4000):
    # Pad 1: rows y-1 and y, columns x-1 and x.
    grey = randaugment.OPERATIONS["Cutout"](black, rng, 0.25)[..., 0]
    hits[tuple(np.argwhere(grey == 128).max(0))] += 1
  assert hits.min() > 80 and hits.max() < 175  # 125 expected.
  for m, pad in ((10, 40), (15, 60), (20, 80)):
    image = np.zeros((400, 401, 3), np.uint8)
    sizes = [(run("Cutout", m, image, s) == 128).sum() / 3 for s in range(20)]
    assert max(sizes) == (2 * pad) ** 2
  np.testing.assert_array_equal(run("Cutout", 0), picture())


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
  st.integers(1, 4),
  st.floats(0, 30),
  st.integers(0, 2**32),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_apply_is_a_function_of_the_generator(
  height, width, layers, magnitude, seed
):
  image = picture(height, width, seed)
  before = image.copy()
  got, again = (
    randaugment.apply(image, np.random.default_rng(seed), layers, magnitude)
    for _ in range(2)
  )
  np.testing.assert_array_equal(got, again)
  np.testing.assert_array_equal(image, before)
  assert got.shape == image.shape and got.dtype == np.uint8
  assert got.flags.c_contiguous and got.flags.writeable
  assert not np.shares_memory(got, image)
