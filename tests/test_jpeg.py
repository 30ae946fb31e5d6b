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
  "restart markers": dict(restart_marker_blocks=3),
  "optimized": dict(optimize=True, quality=30),
}


@pytest.mark.parametrize("kind", KINDS)
@given(
  height=st.integers(1, 120),
  width=st.integers(1, 90),
  part=st.floats(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_the_upper_rows_are_those_of_the_whole(kind, height, width, part):
  encoded = encode(picture(height, width), **KINDS[kind])
  head = jpeg.header(encoded)
  assert (head.height, head.width) == (height, width)
  bottom = max(1, round(part * height))
  rows = jpeg.decode(encoded, head, (0, 0, width, bottom))
  np.testing.assert_array_equal(rows, whole(encoded)[:bottom])


@pytest.mark.parametrize("sampling", ["420", "440", "411", "444", "422"])
def test_every_sampling_of_colours(sampling):
  encoded = simplejpeg.encode_jpeg(
    picture(75, 101), 85, colorsubsampling=sampling
  )
  head = jpeg.header(encoded)
  want = whole(encoded)
  for bottom in range(1, 76):
    np.testing.assert_array_equal(
      jpeg.decode(encoded, head, (0, 0, 101, bottom)), want[:bottom]
    )


def test_grey():
  encoded = encode(picture(50, 40)[:, :, 0])
  head = jpeg.header(encoded)
  np.testing.assert_array_equal(
    jpeg.decode(encoded, head, (3, 9, 40, 20)), whole(encoded)[9:20, 3:]
  )


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("shape", [(128, 96), (131, 97), (3, 5)])
def test_reduced_pixels_are_means(reduction, shape):
  image = picture(*shape)
  encoded = encode(image, quality=95, subsampling=0)
  head = jpeg.header(encoded)
  reduced = jpeg.decode(encoded, head, None, reduction).copy()
  height, width = (n // reduction for n in shape)
  if not height * width:
    return
  whole = image[: height * reduction, : width * reduction].astype(float)
  means = whole.reshape(height, reduction, width, reduction, 3).mean((1, 3))
  assert np.abs(reduced[:height, :width] - means).mean() < 1.5
  box = (0, reduction, width * reduction, shape[0] // 2)
  some = jpeg.decode(encoded, head, box, reduction)
  np.testing.assert_array_equal(some, reduced[1 : 1 + len(some), :width])


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("sampling", [0, 1, 2])
@pytest.mark.parametrize("blocks", [1, 2, 4, 8, 5])
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


def test_boxes_of_a_file_that_lacks_a_marker(monkeypatch):
  monkeypatch.setattr(jpeg, "_WORTH", 1)
  encoded = encode(picture(160, 160), restart_marker_blocks=2, subsampling=2)
  head = jpeg.header(encoded)
  mark = encoded.index(b"\xff\xd3", head.data)
  lost = encoded[:mark] + encoded[mark + 2 :]
  assert jpeg._piece(lost, head, (80, 80, 160, 160)) is None
  # No crash, and the size asked for: what else is there to say?
  image = jpeg.decode(lost, jpeg.header(lost), (80, 80, 160, 160))
  assert image.shape == (80, 80, 3)


@given(box=st.tuples(*[st.integers(0, 199)] * 4), blocks=st.integers(1, 13))
@settings(max_examples=100, deadline=None)
def test_boxes_are_those_of_the_whole(box, blocks):
  left, top, right, bottom = box
  left, right = min(left, right), max(left, right) + 1
  top, bottom = min(top, bottom), max(top, bottom) + 1
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (200, 200, 3)).astype(np.uint8)
  encoded = encode(noise, restart_marker_blocks=blocks, quality=95)
  np.testing.assert_array_equal(
    jpeg.decode(encoded, jpeg.header(encoded), (left, top, right, bottom)),
    whole(encoded)[top:bottom, left:right],
  )


def test_markers_before_the_frame_are_passed_over():
  exif = Image.Exif()
  exif[0x0112] = 6
  exif[0x010E] = "\xff\xc0" * 200  # Not a frame: inside another segment.
  encoded = encode(picture(20, 30), exif=exif, comment=b"\xff\xc0" * 9)
  filled = encoded[:2] + b"\xff\xff\xff" + encoded[3:]
  for data in (encoded, filled):
    head = jpeg.header(data)
    assert (head.height, head.width) == (20, 30)


def test_what_it_cannot_decode_has_no_header():
  file = io.BytesIO()
  Image.fromarray(picture(9, 9)).save(file, "PNG")
  assert jpeg.header(file.getvalue()) is None
  encoded = encode(picture(9, 9))
  at = encoded.index(b"\xff\xc0")
  arithmetic = encoded[:at] + b"\xff\xc9" + encoded[at + 2 :]
  assert jpeg.header(arithmetic) is None
  no_height = encoded[: at + 5] + b"\0\0" + encoded[at + 7 :]
  assert jpeg.header(no_height) is None


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_bytes_have_a_header_or_none(data):
  encoded = bytearray(encode(picture(30, 30)))
  for _ in range(data.draw(st.integers(1, 4))):
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(
      st.integers(0, 255)
    )
  end = data.draw(st.integers(0, len(encoded)))
  head = jpeg.header(bytes(encoded[:end]))
  if head is not None and head.height * head.width < 1e6:
    try:
      jpeg.decode(bytes(encoded[:end]), head, (1, 2, 9, 8))
    except ValueError:
      pass


def test_a_file_that_ends_within_the_rows_is_refused():
  encoded = encode(picture(200, 200), quality=95)
  cut = encoded[: len(encoded) // 2]
  with pytest.raises(jpeg.DamagedError, match="Premature end"):
    jpeg.decode(cut, jpeg.header(cut))


def test_bytes_too_many_are_forgiven_as_pillow_does():
  encoded = encode(picture(64, 64))
  padded = encoded[:-2] + b"\x12\x34" * 50 + encoded[-2:]
  np.testing.assert_array_equal(
    jpeg.decode(padded, jpeg.header(padded)), whole(encoded)
  )


def test_what_is_warned_of_in_the_header_is_refused():
  """simplejpeg raises for it before it has decoded a pixel."""
  before = encode(picture(64, 64, seed=1))
  jpeg.decode(before, jpeg.header(before))
  encoded = bytearray(encode(picture(64, 64)))
  encoded[encoded.index(b"JFIF") + 5] = 9  # Its version.
  with pytest.raises(ValueError, match="header: .*unknown JFIF revision"):
    jpeg.decode(bytes(encoded), jpeg.header(encoded))


@pytest.mark.parametrize(
  "odd",
  [
    b"\xff\xe2\0\x12ICC_PROFILE\0\1\2ab",
    b"\xff\0",
    b"\0\1\2\xff\0\xff\xff",
    b"\xff\xd3\xff\1",
    b"\xff\xe1\0\x09Exif\0\0\1\xff\xe2\0\x12ICC_PROFILE\0\2\2ab",
  ],
  ids=range(5),
)
def test_what_no_pixel_depends_on_costs_none(odd):
  encoded = encode(picture(64, 64), restart_marker_blocks=2)
  for start in (
    encoded[:2] + odd + encoded[2:],
    encoded[:20] + odd + encoded[20:],
  ):
    np.testing.assert_array_equal(
      jpeg.decode(start, jpeg.header(start), (0, 8, 64, 40)),
      whole(encoded)[8:40],
    )


def test_inks():
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


def test_the_buffer_is_used_again():
  encoded = encode(picture(64, 64))
  head = jpeg.header(encoded)
  first = jpeg.decode(encoded, head)
  assert np.shares_memory(first, jpeg.decode(encoded, head, (0, 0, 9, 9)))


@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411", ""])
@pytest.mark.parametrize("width", [320, 331, 8, 1])
def test_encode(sampling, width):
  image = picture(100, width)
  if not sampling:
    image = image[:, :, :1].copy()
  encoded = jpeg.encode(image, 95, sampling)
  head = jpeg.header(encoded)
  assert (head.height, head.width) == (100, width)
  assert head.restart and -(-width // head.column) % head.restart == 0
  found = pillow(encoded)
  assert Image.open(io.BytesIO(encoded)).mode == ("RGB" if sampling else "L")
  other = simplejpeg.encode_jpeg(
    np.ascontiguousarray(image),
    95,
    "RGB" if sampling else "GRAY",
    sampling or "Gray",
  )
  # Another encoder of the same quality: as large, as close.
  assert len(encoded) < 1.1 * len(other) + 100
  error = np.abs(found.astype(int) - image).mean()
  assert error < np.abs(pillow(other).astype(int) - image).mean() + 0.2
  if width > 8:  # Narrower ones are all edges here.
    assert error < 8
