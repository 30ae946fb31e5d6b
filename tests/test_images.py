"""Image files are found; every kind decodes to the pixels its format says."""

import collections
import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from mixer import errors, image_files, images, preprocess


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


def tiff_grey(values, **tags):
  """An uncompressed grey TIFF with tags beyond Pillow's own."""
  info = TiffImagePlugin.ImageFileDirectory_v2()
  for name, value in tags.items():
    info[{"largest": 281, "signed_largest": 341}[name]] = value
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


def rotated_411(height=64, width=96):
  """A JPEG of 4:4:1, for which simplejpeg has no name."""
  factor = (
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
  )
  done, turned = cv2.imencode(".jpg", picture(width, height), factor)
  assert done
  data = bytearray(turned.tobytes())
  frame = data.index(b"\xff\xc0")
  assert data[frame + 11] == 0x41
  data[frame + 11] = 0x14
  # As many units as before, though in other places.
  data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
  return bytes(data)


def test_images_are_found_in_order_and_links_end(tmp_path):
  for name in (
    "b.JPG", "a/2.png", "a/1.webp", "a/.hidden.png", "a/README", "a/notes.txt",
    "a/x.foo", "a/noext", "__MACOSX/c.png", ".hid/c.png", "d/._e.png",
  ):  # fmt: skip
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
  (tmp_path / "a" / "up").symlink_to(tmp_path)
  (tmp_path / "gone.gif").symlink_to(tmp_path / "nowhere")
  passed_over = collections.Counter()
  found = [way for way, _ in image_files.find(str(tmp_path), passed_over)]
  assert found == ["a/1.webp", "a/2.png", "a/noext", "b.JPG", "gone.gif"]
  assert passed_over == {".foo": 1}
  with pytest.raises(errors.UserError, match="nowhere can't be listed: No su"):
    list(image_files.find(str(tmp_path / "nowhere")))


def test_formats_and_modes():
  image = picture(37, 53)
  for kind in ("png", "bmp", "tiff", "webp", "ppm"):
    options = {"lossless": True} if kind == "webp" else {}
    got = preprocess.decode(encode(image, kind, **options))
    np.testing.assert_array_equal(got, image)
  grey = image[..., 0]
  alpha = np.random.default_rng(0).integers(0, 256, (37, 53, 1), np.uint8)
  black_and_white = (grey > 128) * np.uint8(255)
  for encoded, want in (
    (encode(grey), grey[..., None]),
    (encode(grey, mode="LA"), grey[..., None]),
    (encode(grey > 128), black_and_white[..., None]),
    # The colour beneath shows.
    (encode(np.concatenate([image, alpha], -1)), image),
  ):
    got = preprocess.decode(encoded)
    np.testing.assert_array_equal(got, np.broadcast_to(want, (37, 53, 3)))
  palette = Image.fromarray(image).quantize(16)
  for kind, options in (
    ("png", {}), ("png", {"transparency": 3}), ("gif", {}),
    ("png", {"transparency": b"\1\2\3"}), ("gif", {"transparency": 3}),
    # The first frame is taken.
    ("gif", {"save_all": True, "append_images": [palette.rotate(90)]}),
  ):  # fmt: skip
    got = preprocess.decode(encode(palette, kind, **options))
    np.testing.assert_array_equal(got, np.array(palette.convert("RGB")))
  inks = np.dstack([255 - image, np.full((37, 53), 60, np.uint8)])
  pil = Image.fromarray(inks, "CMYK")
  want = (255.0 - inks[..., :3]) * (255 - 60) / 255
  assert np.abs(preprocess.decode(encode(pil, "tiff")) - want).max() <= 1
  got = preprocess.decode(encode(pil, "jpeg", quality=95, subsampling=0))
  assert np.abs(got - want).mean() < 3


def test_the_upper_8_of_the_declared_bits_are_used():
  values = np.random.default_rng(0).integers(0, 2**12, (8, 10)).astype("u2")
  for encoded in (
    tiff_12_bits(values),
    tiff_grey(values, largest=4095),
    tiff_grey(values.astype(np.int32), signed_largest=4095),
    b"P5 10 8 4095 " + values.astype(">u2").tobytes(),
  ):
    got = preprocess.decode(encoded).astype(int)
    # 4095 needn't become all of 65535.
    assert np.abs(got - (values >> 4)[..., None]).max() <= 1
    assert not images.Opened(encoded).dark
  got = preprocess.decode(tiff_grey(values >> 4, largest=255))
  np.testing.assert_array_equal(got[..., 0], values >> 4)
  values = np.random.default_rng(0).integers(0, 2**16, (19, 23)).astype("u2")
  for kind in ("png", "tiff"):
    got = preprocess.decode(encode(values, kind))
    np.testing.assert_array_equal(got, np.stack([values >> 8] * 3, -1))
  dark = np.arange(200).reshape(10, 20)
  for factor in (1, 256):
    for kind, dtype in (("png", "u2"), ("tiff", "u2"), ("tiff", "i4")):
      opened = images.Opened(encode((dark * factor).astype(dtype), kind))
      assert opened.dark == (not opened.pixels().any()) == (factor == 1)
  for dtype in (np.float32, np.int32):
    with pytest.raises(ValueError, match="no agreed range; save it as 8-bit"):
      preprocess.decode(encode(np.full((4, 4), 1_000_000, dtype), "tiff"))


def test_what_is_no_image_is_refused():
  page = b"<html>404 Not Found</html>"
  whole, jpeg = encode(picture(200, 300)), encode(picture(200, 300), "jpeg")
  bmp = encode(picture(8, 8), "bmp")
  bomb = bmp[:18] + struct.pack("<ii", 40_000, 40_000) + bmp[26:]
  for data, kind, message in (
    (b"", "empty", "^the image is empty: 0 bytes$"),
    (page, "not an image", "26 bytes that begin with b'<html>404"),
    (bomb, "too large", "exceeds limit of .* pixels"),
    (whole[:900], "damaged", "^cannot decode the image: .*[Tt]runcated"),
    (jpeg[:900], "damaged", "^cannot decode the image: .*[Tt]runcated"),
  ):
    with pytest.raises(images.ImageError, match=message) as e:
      preprocess.decode(data)
    assert e.value.kind == kind


def test_too_many_bytes_pixels_or_scans_are_refused(monkeypatch):
  whole = encode(picture(40, 50), "jpeg", progressive=True)
  at = whole.index(b"\xff\xda", whole.index(b"\xff\xda") + 2)
  scans = whole[:at] + whole[at:-2] * 100 + whole[-2:]
  with pytest.raises(images.ImageError, match="more than 100 scans"):
    preprocess.decode(scans)
  for kind in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm", "avif"):
    # For a decoder that takes more memory half of it is too large.
    factor = 2 if kind in ("webp", "avif") else 1
    encoded = encode(picture(40, 50), kind)
    monkeypatch.setattr(images, "MAX_PIXELS", 2000 * factor)
    assert preprocess.decode(encoded).shape == (40, 50, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 2000 * factor - 2)
    with pytest.raises(images.ImageError, match=r"50 x 40 .*more than"):
      preprocess.decode(encoded)
  monkeypatch.undo()
  monkeypatch.setattr(images, "_MAX_SIDE", 49)
  with pytest.raises(images.ImageError, match="or 49 on a side"):
    preprocess.decode(encode(picture(40, 50)))
  monkeypatch.setattr(images, "MAX_BYTES", len(whole) - 1)
  with pytest.raises(images.ImageError, match=f"{len(whole):,} bytes, more"):
    preprocess.decode(whole)


@pytest.mark.parametrize("kind", ["eps", "ico", "jpeg2000", "pcx", "tga"])
def test_other_formats_are_not_decoded(kind, monkeypatch):
  # Of these Pillow starts Ghostscript for the first.
  encoded = encode(picture(40, 50), kind)
  monkeypatch.setattr(Image, "open", None)
  with pytest.raises(images.ImageError) as e:
    preprocess.decode(encoded)
  assert e.value.kind in ("unsupported", "not an image")


def test_jpegs_that_libjpeg_warns_of_are_whole():
  encoded = encode(picture(64, 96), "jpeg")
  options = preprocess.TrainOptions(size=32, crop="resize", flip=False)
  for data in (
    encoded[:2] + b"\xff\xe2\0\x12ICC_PROFILE\0\1\2ab" + encoded[2:],
    encoded[:2] + b"\xff\0" + encoded[2:],
    encoded[:-2] + b"\x12\x34" * 50 + encoded[-2:],
    rotated_411(),
  ):
    want = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    got = preprocess.evaluation(data, 64, 64)
    assert np.abs(got - want[:, 16:80].astype(int)).mean() < 2
    got = preprocess.train(data, np.random.default_rng(0), options)
    assert np.abs(got - preprocess.resize(want, 32).astype(int)).mean() < 2


def test_orientation():
  exif = Image.Exif()
  exif[0x0112] = 6  # Turn by 90 degrees.
  turned = images.Opened(encode(picture(40, 64), "jpeg", exif=exif))
  upright = images.Opened(encode(picture(40, 64), "jpeg"))
  assert (turned.orientation(), upright.orientation()) == (6, 1)
  np.testing.assert_array_equal(turned.pixels(), upright.pixels())
  # Odd EXIF data: no warning, no exception.
  odd = encode(picture(20, 30), "webp", exif=b"Exif\0\0II*\0\xff\xff")
  assert images.Opened(odd).orientation() == 1
