"""Decoding a part of a JPEG gives what decoding all of it gives."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixer import jpeg


def picture(height, width, seed=0):
  """Smooth, as JPEGs are, and coloured."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
  return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def encode(image, **options):
  file = io.BytesIO()
  Image.fromarray(image).save(file, "JPEG", **options)
  return file.getvalue()


def whole(encoded):
  return simplejpeg.decode_jpeg(encoded, fastdct=True)


def pillow(encoded):
  return np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))


KINDS = {
  "4:4:4": dict(subsampling=0),
  "4:2:2": dict(subsampling=1),
  "4:2:0": dict(subsampling=2),
  "progressive": dict(progressive=True),
  "markers of any interval": dict(restart_marker_blocks=3, quality=95),
  "markers of rows": dict(restart_marker_rows=1, quality=95),
  "optimized": dict(optimize=True, quality=30),
}


@pytest.mark.parametrize("kind", KINDS)
@given(
  size=st.tuples(st.integers(1, 120), st.integers(1, 90)),
  corners=st.tuples(*[st.floats(0, 1)] * 4),
)
@settings(max_examples=25, deadline=None)
def test_a_box_is_that_of_the_whole(kind, size, corners):
  height, width = size
  encoded = encode(picture(height, width), **KINDS[kind])
  head = jpeg.header(encoded)
  assert (head.height, head.width) == size
  left, right = sorted(int(c * (width - 1)) for c in corners[:2])
  top, bottom = sorted(int(c * (height - 1)) for c in corners[2:])
  box = (left, top, right + 1, bottom + 1)
  np.testing.assert_array_equal(
    jpeg.decode(encoded, head, box),
    whole(encoded)[top : bottom + 1, left : right + 1],
  )


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("blocks", [1, 4, 8, 5])
def test_pieces_between_restart_markers(
  monkeypatch, reduction, sampling, blocks
):
  monkeypatch.setattr(jpeg, "_WORTH", 1)
  image = picture(250, 317)
  encoded = encode(
    image, subsampling=sampling, restart_marker_blocks=blocks, quality=90
  )
  head = jpeg.header(encoded)
  assert head.restart == blocks
  everything = jpeg.decode(encoded, head, None, reduction).copy()
  if reduction == 1:
    np.testing.assert_array_equal(everything, whole(encoded))
  used = 0
  rng = np.random.default_rng(0)
  for _ in range(60):
    left, right = sorted(reduction * rng.integers(0, 317 // reduction + 1, 2))
    top, bottom = sorted(reduction * rng.integers(0, 250 // reduction + 1, 2))
    if left == right or top == bottom:
      continue
    box = (int(left), int(top), int(right), int(bottom))
    used += jpeg._piece(encoded, head, box) is not None
    got = jpeg.decode(encoded, head, box, reduction)
    left, top, right, bottom = (edge // reduction for edge in box)
    np.testing.assert_array_equal(got, everything[top:bottom, left:right])
  # 40 units of 8 pixels in a row, 20 of 16: 5 and 8 divide only some.
  across = -(-317 // (8 if sampling == 0 else 16))
  assert bool(used) == (across % blocks == 0)
  # Without one of its markers a file is decoded from its beginning.
  mark = encoded.index(b"\xff\xd3", head.data)
  lost = encoded[:mark] + encoded[mark + 2 :]
  assert jpeg._piece(lost, head, (80, 80, 160, 160)) is None


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("shape", [(128, 96), (131, 97)])
def test_reduced_pixels_are_means(reduction, shape):
  image = picture(*shape)
  encoded = encode(image, quality=95, subsampling=0)
  head = jpeg.header(encoded)
  reduced = jpeg.decode(encoded, head, None, reduction).copy()
  height, width = (n // reduction for n in shape)
  even = image[: height * reduction, : width * reduction].astype(float)
  means = even.reshape(height, reduction, width, reduction, 3).mean((1, 3))
  assert np.abs(reduced[:height, :width] - means).mean() < 1.5
  box = (0, reduction, width * reduction, shape[0] // 2)
  some = jpeg.decode(encoded, head, box, reduction)
  np.testing.assert_array_equal(some, reduced[1 : 1 + len(some), :width])


def test_what_comes_before_the_frame_changes_nothing():
  exif = Image.Exif()
  exif[0x010E] = "\xff\xc0" * 200  # Not a frame: inside another segment.
  image = picture(64, 64)
  encoded = encode(image, restart_marker_blocks=2)
  odd = [
    encode(image, restart_marker_blocks=2, exif=exif, comment=b"\xff\xc0" * 9),
    encoded[:2] + b"\xff\xff\xff" + encoded[3:],
  ]
  for more in (
    b"\xff\xe2\0\x12ICC_PROFILE\0\1\2ab",
    b"\xff\0",
    b"\0\1\2\xff\0\xff\xff",
    b"\xff\xd3\xff\1",
    b"\xff\xe1\0\x09Exif\0\0\1\xff\xe2\0\x12ICC_PROFILE\0\2\2ab",
  ):
    odd += [
      encoded[:2] + more + encoded[2:], encoded[:20] + more + encoded[20:]
    ]  # fmt: skip
  for data in odd:
    got = jpeg.decode(data, jpeg.header(data), (0, 8, 64, 40))
    np.testing.assert_array_equal(got, whole(encoded)[8:40])
  # Too many bytes are forgiven, as Pillow does.
  padded = encoded[:-2] + b"\x12\x34" * 50 + encoded[-2:]
  got = jpeg.decode(padded, jpeg.header(padded))
  np.testing.assert_array_equal(got, whole(encoded))


def test_what_it_cannot_decode():
  file = io.BytesIO()
  Image.fromarray(picture(9, 9)).save(file, "PNG")
  encoded = encode(picture(200, 200), quality=95)
  at = encoded.index(b"\xff\xc0")
  arithmetic = encoded[:at] + b"\xff\xc9" + encoded[at + 2 :]
  no_height = encoded[: at + 5] + b"\0\0" + encoded[at + 7 :]
  for data in (file.getvalue(), arithmetic, no_height):
    assert jpeg.header(data) is None
  cut = encoded[: len(encoded) // 2]
  with pytest.raises(jpeg.DamagedError, match="Premature end"):
    jpeg.decode(cut, jpeg.header(cut))
  # simplejpeg raises for this before it has decoded a pixel.
  revision = encoded.index(b"JFIF") + 5
  bent = encoded[:revision] + b"\x09" + encoded[revision + 1 :]
  with pytest.raises(ValueError, match="header: .*unknown JFIF revision"):
    jpeg.decode(bent, jpeg.header(bent))


def test_grey_and_inks():
  encoded = encode(picture(50, 40)[:, :, 0])
  got = jpeg.decode(encoded, jpeg.header(encoded), (3, 9, 40, 20))
  np.testing.assert_array_equal(got, whole(encoded)[9:20, 3:])
  inks = np.dstack([picture(40, 60), np.full((40, 60), 200, np.uint8)])
  file = io.BytesIO()
  Image.fromarray(inks, "CMYK").save(file, "JPEG", quality=95, subsampling=0)
  adobe = file.getvalue()
  # Without that marker 255 is all of an ink, and 0 none.
  at = adobe.index(b"\xff\xee")
  plain = adobe[:at] + adobe[at + 16 :]
  for encoded, inverted in ((adobe, True), (plain, False)):
    head = jpeg.header(encoded)
    assert (head.channels, head.inverted) == (4, inverted)
    stored = simplejpeg.decode_jpeg(encoded, "CMYK", fastdct=True).astype(int)
    light = stored if inverted else 255 - stored
    want = light[..., :3] * light[..., 3:] // 255
    got = jpeg.decode(encoded, head, (8, 0, 60, 32))
    np.testing.assert_array_equal(got, want[:32, 8:])


@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411", ""])
@pytest.mark.parametrize("width", [331, 8, 1])
def test_encode(sampling, width):
  image = picture(100, width)
  if not sampling:
    image = image[:, :, :1].copy()
  encoded = jpeg.encode(image, 95, sampling)
  head = jpeg.header(encoded)
  assert (head.height, head.width) == (100, width)
  assert head.sampling == (sampling or "444")
  assert head.restart and -(-width // head.column) % head.restart == 0
  for bottom in range(1, 100, 7):
    got = jpeg.decode(encoded, head, (0, 0, width, bottom))
    np.testing.assert_array_equal(got, whole(encoded)[:bottom])
  assert Image.open(io.BytesIO(encoded)).mode == ("RGB" if sampling else "L")
  error = np.abs(pillow(encoded).astype(int) - image).mean()
  assert width < 331 or error < 4  # Colours of a few columns are mixed.
