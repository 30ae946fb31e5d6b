"""Tests of `mixer.datasets.preparation.inspection` and `file_format`."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from mixer import image_files, images, preprocess
from mixer.datasets.preparation import inspection
from mixer.datasets.preparation.inspection import Options


def _pixels(height=48, width=64, seed=0):
  """A smooth picture: JPEG keeps it nearly."""
  y, x = np.mgrid[:height, :width]
  waves = [np.sin(x / 9 + seed) + np.cos(y / 7 - k) for k in range(3)]
  return ((np.stack(waves, -1) + 2) * 63).astype(np.uint8)


def _encode(pixels, format="JPEG", mode=None, **kwargs):
  image = Image.fromarray(pixels)
  if mode:
    image = image.convert(mode)
  file = io.BytesIO()
  image.save(file, format, **kwargs)
  return file.getvalue()


def _decode(data):
  return np.asarray(Image.open(io.BytesIO(data)))


def _inspect(data, name="x", **options):
  return inspection.inspect(data, name, Options(**options))


def _close(one, other, difference=4.0):
  assert one.shape == other.shape
  assert np.abs(one.astype(float) - other).mean() < difference


# Name of the case -> (bytes, name of the file).
def _good():
  rgb = _pixels()
  sixteen = Image.fromarray((rgb[..., 0].astype(np.uint16) << 8) + 3)
  file = io.BytesIO()
  sixteen.save(file, "PNG")
  frames = [Image.fromarray(_pixels(seed=k)) for k in range(3)]
  animated = io.BytesIO()
  frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
  return {
    "jpeg": (_encode(rgb), "a.JPEG"),
    "progressive": (_encode(rgb, progressive=True), "a.jpg"),
    "grey": (_encode(rgb, mode="L"), "a.jpg"),
    "cmyk": (_encode(rgb, mode="CMYK"), "a.jpg"),
    "4:4:4": (_encode(rgb, subsampling=0), "a.jfif"),
    "png": (_encode(rgb, "PNG"), "a.PNG"),
    "palette": (_encode(rgb, "PNG", mode="P"), "a.png"),
    "alpha": (_encode(rgb, "PNG", mode="RGBA"), "a.png"),
    "bits": (_encode(rgb, "PNG", mode="1"), "a.png"),
    "16-bit": (file.getvalue(), "a.png"),
    "gif": (_encode(rgb, "GIF"), "a.gif"),
    "animated": (animated.getvalue(), "a.gif"),
    "webp": (_encode(rgb, "WEBP"), "a.webp"),
    "bmp": (_encode(rgb, "BMP"), "a.bmp"),
    "tiff": (_encode(rgb, "TIFF"), "ä.tif"),
    "lzw": (_encode(rgb, "TIFF", compression="tiff_lzw"), "a.tiff"),
    "ppm": (_encode(rgb, "PPM"), "a.ppm"),
    "pgm": (_encode(rgb, "PPM", mode="L"), "a.pgm"),
    "no suffix": (_encode(rgb, "PNG"), "folder.jpg/a"),
  }


@pytest.mark.parametrize("case", _good())
def test_good_images_are_kept_as_they_are(case):
  data, name = _good()[case]
  found = _inspect(data, name, upright=True, short_side=48)
  assert found.data is data
  assert (found.problem, found.kind) == ("", "")
  assert (found.height, found.width) == (48, 64)
  assert found.format == image_files.sniff(data) != ""


@pytest.mark.parametrize("case", _good())
def test_short_side(case):
  data, name = _good()[case]
  found = _inspect(data, name, short_side=24)
  assert (found.height, found.width, found.format) == (24, 32, "jpeg")
  assert (found.problem, found.kind) == ("", "")
  image = Image.open(io.BytesIO(found.data))
  grey = case in ("grey", "bits", "pgm")
  assert image.mode == ("L" if grey else "RGB")
  whole = images.Opened(data).pixels()
  expected = preprocess.resize_short(whole, 24)
  _close(np.asarray(image.convert("RGB")), expected)


def test_quality_and_subsampling():
  data = _encode(_pixels(), subsampling=1)
  small = [
    _inspect(data, short_side=24, quality=quality) for quality in (50, 95)
  ]
  assert len(small[0].data) < len(small[1].data)
  for found in small:
    assert simplejpeg.decode_jpeg_header(found.data)[3] == "422"


@pytest.mark.parametrize("size", [(100, 3000), (3000, 100)])
def test_longest_images(size):
  found = _inspect(_encode(_pixels(*size)), short_side=1)
  assert min(found.height, found.width) == 1
  assert found.height * found.width == 30


def test_too_long_for_a_jpeg():
  data = _encode(np.zeros((300, 70_000), np.uint8), "PNG")
  found = _inspect(data, short_side=299)
  assert (found.format, found.height, found.width) == ("png", 299, 69_767)
  assert _inspect(found.data).kind == ""


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_upright(format, turn):
  exif = Image.Exif()
  exif[0x0112] = turn
  data = _encode(_pixels(), format, exif=exif)
  kept = _inspect(data)
  assert kept.data is data and (kept.height, kept.width) == (48, 64)
  found = _inspect(data, upright=True)
  if turn == 1:
    assert found.data is data
    return
  assert found.format == ("jpeg" if format == "JPEG" else "png")
  expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  assert (found.width, found.height) == expected.size
  _close(_decode(found.data), np.asarray(expected.convert("RGB")))
  if format != "JPEG":
    assert np.array_equal(_decode(found.data), np.asarray(expected))
  # It isn't turned again.
  assert _inspect(found.data, upright=True).data is found.data
  smaller = _inspect(data, upright=True, short_side=24)
  assert (smaller.format, smaller.kind) == ("jpeg", "")
  _close(
    _decode(smaller.data),
    np.asarray(expected.resize((expected.width // 2, expected.height // 2), 4)),
  )


def test_upright_tiff():
  exif = Image.Exif()
  exif[0x0112] = 6
  data = _encode(_pixels(), "TIFF", exif=exif)
  # Pillow has turned it when it has read it, so nothing is left to do.
  assert images.Opened(data).pixels().shape == (64, 48, 3)
  found = _inspect(data, upright=True)
  assert found.data is data and (found.height, found.width) == (64, 48)
  small = _inspect(data, upright=True, short_side=24)
  assert (small.height, small.width) == (32, 24)


def test_turned_jpeg_keeps_its_kind():
  exif = Image.Exif()
  exif[0x0112] = 6
  for mode, subsampling, expected in (
    ("RGB", 0, ("RGB", "444")),
    ("RGB", 1, ("RGB", "440")),
    ("RGB", 2, ("RGB", "420")),
    ("L", -1, ("L", "Gray")),
    ("CMYK", -1, ("RGB", "444")),
  ):
    data = _encode(_pixels(), mode=mode, subsampling=subsampling, exif=exif)
    found = _inspect(data, upright=True)
    assert found.format == "jpeg"
    header = simplejpeg.decode_jpeg_header(found.data)
    assert (Image.open(io.BytesIO(found.data)).mode, header[3]) == expected


@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff"])
def test_odd_exif_data(exif):
  data = _encode(_pixels(), exif=exif)
  assert _inspect(data, upright=True).data is data
  exif = Image.Exif()
  exif[0x0112] = 77
  data = _encode(_pixels(), exif=exif)
  assert _inspect(data, upright=True).data is data


@pytest.mark.parametrize(
  ("format", "options"),
  [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"mode": "L"}),
    ("JPEG", {"mode": "CMYK"}),
    ("PNG", {}),
    ("GIF", {}),
    ("WEBP", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("PPM", {}),
  ],
)
def test_any_truncation_is_found(format, options):
  data = _encode(_pixels(32, 32), format, **options)
  for cut in (1, 4, 12, *range(20, len(data), 37), len(data) - 1):
    found = _inspect(data[:cut])
    assert found.data == data[:cut]
    if not found.kind:
      # Checksums and end marks are lost, behind the last pixel.
      assert len(data) - cut <= 24 and format in ("PNG", "GIF")
      assert np.array_equal(_decode(data[:cut]), _decode(data))
      continue
    assert found.problem
    assert found.kind == "damaged" or (cut < 20 and found.kind != "empty")


def test_jpeg_that_was_cut_off_and_ended():
  data = _encode(_pixels(200, 200))
  found = _inspect(data[: len(data) // 2] + b"\xff\xd9")
  assert found.kind == "damaged" and "premature end" in found.problem
  # As after a crash: the rest of the file's blocks are there, but empty.
  half = len(data) // 2
  assert _inspect(data[:half] + bytes(len(data) - half)).kind == "damaged"


def test_harmless_oddities_are_no_damage():
  data = _encode(_pixels())
  for odd in (data + b"rubbish" * 9, data[:-2] + b"\0" * 9 + data[-2:]):
    found = _inspect(odd)
    assert (found.kind, found.problem) == ("", "")
    assert found.data is odd


@pytest.mark.parametrize("data", [b"<!DOCTYPE html><p>404", b"\0" * 999, b"\n"])
def test_not_an_image(data):
  found = _inspect(data, "a.jpg")
  assert found.kind == "not an image"
  assert str(data[:16])[2:-1] in found.problem


def test_empty():
  found = _inspect(b"", "a.jpg")
  assert (found.kind, found.problem) == ("empty", "the image is empty: 0 bytes")


def _png_header(height, width):
  def chunk(kind, content):
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + crc.to_bytes(4)

  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b"\0"))
    + chunk(b"IEND", b"")
  )


def _jpeg_header(height, width):
  data = bytearray(_encode(_pixels()))
  place = data.index(b"\xff\xc0") + 5
  data[place : place + 4] = struct.pack(">HH", height, width)
  return bytes(data)


@pytest.mark.parametrize("bomb", [_png_header, _jpeg_header])
def test_bombs_are_not_decoded(bomb):
  found = _inspect(bomb(20_000, 20_000))
  assert found.kind == "too large"
  assert f"more than {images.MAX_PIXELS:,}" in found.problem
  # Pillow warns from half of that on; here it is just an image, a damaged one.
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert _inspect(bomb(10_000, 10_000)).kind == "damaged"


def test_mislabelled():
  data = _encode(_pixels(), "PNG")
  found = _inspect(data, "n02105855_2933.JPEG")
  assert found.kind == "mislabelled"
  assert found.problem == "a PNG by its content, a JPEG by its name"
  assert found.data is data and found.format == "png"
  small = _inspect(data, "a.jpg", short_side=24)
  assert (small.kind, small.format) == ("mislabelled", "jpeg")
  assert _inspect(data, "a.unknown").kind == ""
  # What is damaged as well is damaged.
  assert _inspect(data[:100], "a.jpg").kind == "damaged"


def test_unsupported():
  floats = io.BytesIO()
  Image.fromarray(np.ones((8, 8), np.float32)).save(floats, "TIFF")
  found = _inspect(floats.getvalue(), "a.tif")
  assert found.kind == "unsupported" and "float" in found.problem
  heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
  found = _inspect(heic, "a.heic")
  assert found.kind == "unsupported" and "HEIC" in found.problem


_TRANSPARENT = {
  "RGBA": ("PNG", {}),
  "LA": ("PNG", {}),
  "P": ("GIF", {"transparency": 3}),
  "RGB": ("PNG", {"transparency": (9, 9, 9)}),
  "L": ("PNG", {"transparency": 9}),
  "1": ("PNG", {"transparency": 0}),
  "webp": ("WEBP", {"lossless": True, "exact": True}),
  "tiff": ("TIFF", {}),
  "avif": ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
}


def transparent(case):
  """(bytes, RGB as stored, which pixels are transparent)."""
  kind, options = _TRANSPARENT[case]
  clear = np.zeros((48, 64), bool)
  clear[:20] = True
  mode = case if case.isupper() or case == "1" else "RGBA"
  colours = np.where(clear[..., None], 9, _pixels() | 16).astype(np.uint8)
  if case == "P":
    pil = Image.fromarray(np.where(clear, 3, 5).astype(np.uint8), "P")
    pil.putpalette(list(range(60)))
  else:
    pil = Image.fromarray(colours).convert(mode)
  if case == "1":
    pil = Image.fromarray(~clear)
  if mode in ("RGBA", "LA"):
    pil.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
  file = io.BytesIO()
  pil.save(file, kind, **options)
  stored = pil.convert("RGBA").convert("RGB")
  return file.getvalue(), np.asarray(stored), clear


@pytest.mark.parametrize("case", _TRANSPARENT)
def test_transparent_images_lie_on_white(case):
  data, stored, clear = transparent(case)
  found = _inspect(data, white_ground=True)
  assert (found.kind, found.format) == ("", "png")
  got = images.Opened(found.data).pixels()
  assert (got[clear] == 255).all()
  near = 6 if case == "avif" else 0
  assert np.abs(got[~clear].astype(int) - stored[~clear]).max() <= near
  # Where data are as the paper's, the colour beneath stays, and the bytes do.
  found = _inspect(data)
  assert found.data is data
  got = images.Opened(data).pixels()
  assert np.abs(got.astype(int) - stored).max() <= near
  small = _inspect(data, white_ground=True, short_side=24)
  assert _decode(small.data)[:8].min() > 240


def test_half_transparent_colours_are_mixed_with_white():
  rgba = np.full((8, 8, 4), (100, 0, 200, 51), np.uint8)  # A fifth.
  found = _inspect(_encode(rgba, "PNG"), white_ground=True)
  want = [100 / 5 + 255 * 4 / 5, 255 * 4 / 5, 200 / 5 + 255 * 4 / 5]
  got = images.Opened(found.data).pixels()
  assert np.abs(got - want).max() <= 1


def test_formats_are_known_by_other_beginnings():
  data = bytearray(_encode(_pixels(), "AVIF"))
  assert data[4:12] == b"ftypavif" and b"avif" in data[16:40]
  data[8:12] = b"mif1"
  assert _inspect(bytes(data)).format == "avif"
  data = bytearray(_encode(_pixels(), "BMP"))
  data[6:10] = b"abcd"  # Reserved, for whoever writes it.
  assert _inspect(bytes(data)).format == "bmp"
  assert _inspect(b"BMW, the makers of cars").kind == "not an image"


def test_images_without_transparent_pixels_are_kept():
  rgba = np.dstack([_pixels(), np.full((48, 64), 255, np.uint8)])
  for kind in ("PNG", "WEBP", "TIFF"):
    data = _encode(rgba, kind)
    assert _inspect(data, white_ground=True).data is data


def test_black_by_empty_bits():
  values = np.arange(256, dtype=np.uint16).reshape(16, 16)
  found = _inspect(_encode(values, "PNG"), "a.png")
  assert found.kind == "dark" and "upper 8 bits" in found.problem
  assert found.data and found.format == "png"
  assert _inspect(_encode(values * 256, "PNG"), "a.png").kind == ""


def test_any_bytes_at_all(monkeypatch):
  rng = np.random.default_rng(0)
  for data, name in _good().values():
    for _ in range(12):
      bent = bytearray(data)
      for place in rng.integers(0, len(data), 6):
        bent[place] = rng.integers(256)
      found = _inspect(bytes(bent), name, upright=True, short_side=24)
      assert bool(found.problem) == bool(found.kind)
      if found.kind in ("", "mislabelled"):
        # What is let through decodes where it is trained on.
        images.Opened(found.data).pixels()
