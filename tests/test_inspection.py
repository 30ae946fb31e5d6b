"""What an image file becomes: `mixer.inspection`."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from mixer import images, inspection, preprocess


def smooth(height=48, width=64, seed=0):
  """A picture that JPEG nearly keeps."""
  y, x = np.mgrid[:height, :width]
  waves = [np.sin(x / 9 + seed) + np.cos(y / 7 - k) for k in range(3)]
  return ((np.stack(waves, -1) + 2) * 63).astype(np.uint8)


def encode(pixels, kind="JPEG", mode=None, **kwargs):
  image = Image.fromarray(pixels)
  image = image.convert(mode) if mode else image
  file = io.BytesIO()
  image.save(file, kind, **kwargs)
  return file.getvalue()


def inspect(data, name="x", **options):
  return inspection.inspect(data, name, **options)


def shape(found):
  return inspection.decoded(found).shape[:2]


def opened(data):
  return Image.open(io.BytesIO(data))


def check_close(one, other, difference=4.0):
  assert one.shape == other.shape
  assert np.abs(one.astype(float) - other).mean() < difference


def _good():
  """Case -> (bytes, name of the file)."""
  rgb = smooth()
  sixteen = (rgb[..., 0].astype(np.uint16) << 8) + 3
  frames = [Image.fromarray(smooth(seed=k)) for k in range(3)]
  more = {"save_all": True, "append_images": frames[1:]}
  return {
    "jpeg": (encode(rgb), "a.JPEG"),
    "progressive": (encode(rgb, progressive=True), "a.jpg"),
    "grey": (encode(rgb, mode="L"), "a.jpg"),
    "cmyk": (encode(rgb, mode="CMYK"), "a.jpg"),
    "4:4:4": (encode(rgb, subsampling=0), "a.jfif"),
    "palette": (encode(rgb, "PNG", mode="P"), "a.PNG"),
    "alpha": (encode(rgb, "PNG", mode="RGBA"), "a.png"),
    "bits": (encode(rgb, "PNG", mode="1"), "a.png"),
    "16-bit": (encode(sixteen, "PNG"), "a.png"),
    "animated": (encode(rgb, "GIF", **more), "a.gif"),
    "webp": (encode(rgb, "WEBP"), "a.webp"),
    "bmp": (encode(rgb, "BMP"), "a.bmp"),
    "lzw": (encode(rgb, "TIFF", compression="tiff_lzw"), "\u00e4.tif"),
    "pgm": (encode(rgb, "PPM", mode="L"), "a.pgm"),
    "no suffix": (encode(rgb, "PNG"), "folder.jpg/a"),
  }


@pytest.mark.parametrize("case", _good())
def test_good_images_are_kept_or_made_smaller(case):
  data, name = _good()[case]
  found = inspect(data, name, upright=True, short_side=48)
  assert found.data is data
  assert (found.problem, found.kind, shape(found)) == ("", "", (48, 64))
  found = inspect(data, name, short_side=24)
  assert (found.problem, found.kind, shape(found)) == ("", "", (24, 32))
  image = opened(found.data)
  assert image.format == "JPEG"
  assert image.mode == ("L" if case in ("grey", "bits", "pgm") else "RGB")
  whole = images.Opened(data).pixels()
  small = preprocess.resize_short(whole, 24)
  check_close(np.asarray(image.convert("RGB")), small)


def test_too_long_for_a_jpeg():
  data = encode(np.zeros((300, 70_000), np.uint8), "PNG")
  found = inspect(data, short_side=299)
  assert opened(found.data).format == "PNG"
  assert shape(found) == (299, 69_767)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_upright(kind, turn):
  exif = Image.Exif()
  exif[0x0112] = turn
  data = encode(smooth(), kind, exif=exif)
  assert inspect(data).data is data
  found = inspect(data, upright=True)
  want = ImageOps.exif_transpose(opened(data))
  if turn == 1:
    assert found.data is data
    return
  assert opened(found.data).format == kind
  check_close(inspection.decoded(found), np.asarray(want))
  if kind == "PNG":
    assert np.array_equal(inspection.decoded(found), np.asarray(want))
  # It isn't turned again.
  assert inspect(found.data, upright=True).data is found.data
  small = inspect(data, upright=True, short_side=24)
  half = want.resize((want.width // 2, want.height // 2), 4)
  check_close(inspection.decoded(small), np.asarray(half))


def test_a_turned_jpeg_keeps_its_kind():
  exif = Image.Exif()
  exif[0x0112] = 6
  for mode, subsampling, want in (
    ("RGB", 0, ("RGB", "444")),
    ("RGB", 1, ("RGB", "440")),
    ("L", -1, ("L", "Gray")),
    ("CMYK", -1, ("RGB", "444")),
  ):
    data = encode(smooth(), mode=mode, subsampling=subsampling, exif=exif)
    turned = inspect(data, upright=True).data
    header = simplejpeg.decode_jpeg_header(turned)
    assert (opened(turned).mode, header[3]) == want


@pytest.mark.parametrize(
  "kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]
)
def test_any_truncation_is_found(kind):
  data = encode(smooth(32, 32), kind)
  for cut in (1, 4, 12, *range(20, len(data), 37), len(data) - 1):
    found = inspect(data[:cut])
    assert found.data == data[:cut]
    if not found.kind:
      # Checksums and end marks are lost, behind the last pixel.
      assert len(data) - cut <= 24 and kind in ("PNG", "GIF")
      continue
    assert found.problem
    assert found.kind == "damaged" or (cut < 20 and found.kind != "empty")


def test_mislabelled_and_unsupported():
  data = encode(smooth(), "PNG")
  found = inspect(data, "n02105855_2933.JPEG")
  assert found.kind == "mislabelled" and found.data is data
  assert found.problem == "a PNG by its content, a JPEG by its name"
  small = inspect(data, "a.jpg", short_side=24)
  assert small.kind == "mislabelled" and opened(small.data).format == "JPEG"
  assert inspect(data, "a.unknown").kind == ""
  # What is damaged as well is damaged.
  assert inspect(data[:100], "a.jpg").kind == "damaged"
  heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
  assert "HEIC" in inspect(heic).problem


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_transparent_images_lie_on_white(kind):
  clear = np.zeros((48, 64), bool)
  clear[:20] = True
  pil = Image.fromarray(np.where(clear, 3, 5).astype(np.uint8), "P")
  pil.putpalette(list(range(60)))
  options = {"transparency": 3}
  if kind != "GIF":
    pil = Image.fromarray(smooth()).convert("RGBA")
    pil.putalpha(Image.fromarray(~clear).convert("L"))
    options = {"lossless": True, "exact": True}
  file = io.BytesIO()
  pil.save(file, kind, **options)
  data, stored = file.getvalue(), np.asarray(pil.convert("RGBA").convert("RGB"))
  found = inspect(data, white_ground=True)
  assert found.kind == "" and opened(found.data).format == "PNG"
  got = inspection.decoded(found)
  assert (got[clear] == 255).all()
  np.testing.assert_array_equal(got[~clear], stored[~clear])
  # Where data are as the paper's, the colour beneath stays, and the bytes do.
  found = inspect(data)
  assert found.data is data
  np.testing.assert_array_equal(inspection.decoded(found), stored)


def test_half_transparent_colours_are_mixed_with_white():
  rgba = np.full((8, 8, 4), (100, 0, 200, 51), np.uint8)  # A fifth.
  got = inspection.decoded(inspect(encode(rgba, "PNG"), white_ground=True))
  want = [100 / 5 + 255 * 4 / 5, 255 * 4 / 5, 200 / 5 + 255 * 4 / 5]
  assert np.abs(got - want).max() <= 1
  rgba[..., 3] = 255
  data = encode(rgba, "PNG")
  assert inspect(data, white_ground=True).data is data


def test_black_by_empty_bits():
  values = np.arange(256, dtype=np.uint16).reshape(16, 16)
  found = inspect(encode(values, "PNG"), "a.png")
  assert found.kind == "dark" and "upper 8 bits" in found.problem
  assert inspect(encode(values * 256, "PNG"), "a.png").kind == ""
