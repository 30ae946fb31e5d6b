"""Decoding a part of a JPEG gives what decoding all of it gives."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixer import jpeg


def picture(height, width):
  """Smooth, as JPEGs are, and coloured."""
  rng = np.random.default_rng(0)
  small = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
  return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def encode(image, mode=None, **options):
  file = io.BytesIO()
  Image.fromarray(image, mode).save(file, "JPEG", **options)
  return file.getvalue()


def whole(encoded):
  return simplejpeg.decode_jpeg(encoded, fastdct=True)


_KINDS = [
  *(dict(subsampling=k) for k in (0, 1, 2)),
  dict(progressive=True),
  dict(restart_marker_blocks=3, quality=95),
  dict(restart_marker_rows=1, quality=95),
  dict(optimize=True, quality=30),
]


@pytest.mark.parametrize("options", _KINDS, ids=str)
@given(
  size=st.tuples(st.integers(1, 120), st.integers(1, 90)),
  corners=st.tuples(*[st.floats(0, 1)] * 4),
)
@settings(max_examples=25)
def test_a_box_is_that_of_the_whole(options, size, corners):
  height, width = size
  for image in (picture(*size), picture(*size)[..., 0]):
    encoded = encode(image, **options)
    head = jpeg.header(encoded)
    assert (head.height, head.width) == size
    left, right = sorted(int(c * (width - 1)) for c in corners[:2])
    top, bottom = sorted(int(c * (height - 1)) for c in corners[2:])
    np.testing.assert_array_equal(
      jpeg.decode(encoded, head, (left, top, right + 1, bottom + 1)),
      whole(encoded)[top : bottom + 1, left : right + 1],
    )


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("blocks", [1, 4, 8, 5])
def test_pieces_between_restart_markers(
  monkeypatch, reduction, sampling, blocks
):
  monkeypatch.setattr(jpeg, "_WORTH", 1)
  encoded = encode(
    picture(250, 317), subsampling=sampling, restart_marker_blocks=blocks
  )
  head, used = jpeg.header(encoded), 0
  everything = jpeg.decode(encoded, head, None, reduction)
  rng = np.random.default_rng(0)
  for _ in range(60):
    left, right = sorted(rng.choice(317 // reduction + 1, 2, replace=False))
    top, bottom = sorted(rng.choice(250 // reduction + 1, 2, replace=False))
    box = tuple(int(e) * reduction for e in (left, top, right, bottom))
    used += jpeg._piece(encoded, head, box) is not None
    got = jpeg.decode(encoded, head, box, reduction)
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
  reduced = jpeg.decode(encoded, jpeg.header(encoded), None, reduction)
  height, width = (n // reduction for n in shape)
  even = image[: height * reduction, : width * reduction].astype(float)
  means = even.reshape(height, reduction, width, reduction, 3).mean((1, 3))
  assert np.abs(reduced[:height, :width] - means).mean() < 1.5


def test_what_comes_before_the_frame_changes_nothing():
  exif = Image.Exif()
  exif[0x010E] = "\xff\xc0" * 200  # Not a frame: inside another segment.
  image = picture(64, 64)
  encoded = encode(image, restart_marker_blocks=2)
  odd = [encode(image, restart_marker_blocks=2, exif=exif, comment=b"\xff\xc0")]
  for more in (
    b"\xff",
    b"\xff\xe2\0\x12ICC_PROFILE\0\1\2ab",
    b"\0\1\2\xff\0\xff\xff",
    b"\xff\xd3\xff\1",
  ):
    odd += [encoded[:at] + more + encoded[at:] for at in (2, 20)]
  for data in odd:
    got = jpeg.decode(data, jpeg.header(data), (0, 8, 64, 40))
    np.testing.assert_array_equal(got, whole(encoded)[8:40])
  # Too many bytes are forgiven, as Pillow does.
  padded = encoded[:-2] + b"\x12\x34" * 50 + encoded[-2:]
  got = jpeg.decode(padded, jpeg.header(padded))
  np.testing.assert_array_equal(got, whole(encoded))


def test_what_it_cannot_decode():
  encoded = encode(picture(200, 200), quality=95)
  at = encoded.index(b"\xff\xc0")
  arithmetic = encoded[:at] + b"\xff\xc9" + encoded[at + 2 :]
  no_height = encoded[: at + 5] + b"\0\0" + encoded[at + 7 :]
  for data in (b"\x89PNG", encoded[:at], arithmetic, no_height):
    assert jpeg.header(data) is None
  cut = encoded[: len(encoded) // 2]
  with pytest.raises(jpeg.DamagedError, match="Premature end"):
    jpeg.decode(cut, jpeg.header(cut))
  # simplejpeg raises for this before it has decoded a pixel.
  revision = encoded.index(b"JFIF") + 5
  bent = encoded[:revision] + b"\x09" + encoded[revision + 1 :]
  with pytest.raises(ValueError, match="header: .*unknown JFIF revision"):
    jpeg.decode(bent, jpeg.header(bent))


def test_inks():
  inks = np.dstack([picture(40, 60), np.full((40, 60), 200, np.uint8)])
  adobe = encode(inks, "CMYK", quality=95, subsampling=0)
  # Without that marker 255 is all of an ink, and 0 none.
  at = adobe.index(b"\xff\xee")
  for encoded, inverted in ((adobe, True), (adobe[:at] + adobe[at + 16 :], 0)):
    stored = simplejpeg.decode_jpeg(encoded, "CMYK", fastdct=True).astype(int)
    light = stored if inverted else 255 - stored
    want = light[..., :3] * light[..., 3:] // 255
    got = jpeg.decode(encoded, jpeg.header(encoded), (8, 0, 60, 32))
    np.testing.assert_array_equal(got, want[:32, 8:])


@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411", ""])
@pytest.mark.parametrize("width", [331, 8, 1])
def test_encode(sampling, width):
  image = picture(100, width)[..., : 3 if sampling else 1].copy()
  encoded = jpeg.encode(image, 95, sampling)
  head = jpeg.header(encoded)
  assert (head.height, head.width) == (100, width)
  assert head.sampling == (sampling or "444")
  assert head.restart and -(-width // head.column) % head.restart == 0
  got = jpeg.decode(encoded, head, (0, 0, width, 50))
  np.testing.assert_array_equal(got, whole(encoded)[:50])
  pillow = Image.open(io.BytesIO(encoded))
  assert pillow.mode == ("RGB" if sampling else "L")
  error = np.abs(np.array(pillow.convert("RGB")).astype(int) - image).mean()
  assert width < 331 or error < 4  # Colours of a few columns are mixed.
