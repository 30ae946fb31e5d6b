"""Preprocessing against its definitions, in float64 and by counting."""

import base64
import concurrent.futures
import hashlib
import io
import struct
import warnings
import zlib

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from mixer import errors, images, preprocess, randaugment


def picture(height, width, seed=0):
  """Smooth colours and some noise, uint8 [H, W, 3]."""
  rng = np.random.default_rng(seed)
  y, x, _ = np.mgrid[:height, :width, :1]
  waves = 128 + 80 * np.sin(x / 31 + np.arange(3)) * np.cos(y / 23)
  noisy = waves + rng.normal(0, 10, (height, width, 3))
  return noisy.clip(0, 255).astype(np.uint8)


def encode(image, kind="png", mode=None, **options):
  pil = image if isinstance(image, Image.Image) else Image.fromarray(image)
  buffer = io.BytesIO()
  (pil.convert(mode) if mode else pil).save(buffer, kind, **options)
  return buffer.getvalue()


def grey16_png(values):
  """A 16-bit grey PNG, written by hand: uint16 [H, W] to bytes."""

  def chunk(kind, data):
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

  height, width = values.shape
  header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + chunk(b"IDAT", zlib.compress(rows))
    + chunk(b"IEND", b"")
  )


def area_matrix(size, new_size):
  """float64 [new, old]: how much of each old pixel a new one covers."""
  edge = np.arange(new_size + 1)[:, None] * size / new_size
  old = np.arange(size)
  cover = np.minimum(edge[1:], old + 1) - np.maximum(edge[:-1], old)
  return cover.clip(0) * new_size / size


def area_resize(image, height, width):
  rows = area_matrix(image.shape[0], height)
  columns = area_matrix(image.shape[1], width)
  image = image.astype(float)
  return np.einsum("hy,yxc,wx->hwc", rows, image, columns, optimize=True)


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


# Decoding.


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp", "ppm"])
def test_decode_gives_the_pixels_back(kind):
  image = picture(37, 53)
  options = {"lossless": True} if kind == "webp" else {}
  got = preprocess.decode(encode(image, kind, **options))
  np.testing.assert_array_equal(got, image)
  assert got.dtype == np.uint8 and got.flags.c_contiguous


def test_decode_grey():
  image = picture(37, 53)[..., 0]
  for encoded in (encode(image), encode(image, mode="LA")):
    got = preprocess.decode(encoded)
    np.testing.assert_array_equal(got, np.stack([image] * 3, -1))
  got = preprocess.decode(encode(image > 128))
  np.testing.assert_array_equal(got[..., 1], (image > 128) * np.uint8(255))


def test_decode_drops_transparency():
  image = picture(37, 53)
  alpha = np.random.default_rng(0).integers(0, 256, (37, 53, 1), np.uint8)
  got = preprocess.decode(encode(np.concatenate([image, alpha], -1)))
  np.testing.assert_array_equal(got, image)


@pytest.mark.parametrize(
  ("kind", "transparency"),
  [("png", None), ("png", 3), ("png", b"\1\2\3"), ("gif", None), ("gif", 3)],
  ids=range(5),
)
def test_decode_palette(kind, transparency):
  options = {} if transparency is None else {"transparency": transparency}
  pil = Image.fromarray(picture(37, 53)).quantize(16)
  got = preprocess.decode(encode(pil, kind, **options))
  np.testing.assert_array_equal(got, np.array(pil.convert("RGB")))


def test_decode_cmyk():
  image = picture(64, 48)
  inks = np.dstack([255 - image, np.full((64, 48), 60, np.uint8)])
  pil = Image.fromarray(inks, "CMYK")
  want = (255.0 - inks[..., :3]) * (255 - 60) / 255
  got = preprocess.decode(encode(pil, "tiff"))
  assert np.abs(got - want).max() <= 1
  got = preprocess.decode(encode(pil, "jpeg", quality=95, subsampling=0))
  assert np.abs(got - want).mean() < 3


def tiff_grey(values, **tags):
  """An uncompressed grey TIFF with tags beyond Pillow's own."""
  names = {"largest": 281, "signed_largest": 341}
  info = TiffImagePlugin.ImageFileDirectory_v2()
  for name, value in tags.items():
    info[names[name]] = value
  return encode(Image.fromarray(values), "tiff", tiffinfo=info)


def tiff_12_bits(values):
  """uint16 [H, W], W even, to a TIFF of 12 bits a value."""
  a, b = values[:, ::2].astype(int), values[:, 1::2].astype(int)
  packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1)
  data = packed.astype(np.uint8).tobytes()
  height, width = values.shape
  fields = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 277: 1}
  fields |= {273: 8 + 2 + 12 * 9 + 4, 278: height, 279: len(data)}
  directory = b"".join(
    struct.pack("<HHII", tag, 4, 1, fields[tag]) for tag in sorted(fields)
  )
  return b"II*\0\x08\0\0\0" + struct.pack("<H", 9) + directory + bytes(4) + data


def test_the_declared_depth_is_used():
  values = np.random.default_rng(0).integers(0, 2**12, (8, 10)).astype("u2")
  want = np.stack([values >> 4] * 3, -1)
  for encoded in (
    tiff_12_bits(values),
    tiff_grey(values, largest=4095),
    tiff_grey(values.astype(np.int32), largest=4095),
    b"P5 10 8 4095 " + values.astype(">u2").tobytes(),
  ):
    got = preprocess.decode(encoded).astype(int)
    assert np.abs(got - want).max() <= 1  # 4095 needn't become all of 65535.
    opened = images.open_image(encoded)
    assert not opened.dark
  eight = values >> 4
  got = preprocess.decode(tiff_grey(eight, largest=255))
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
  ("kind", "dtype"), [("png", "u2"), ("tiff", "u2"), ("tiff", "i4")]
)
def test_values_that_leave_the_high_byte_empty_are_told(kind, dtype):
  values = np.arange(200, dtype=dtype).reshape(10, 20)
  for factor in (1, 256):
    opened = images.open_image(encode(Image.fromarray(values * factor), kind))
    assert opened.dark == (factor == 1)
    assert opened.pixels().any() == (factor != 1)


def test_decode_16_bits_keeps_the_high_byte():
  values = np.random.default_rng(0).integers(0, 2**16, (19, 23))
  want = np.stack([values >> 8] * 3, -1)
  np.testing.assert_array_equal(preprocess.decode(grey16_png(values)), want)
  grey = Image.fromarray(values.astype(np.uint16))
  got = preprocess.decode(encode(grey, "tiff"))
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_decode_refuses_values_without_a_range(dtype):
  values = np.full((4, 4), 1_000_000, dtype)
  with pytest.raises(ValueError, match="no agreed range; save it as 8-bit"):
    preprocess.decode(encode(values, "tiff"))


def test_decode_ignores_the_orientation_in_exif():
  image = picture(40, 64)
  exif = Image.Exif()
  exif[0x0112] = 6  # Turn by 90 degrees.
  turned = preprocess.decode(encode(image, "jpeg", exif=exif))
  np.testing.assert_array_equal(
    turned, preprocess.decode(encode(image, "jpeg"))
  )
  assert turned.shape == (40, 64, 3)


def test_decode_takes_the_first_frame():
  frames = [Image.fromarray(picture(20, 30, s)).quantize(16) for s in (0, 1)]
  encoded = encode(frames[0], "gif", save_all=True, append_images=frames[1:])
  want = np.array(frames[0].convert("RGB"))
  np.testing.assert_array_equal(preprocess.decode(encoded), want)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_truncated_images_are_refused(kind, part):
  encoded = encode(picture(200, 300), kind)
  cut = encoded[: int(part * len(encoded))]
  for function in (preprocess.decode, preprocess.evaluation):
    with pytest.raises(
      images.ImageError, match="^cannot decode the image: .*[Tt]runcated"
    ):
      function(cut)


def test_what_is_no_image_is_refused():
  with pytest.raises(ValueError, match="^the image is empty: 0 bytes$"):
    preprocess.decode(b"")
  page = b"<html>404 Not Found</html>"
  with pytest.raises(ValueError, match="26 bytes that begin with b'<html>404"):
    preprocess.decode(page)
  options = preprocess.TrainOptions()
  with pytest.raises(ValueError, match="^not an image in any format"):
    preprocess.train(page, np.random.default_rng(0), options)


def test_decompression_bombs_are_refused():
  encoded = encode(picture(8, 8), "bmp")
  bomb = encoded[:18] + struct.pack("<ii", 40_000, 40_000) + encoded[26:]
  with pytest.raises(images.ImageError, match="more than .* pixels") as e:
    preprocess.decode(bomb)
  assert e.value.kind == "too large"


def test_too_many_bytes_pixels_or_scans_are_refused(monkeypatch):
  whole = encode(picture(40, 50), "jpeg", progressive=True)
  at = whole.index(b"\xff\xda", whole.index(b"\xff\xda") + 2)
  scans = whole[:at] + whole[at:-2] * 100 + whole[-2:]
  with pytest.raises(images.ImageError, match="more than 100 scans"):
    preprocess.decode(scans)
  for kind in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm", "avif"):
    # By a decoder that takes more memory the half is too large.
    factor = 2 if kind in ("webp", "avif") else 1
    encoded = encode(picture(40, 50), kind)
    monkeypatch.setattr(images, "MAX_PIXELS", 2000 * factor)
    assert preprocess.decode(encoded).shape == (40, 50, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 2000 * factor - 2)
    with pytest.raises(images.ImageError, match=r"50 x 40 .*more than"):
      preprocess.decode(encoded)
  monkeypatch.setattr(images, "MAX_PIXELS", 10**9)
  for shape in ((2, 1 << 20), (1 << 20, 2)):
    black = np.zeros((*shape, 3), np.uint8)
    assert preprocess.evaluation(encode(black)).shape == (224, 224, 3)
    monkeypatch.setattr(images, "_MAX_SIDE", (1 << 20) - 1)
    with pytest.raises(images.ImageError, match="1,048,575 on a side"):
      preprocess.decode(encode(black))
    monkeypatch.undo()
  monkeypatch.setattr(images, "MAX_BYTES", len(whole) - 1)
  with pytest.raises(images.ImageError, match=f"{len(whole):,} bytes, more"):
    preprocess.decode(whole)


@pytest.mark.parametrize(
  "kind", ["eps", "ico", "jpeg2000", "pcx", "tga", "sgi", "dds", "icns"]
)
def test_other_formats_are_not_decoded(kind, monkeypatch):
  # Of these Pillow starts Ghostscript for the first.
  encoded = encode(picture(40, 50), kind)
  monkeypatch.setattr(Image, "open", None)
  with pytest.raises(images.ImageError) as e:
    preprocess.decode(encoded)
  assert e.value.kind in ("unsupported", "not an image")


def rotated_411(height=64, width=96):
  """A JPEG of 4:4:1, for which simplejpeg has no name."""
  done, turned = cv2.imencode(
    ".jpg",
    picture(width, height),
    [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411],
  )
  assert done
  data = bytearray(turned.tobytes())
  frame = data.index(b"\xff\xc0")
  assert data[frame + 11] == 0x41
  data[frame + 11] = 0x14
  # As many units as before, though in other places.
  data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
  return bytes(data)


def jpegs_with_warnings():
  """JPEGs of which libjpeg warns, or that simplejpeg doesn't know."""
  encoded = encode(picture(64, 96), "jpeg")
  icc = b"\xff\xe2\0\x12ICC_PROFILE\0\1\2ab"
  return {
    "chunk 1 of 2": encoded[:2] + icc + encoded[2:],
    "marker FF 00": encoded[:2] + b"\xff\0" + encoded[2:],
    "4:4:1": rotated_411(),
    "bytes too many": encoded[:-2] + b"\x12\x34" * 50 + encoded[-2:],
  }


@pytest.mark.parametrize("kind", jpegs_with_warnings())
def test_an_image_never_is_the_one_before_it(kind):
  encoded = jpegs_with_warnings()[kind]
  want = np.array(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)
  other = encode(255 - picture(64, 96), "jpeg")
  options = preprocess.TrainOptions(size=32, crop="resize", flip=False)
  for function, wanted in (
    (preprocess.decode, want),
    (lambda e: preprocess.evaluation(e, 64, 64), want[:, 16:80]),
    (
      lambda e: preprocess.train(e, np.random.default_rng(0), options),
      preprocess.resize(want.astype(np.uint8), 32).astype(int),
    ),
  ):
    function(other)  # Into the buffer of this thread.
    assert np.abs(function(encoded) - wanted).mean() < 2


def test_no_bits_of_a_header_give_the_image_before():
  """All that simplejpeg raises for, and each answer with its own pixels."""
  encoded = encode(picture(32, 32), "jpeg", quality=50)
  other = encode(np.full((32, 32, 3), 255, np.uint8), "jpeg")
  for place in range(2, encoded.index(b"\xff\xda")):
    for value in (0, 1, 0xFF, encoded[place] ^ 0x10):
      bent = encoded[:place] + bytes([value]) + encoded[place + 1 :]
      assert preprocess.decode(other).min() == 255
      try:
        got = preprocess.decode(bent)
      except images.ImageError:
        continue
      assert got.min() < 255


def test_warnings_of_pillow_are_none_and_filters_stay():
  """In several threads, too."""
  encoded = encode(picture(20, 30), "webp", exif=b"Exif\0\0II*\0\xff\xff")
  before = list(warnings.filters)
  for _ in range(20):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      list(pool.map(preprocess.decode, [encoded] * 40))
  assert warnings.filters == before
  with pytest.warns(UserWarning, match="still told"):
    warnings.warn("still told", stacklevel=1)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=200, deadline=None)
def test_damaged_bytes_give_an_image_or_a_value_error(data):
  kind = data.draw(st.sampled_from(["jpeg", "png", "gif", "bmp", "webp"]))
  encoded = bytearray(encode(picture(16, 24), kind))
  for _ in range(data.draw(st.integers(1, 4))):
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255))
  hypothesis.assume(_declared_pixels(bytes(encoded)) < 10**6)
  try:
    got = preprocess.decode(bytes(encoded))
  except ValueError as error:
    assert str(error)
  else:
    assert got.dtype == np.uint8 and got.ndim == 3 and got.shape[2] == 3


def _declared_pixels(encoded):
  """Keeps the test from allocating what a damaged header asks for."""
  try:
    size = Image.open(io.BytesIO(encoded)).size
  except Exception:
    return 0
  return size[0] * size[1]


# Random crops.


def crop_boxes(height, width, count, area=(0.05, 1.0), aspect=(3 / 4, 4 / 3)):
  rng = np.random.default_rng(0)
  draw = [
    images.crop_box(height, width, rng, area, aspect) for _ in range(count)
  ]
  return np.array(draw).T


def area_distribution(height, width, fraction):
  """P(crop's area <= fraction), from the law that the docstring states."""
  ratio = np.linspace(3 / 4, 4 / 3, 2001)
  pixels = height * width
  high = np.minimum(np.sqrt(pixels / ratio), np.minimum(height, width / ratio))
  low = np.sqrt(0.05 * pixels / ratio)
  below = np.sqrt(fraction * pixels / ratio)
  return ((below - low) / (high - low)).clip(0, 1).mean()


@pytest.mark.parametrize("shape", [(1000, 1000), (750, 1000), (1600, 800)])
def test_inception_crop_follows_its_law(shape):
  height, width = shape
  left, top, right, bottom = crop_boxes(height, width, 20_000)
  got = (right - left) * (bottom - top) / (height * width)
  for fraction in np.linspace(0.05, 1, 20):
    want = area_distribution(height, width, fraction)
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


def test_mean_area_of_a_crop():
  left, top, right, bottom = crop_boxes(375, 500, 20_000)
  mean = ((right - left) * (bottom - top)).mean() / (375 * 500)
  assert mean == pytest.approx(0.343, abs=0.01)  # See the docstring.


@hypothesis.given(
  st.integers(1, 300),
  st.integers(1, 300),
  st.floats(0.01, 1),
  st.floats(0.01, 1),
  st.floats(0.2, 5),
  st.floats(0.2, 5),
  st.integers(0, 2**32),
)
@hypothesis.settings(max_examples=300, deadline=None)
def test_crops_lie_inside_and_within_the_limits(h, w, a, b, r, s, seed):
  area, aspect = (min(a, b), max(a, b)), (min(r, s), max(r, s))
  rng = np.random.default_rng(seed)
  left, top, right, bottom = images.crop_box(h, w, rng, area, aspect)
  assert 0 <= left < right <= w and 0 <= top < bottom <= h
  pixels = (right - left) * (bottom - top)
  whole = (left, top, right, bottom) == (0, 0, w, h)
  assert whole or area[0] * h * w <= pixels <= area[1] * h * w
  # The width is the rounded product of the height and a ratio in range.
  tall = bottom - top
  wide = right - left
  assert whole or aspect[0] * tall - 0.5 <= wide <= aspect[1] * tall + 0.5


@pytest.mark.parametrize("shape", [(10, 400), (400, 10)])
def test_a_strip_is_squashed_whole(shape):
  image = picture(*shape)
  got = preprocess.inception_crop(image, np.random.default_rng(0), 32)
  np.testing.assert_array_equal(got, preprocess.resize(image, 32))


def test_inception_crop_resizes_its_box_alone():
  image = picture(120, 90)
  box = images.crop_box(
    120, 90, np.random.default_rng(5), (0.05, 1.0), (3 / 4, 4 / 3)
  )
  left, top, right, bottom = box
  want = preprocess.resize(image[top:bottom, left:right], (40, 24))
  got = preprocess.inception_crop(image, np.random.default_rng(5), (40, 24))
  np.testing.assert_array_equal(got, want)


# Flips, resizing, affine.


def test_flip_mirrors_half_of_the_images():
  image = picture(4, 6)
  rng = np.random.default_rng(0)
  flipped = 0
  for _ in range(4000):
    got = preprocess.flip(image, rng)
    same = np.array_equal(got, image)
    assert same or np.array_equal(got, image[:, ::-1])
    flipped += not same
  assert 1850 < flipped < 2150  # Within five standard deviations.


def test_resize_enlarges_bilinearly():
  image = picture(24, 17)
  got = preprocess.resize(image, (61, 50))
  assert np.abs(got - bilinear_enlarge(image, 61, 50)).max() <= 1
  np.testing.assert_array_equal(preprocess.resize(image, (24, 17)), image)


def test_resize_shrinks_without_aliasing():
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::2] = 254
  got = preprocess.resize(stripes, 16)[:, 1:-1]
  assert np.abs(got.astype(int) - 127).max() <= 1


def test_affine_that_does_nothing():
  image = picture(16, 16)
  rng = np.random.default_rng(0)
  got = preprocess.affine(image, rng, 0, 0, 0)
  np.testing.assert_array_equal(got, image)


def test_affine_scales_about_the_middle():
  image = np.zeros((33, 33, 3), np.uint8)
  image[12:21, 12:21] = 255  # 9 x 9.
  rng = np.random.default_rng(0)
  sides = []
  for _ in range(300):
    got = preprocess.affine(image, rng, 0, 0.5, 0)
    np.testing.assert_allclose(got, got[::-1, ::-1], atol=2)
    sides.append(got[16, :, 0].sum() / 255)
  assert 4.4 < min(sides) < 5.2 and 12.8 < max(sides) < 13.7
  assert np.mean(sides) == pytest.approx(9, abs=0.8)


def test_affine_shifts_by_whole_images_leave_black():
  image = np.full((16, 16, 3), 255, np.uint8)
  rng = np.random.default_rng(0)
  bright = [preprocess.affine(image, rng, 0, 0, 1).mean() for _ in range(999)]
  # Each axis keeps 1 - |u| of its length, u uniform in [-1, 1]: a half.
  assert np.mean(bright) == pytest.approx(255 / 4, rel=0.15)


def test_affine_turns_both_ways():
  image = np.zeros((31, 31, 3), np.uint8)
  image[15, 15:] = 255
  rng = np.random.default_rng(0)
  angles = []
  for _ in range(300):
    got = preprocess.affine(image, rng, 40, 0, 0)[..., 0].astype(float)
    y, x = np.mgrid[:31, :31] - 15
    angles.append(np.degrees(np.arctan2((got * y).sum(), (got * x).sum())))
  assert -41 < min(angles) < -36 and 36 < max(angles) < 41
  assert abs(np.mean(angles)) < 6


# Evaluation.


@pytest.mark.parametrize(
  "shape",
  [(375, 500), (500, 375), (257, 256), (256, 256), (600, 601), (1000, 1500)]
  + [(200, 340), (255, 130), (129, 400), (8, 8), (32, 32), (100, 128)],
)
def test_evaluation_is_the_area_filter_and_a_central_crop(shape):
  image = picture(*shape)
  factor = 256 / min(shape)
  height, width = round(shape[0] * factor), round(shape[1] * factor)
  top, left = (height - 224) // 2, (width - 224) // 2
  want = area_resize(image, height, width)[top : top + 224, left : left + 224]
  got = preprocess.evaluation(encode(image))
  assert got.shape == (224, 224, 3) and got.dtype == np.uint8
  check_cut_off(got, want)


def check_cut_off(got, want):
  """Whole numbers below the exact means, but for float32's errors."""
  assert ((want - got > -0.02) & (want - got < 1.02)).all()
  assert np.abs(np.floor(want + 1e-9) - got).mean() < 0.2


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
  (2000, 3000): "acba9465c4ad",
}


@pytest.mark.parametrize("shape", _TENSORFLOW)
def test_evaluation_is_tensorflows_to_the_bit(shape):
  got = preprocess.evaluation_of_pixels(pattern(*shape))
  assert digest(got) == _TENSORFLOW[shape]


# JPEGs of 44 x 60, and digests of TensorFlow's decode_jpeg and of its resizing
# to 32 and cropping to 28.
_JPEGS = {
  "420": (
    "ead83bfe2a45",
    "d42a74515717",
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySU"
    "BMS0dARkVQWnNiUFVtVkVGZIhlbXd7gYKBTmCNl4x9lnN+gXz/2wBDARUXFx4aHjshITt8"
    "U0ZTfHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fH"
    "z/wAARCAAsADwDASIAAhEBAxEB/8QAGgABAAIDAQAAAAAAAAAAAAAABQQGAAEDAv/EAB8Q"
    "AAEEAwEBAQEAAAAAAAAAAAABAgQhAxIxIhETFP/EABgBAQEAAwAAAAAAAAAAAAAAAAQFAA"
    "MG/8QAGhEAAgMBAQAAAAAAAAAAAAAAAAMBAhIRIv/aAAwDAQACEQMRAD8AsaMTQOmMSyYm"
    "ZNA6ZmSwt0ezEOnhB0TcThsSgf8AZNxOHmSihRHgO509FlYmgZMYlk5cyaBczMlk+yPYlL"
    "pyRUYm5PxMTRApMybiGLMmiWUaI8hXOnpiSPHQ6ZI7Z1T7oHTPtmm942JQmeHD+j30ThyO"
    "WA3uJQ/tFCjIwHcmejqyPHQuZI7ZIX7oGTPtk+142JSmcnJJHvohikeEsET7uIYvuiFKl4"
    "yFcmejyYPHA6Zg7RY0Y3TgdMY26OavedldExwrX4e+CcOPyjWjd+CcNjaofS84DumOmlj+"
    "OBkzB2iyqxunAyYxt0T7XnYlMxkrqYPfCfij+Eo9Ixu/BDExuiUUqXnIV0x0/9k=",
  ),
  "inks": (
    "342f615306f0",
    "f82427039039",
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAoHB4jHhkoIyEjLSsoMDxkQTw3Nzx7WF1JZJGAmZ"
    "aPgIyKoLTmw6Cq2q2KjMj/y9ru9f///5vB////+v/m/f/4/8AAFAgALAA8BEMRAE0RAFkR"
    "AEsRAP/EABkAAQEAAwEAAAAAAAAAAAAAAAQAAQMFAv/EABsQAAICAwEAAAAAAAAAAAAAAA"
    "ADAQIREiEi/9oADgRDAE0AWQBLAAA/AOim0YOpNY1Nr1cOyZbaMA31gDdXojnttGQ0VjY2"
    "oV0iVaMjUVgfRXkjoKtGBFqxqaHq4Rh1owCfWANleiOe20ZD1rGwhCiMVtGBlKxqNqrhG5"
    "LeCJv5Nj6xgjLW8BvuAvWMkc9rehov6NyKxkiU3o1Fx1KxqR0FN4ItfyaX1jBGHN4CfcDa"
    "sbEAa3porf0IRWCMVbwXS8aja1jBG5NpweZb5DPZwjLbTgG9oG7OkAbachob6NyGdIwq05"
    "GoaOozyR0FWnAizfJoezhGHWnAF7QNmeiANtOTRVvoQhhGK2nAujfI2rOEdNK+GZmdTmvb"
    "wjLV8BvmQN2+iOe1fQ0TOxuQ3pEpfRqJkdRvkjoKXwRaZ1ND28Iw5fAT5kDZvojntX0PWZ"
    "2EIaRiq+DKTOo2reEd1KuDpX5BPzgjLVcBPWAvnJHParoaF+jcjOSJSujULHUzqR0FK4Is"
    "vyaX5wRhyuAnrA2zsRz2q6aKr9CEZIxVXBdF+Rtc4I7CY4dSaxqeX1jBGWxwG+sAL1jYgD"
    "Y6GisbG5FYyRKjo1FYHUrGCHqjgi1Y1NL6xgjDY4CfWANqxsQBsdD1rGxvRWCMVjgulY1H"
    "VrGCP//Z",
  ),
  "grey": (
    "efdff4db7eb0",
    "db893739382b",
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySU"
    "BMS0dARkVQWnNiUFVtVkVGZIhlbXd7gYKBTmCNl4x9lnN+gXz/wAALCAAsADwBAREA/8QA"
    "FwABAQEBAAAAAAAAAAAAAAAABQQGAP/EAB8QAAEEAwEBAQEAAAAAAAAAAAABAgQhAxIxIh"
    "ETFP/aAAgBAQAAPwDRoxNA6YxLDNE3E4bEoRViaBkxiWHoxNy/ExNEL0zJoHTMyWGfsm4n"
    "DzJQiuZNAuZmSw9MybiGLMmiWckjx0OmSO2Gf0e+icORyxFZHjoXMkdsPSR76IYpHhLKE+"
    "6B0z7Ybe4lD+0Ir90DJn2w9Pu4hi+6IPJg8cDpmDtBn4e+CcOPyhFY/jgZMwdoPTB74X4o"
    "/hKNMjG6cDpjG3QZo3fgnDY2qEVY3TgZMY26DkY3fghiY3RKP//Z",
  ),
}


@pytest.mark.parametrize("kind", _JPEGS)
def test_jpegs_are_tensorflows_to_the_bit(kind):
  whole, cropped, text = _JPEGS[kind]
  encoded = base64.b64decode(text)
  assert digest(preprocess.decode(encoded)) == whole
  assert digest(preprocess.evaluation(encoded, 28, 32)) == cropped
  # The other ways in see the same pixels.
  want = preprocess.decode(encoded)
  options = preprocess.TrainOptions(size=(44, 60), crop="resize", flip=False)
  got = preprocess.train(encoded, np.random.default_rng(0), options)
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_evaluation_of_other_modes(mode):
  pil = Image.fromarray(picture(300, 410)).convert(mode)
  encoded = encode(pil, "tiff" if mode == "CMYK" else "png")
  rgb = np.array(pil.convert("RGB"))
  want = area_resize(rgb, 256, 350)[16:240, 63:287]
  assert np.abs(preprocess.evaluation(encoded) - want).mean() < 1


def test_evaluation_of_16_bits():
  values = picture(300, 410)[..., 0].astype(np.uint16) * 256 + 99
  rgb = np.stack([values >> 8] * 3, -1)
  want = area_resize(rgb, 256, 350)[16:240, 63:287]
  got = preprocess.evaluation(grey16_png(values))
  assert np.abs(got - want).mean() < 1


@hypothesis.given(
  st.integers(1, 120),
  st.integers(1, 120),
  st.integers(1, 40),
  st.integers(1, 40),
  st.integers(0, 20),
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_evaluation_is_its_parts(height, width, crop_h, crop_w, more):
  image = picture(height, width)
  short = max(crop_h, crop_w) + more
  got = preprocess.evaluation(encode(image, "bmp"), (crop_h, crop_w), short)
  resized = preprocess.resize_short(image, short)
  assert min(resized.shape[:2]) == short
  want = preprocess.central_crop(resized, (crop_h, crop_w))
  assert got.shape == (crop_h, crop_w, 3)
  assert got.flags.c_contiguous and got.flags.writeable
  np.testing.assert_array_equal(got, want)


def test_evaluation_of_a_very_long_strip_needs_no_room():
  # Resized whole it would have 3.9 billion pixels.
  got = preprocess.evaluation(encode(picture(1, 60_000), "png"))
  assert got.shape == (224, 224, 3)


def test_evaluation_leaves_an_image_of_the_right_size_alone():
  image = picture(16, 16)
  got = preprocess.evaluation(encode(image), 16, 16)
  np.testing.assert_array_equal(got, image)


def test_a_flat_image_stays_flat_but_for_what_is_cut_off():
  for shape in [(11, 333), (700, 409)]:
    got = preprocess.evaluation(encode(np.full((*shape, 3), 255, np.uint8)))
    assert got.min() >= 254  # As TensorFlow has it.
  got = preprocess.evaluation(encode(np.full((512, 512, 3), 255, np.uint8)))
  np.testing.assert_array_equal(got, 255)


@pytest.mark.parametrize("shape", [(90, 130), (10, 100), (100, 10), (28, 28)])
def test_evaluation_can_squeeze_instead_of_cropping(shape):
  image = picture(*shape)
  got = preprocess.evaluation(encode(image), (24, 20), short_side=0)
  assert got.shape == (24, 20, 3) and got.flags.writeable
  np.testing.assert_array_equal(got, preprocess.resize(image, (24, 20)))


def test_central_crop():
  image = picture(9, 12)
  got = preprocess.central_crop(image, (4, 5))
  np.testing.assert_array_equal(got, image[2:6, 3:8])
  with pytest.raises(ValueError, match="cannot cut 10 x 10 .* of 9 x 12"):
    preprocess.central_crop(image, 10)


# The training chain and its options.


def test_train_is_its_parts_in_order():
  image = picture(90, 130)
  options = preprocess.TrainOptions(
    size=(40, 56),
    crop_area=(0.2, 0.9),
    crop_aspect=(0.5, 2.0),
    affine=preprocess.Affine(20, 0.2, 0.3),
    randaugment=preprocess.RandAugment(2, 15),
  )
  for seed in range(20):
    rng = np.random.default_rng(seed)
    want = preprocess.inception_crop(
      image, rng, (40, 56), (0.2, 0.9), (0.5, 2.0)
    )
    want = preprocess.flip(want, rng)
    want = preprocess.affine(want, rng, 20, 0.2, 0.3)
    want = randaugment.apply(want, rng, 2, 15)
    rng = np.random.default_rng(seed)
    got = preprocess.train(encode(image), rng, options)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("crop", ["inception", "resize"])
@pytest.mark.parametrize("size", [16, (24, 40), [40, 24]])
def test_train_shapes(crop, size):
  options = preprocess.TrainOptions(size=size, crop=crop)
  rng = np.random.default_rng(0)
  got = preprocess.train(encode(picture(50, 31), "jpeg"), rng, options)
  assert got.shape == ((16, 16, 3) if size == 16 else (*size, 3))
  assert got.dtype == np.uint8
  assert got.flags.c_contiguous and got.flags.writeable


def test_train_without_anything_random():
  image = picture(50, 31)
  options = preprocess.TrainOptions(size=(20, 10), crop="resize", flip=False)
  rng = np.random.default_rng(0)
  state = rng.bit_generator.state
  got = preprocess.train(encode(image), rng, options)
  np.testing.assert_array_equal(got, preprocess.resize(image, (20, 10)))
  assert rng.bit_generator.state == state


@pytest.mark.parametrize(
  ("options", "keys", "sentence"),
  [
    (preprocess.TrainOptions, {"size": 0}, "positive number or"),
    (preprocess.TrainOptions, {"size": (1, 2, 3)}, "positive number or"),
    (preprocess.TrainOptions, {"crop": "center"}, "Unknown crop 'center'"),
    (preprocess.TrainOptions, {"crop_area": (0.5, 0.1)}, "crop_area="),
    (preprocess.TrainOptions, {"crop_area": (5, 100)}, "crop_area="),
    (preprocess.TrainOptions, {"crop_aspect": (0, 1)}, "crop_aspect="),
    (preprocess.Affine, {"scale": 1.1}, "less than 1"),
    (preprocess.EvalOptions, {"size": 448}, "short_side of at least 448"),
  ],
  ids=range(8),
)
def test_bad_options_are_refused(options, keys, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    options(**keys)


@pytest.mark.parametrize("augment", [False, True])
def test_train_writes_where_it_is_told(augment):
  rng = np.random.default_rng(0)
  encoded = encode(rng.integers(0, 256, (60, 50, 3)).astype(np.uint8), "png")
  options = preprocess.TrainOptions(
    size=(24, 40),
    affine=preprocess.Affine() if augment else None,
    randaugment=preprocess.RandAugment(2, 10) if augment else None,
  )
  out = np.full((3, 24, 40, 3), 7, np.uint8)
  for seed in range(20):  # Flipped and not.
    got = preprocess.train(
      encoded, np.random.default_rng(seed), options, out[1]
    )
    want = preprocess.train(encoded, np.random.default_rng(seed), options)
    assert np.shares_memory(got, out)
    np.testing.assert_array_equal(out[1], want)
    assert (out[0] == 7).all() and (out[2] == 7).all()
