"""RandAugment against definitions written out here in plain numpy."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mixer import randaugment


def picture(height=61, width=83, seed=0):
  """Smooth colours and some noise, uint8 [H, W, 3], not the full range."""
  rng = np.random.default_rng(seed)
  y, x, _ = np.mgrid[:height, :width, :1]
  waves = 120 + 70 * np.sin(x / 9 + np.arange(3)) * np.cos(y / 7)
  noisy = waves + rng.normal(0, 12, (height, width, 3))
  return noisy.clip(7, 243).astype(np.uint8)


def run(name, magnitude, image, seed=0, scale=1.0):
  """What an operation makes of an image, which it must not change."""
  before = image.copy()
  rng = np.random.default_rng(seed)
  result = randaugment.OPERATIONS[name](image, rng, magnitude, scale)
  np.testing.assert_array_equal(image, before)
  return result


def of_values(name, image, m):
  """What becomes of each value by itself, or by its channel's histogram."""
  v = image.astype(int)
  if name == "AutoContrast":
    low, high = v.min((0, 1)), v.max((0, 1))
    return (v - low) * 255 // (high - low)
  if name == "Equalize":
    result = v.copy()
    for c in range(3):
      counts = [int((v[..., c] == k).sum()) for k in range(256)]
      step = (sum(counts) - counts[v[..., c].max()]) // 255
      for k in range(256):
        mapped = min((sum(counts[:k]) + step // 2) // step, 255)
        result[..., c][v[..., c] == k] = mapped
    return result
  bits = {0: 1, 10: 4, 15: 6, 20: 8}[m]
  threshold = {0: 0, 10: 0, 15: 128, 20: 0}[m]
  more = {0: 0, 10: 110, 15: 165, 20: 220}[m]
  return {
    "Invert": 255 - v,
    "Posterize": v >> (8 - bits) << (8 - bits),
    "Solarize": np.where(v < threshold, v, 255 - v),
    "SolarizeAdd": np.where(v < 128, np.minimum(v + more, 255), v),
  }[name]


@pytest.mark.parametrize("m", [0, 10, 15, 20])
def test_operations_on_single_values(m):
  for name in (
    *("AutoContrast", "Equalize", "Invert"),
    *("Posterize", "Solarize", "SolarizeAdd"),
  ):
    got = run(name, m, picture())
    want = of_values(name, picture(), m)
    np.testing.assert_array_equal(got, want, err_msg=name)
  flat = np.full((5, 4, 3), 77, np.uint8)
  for name in ("AutoContrast", "Equalize"):
    np.testing.assert_array_equal(run(name, m, flat), flat)


@pytest.mark.parametrize("m", [0, 5, 10, 15, 20])  # 5 is factor 1: the image.
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
    want = np.trunc((start + factor * (image - start)).clip(0, 255) + 1e-5)
    apart = np.abs(run(name, m, image) - want).max()
    assert apart <= (m != 5) * most, name


def geometric(name, m, sign):
  """Output (x, y) <- (a x + b y + c, d x + e y + f) of a 61 x 83 image."""
  angle, shear, shift = np.deg2rad(sign * 3 * m), sign * 0.03 * m, sign * 10 * m
  cos, sin, x, y = np.cos(angle), np.sin(angle), 41, 30  # The middle.
  turned = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
  return {
    "Rotate": turned,
    "ShearX": (1, shear, 0, 0, 1, 0),
    "ShearY": (1, 0, 0, shear, 1, 0),
    "TranslateX": (1, 0, shift, 0, 1, 0),
    "TranslateY": (1, 0, 0, 0, 1, shift),
  }[name]


@pytest.mark.parametrize("m", [0, 2.5, 10, 15, 20])
@pytest.mark.parametrize(
  "name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"]
)
def test_geometric_operations(name, m):
  image, found = picture(), set()
  for sign in (1, -1):
    a, b, c, d, e, f = geometric(name, m, sign)
    y, x = np.mgrid[:61, :83]
    u, v = a * x + b * y + c, d * x + e * y + f
    i, j = np.rint(u).astype(int), np.rint(v).astype(int)
    inside = (i >= 0) & (i < 83) & (j >= 0) & (j < 61)
    want = np.full_like(image, 128)
    want[inside] = image[j[inside], i[inside]]
    # Clear of the middle between two pixels, where rounding is in doubt.
    clear = np.maximum(np.abs(u - i), np.abs(v - j)) < 0.49
    assert clear.mean() > 0.9
    found |= {
      seed
      for seed in range(20)
      if np.array_equal(run(name, m, image, seed)[clear], want[clear])
    }
  assert found == set(range(20))  # Each is one of the two.


def test_cutout_is_a_square_about_any_pixel():
  black = np.zeros((8, 4, 3), np.uint8)
  hits, rng = np.zeros((8, 4)), np.random.default_rng(0)
  for _ in range(4000):
    # Pad 1: rows y-1 and y, columns x-1 and x.
    grey = randaugment.OPERATIONS["Cutout"](black, rng, 0.25, 1.0)[..., 0]
    hits[tuple(np.argwhere(grey == 128).max(0))] += 1
  assert hits.min() > 80 and hits.max() < 175  # 125 expected.
  for m, pad in ((0, 0), (10, 40), (15, 60), (20, 80)):
    image = np.zeros((400, 401, 3), np.uint8)
    sizes = [(run("Cutout", m, image, s) == 128).sum() / 3 for s in range(20)]
    assert max(sizes) == (2 * pad) ** 2


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_pixels_are_counted_by_the_size_where_they_are_scaled(name):
  image = picture(112, 112)
  for seed in range(4):
    got = run(name, 10, image, seed, scale=112 / 224)
    if name in ("TranslateX", "TranslateY", "Cutout"):  # Of half the pixels.
      want = run(name, 5, image, seed)
    elif name == "Contrast":  # From the grey level as of 224 x 224 pixels.
      want = run(name, 10, np.tile(image, (2, 2, 1)), seed)[:112, :112]
    else:
      want = run(name, 10, image, seed)
    np.testing.assert_array_equal(got, want)
  options = {"layers": 1, "magnitude": 10}
  drawn = [
    [
      randaugment.apply(
        image, np.random.default_rng(s), scaled=scaled, **options
      )
      for s in range(40)
    ]
    for scaled in (False, True)
  ]
  assert 3 < sum((a != b).any() for a, b in zip(*drawn, strict=True)) < 20


def test_operations_are_drawn_uniformly_with_replacement(monkeypatch):
  names, drawn = list(randaugment.OPERATIONS), []
  assert len(names) == 16
  recorders = [lambda i, *_, n=n: (drawn.append(n), i)[1] for n in names]
  monkeypatch.setattr(randaugment, "_OPERATIONS", recorders)
  rng = np.random.default_rng(0)
  for _ in range(4000):
    randaugment.apply(picture(2, 2), rng, 2, 10)
  counts = collections.Counter(drawn)
  assert set(counts) == set(names) and sum(counts.values()) == 8000
  assert min(counts.values()) > 400 and max(counts.values()) < 600
  same = sum(a == b for a, b in zip(drawn[::2], drawn[1::2], strict=True))
  assert same > 150  # 250 expected.


@hypothesis.given(
  st.tuples(st.integers(1, 40), st.integers(1, 40)),
  st.integers(1, 4),
  st.floats(0, 30),
  st.integers(0, 2**32),
)
@hypothesis.settings(max_examples=100)
def test_apply_is_a_function_of_the_generator(shape, layers, magnitude, seed):
  image = picture(*shape, seed)
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
