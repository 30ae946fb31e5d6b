"""Every form of an image becomes what evaluation sees of it."""

import io
import itertools
import os
import types

import numpy as np
import pytest
from PIL import Image, ImageOps

from mixer import inspection, predictor, preprocess
from tests.test_images import encode, picture

_KINDS = {
  "JPEG": ("RGB", "L", "CMYK", "YCbCr"),
  "PNG": ("RGB", "L", "LA", "RGBA", "P", "1", "I;16"),
  "GIF": ("RGB", "L", "P"),
  "WEBP": ("RGB", "RGBA"),
  "BMP": ("RGB", "L", "P", "1"),
  "TIFF": ("RGB", "L", "CMYK", "RGBA", "1", "I;16", "LAB"),
  "PPM": ("RGB", "L", "1"),
}
_TURNED = ("JPEG", "PNG", "TIFF", "WEBP")


def model(size=(20, 24), short_side=30):
  return types.SimpleNamespace(
    image_size=size, short_side=short_side, interpolation=""
  )


def pillow(mode, size=(41, 63)):
  image = picture(*size)
  if mode == "I;16":
    return Image.fromarray(image[..., 0].astype(np.uint16) * 257)
  return Image.fromarray(image).convert("RGB" if mode == "LAB" else mode)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd metadata.
@pytest.mark.parametrize("kind", _KINDS)
def test_a_file_is_what_a_data_set_made_of_it_has(kind):
  turns = range(10) if kind in _TURNED else [1]
  for mode, turn in itertools.product(_KINDS[kind], turns):
    options = {}
    if kind in _TURNED:
      options["exif"] = Image.Exif()
      options["exif"][0x0112] = turn
    if kind == "JPEG":
      options |= {"quality": 5 + 10 * turn, "progressive": turn % 2 == 0}
    if kind in ("PNG", "GIF") and turn % 2 and mode in ("L", "P", "1"):
      options["transparency"] = 0
    data = encode(pillow(mode), kind, **options)
    found = inspection.inspect(data, "", upright=True, white_ground=True)
    assert found.problem == ""
    want = preprocess.evaluation(found.data, (20, 24), 30)
    got = predictor.fit(data, model())
    np.testing.assert_array_equal(got, want)
    if mode in ("LAB", "YCbCr"):  # Not what a file of it opens as.
      continue
    # Pillow's image of a JPEG that is turned isn't encoded once more.
    opened = predictor.fit(Image.open(io.BytesIO(data)), model())
    apart = np.abs(opened.astype(int) - want).mean()
    assert apart < (12 if kind == "JPEG" else 1e-9), (mode, turn)
    if mode == "RGB" and kind == "PNG":
      upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
      want = preprocess.evaluation(np.asarray(upright), (20, 24), 30)
      np.testing.assert_array_equal(got, want)


def test_all_forms_of_an_image_are_one(tmp_path):
  path, array = tmp_path / "a.png", picture(41, 63)
  Image.fromarray(array).save(path)
  data = path.read_bytes()
  want = preprocess.evaluation(data, (20, 24), 30)
  for form in (
    *(path, str(path), data, bytearray(data), memoryview(data)),
    *(Image.open(path), Image.fromarray(array), io.BytesIO(data)),
    *(array, np.asfortranarray(array), array[::-1, ::-1][::-1, ::-1]),
  ):
    got = predictor.fit(form, model())
    np.testing.assert_array_equal(got, want)
    assert got.flags.writeable and not np.shares_memory(got, array)
  grey = array[..., 0]
  want = predictor.fit(encode(grey), model())
  for form in (grey, grey[..., None], np.stack([grey] * 3, -1)):
    np.testing.assert_array_equal(predictor.fit(form, model()), want)
  for short_side in (0, 41):  # Whole images are copied, too.
    got = predictor.fit(array[:, :41], model((41, 41), short_side))
    np.testing.assert_array_equal(got, array[:, :41])
    assert not np.shares_memory(got, array)


def test_transparent_images_are_on_white_and_animations_still():
  for mode in ("RGBA", "LA", "PA", "P"):
    image = Image.fromarray(np.zeros((30, 30), np.uint8)).convert(mode)
    if mode == "P":
      image.info["transparency"] = image.getpixel((0, 0))
    else:
      image.putalpha(0)
    assert (predictor.fit(image, model()) >= 254).all()
  first, *more = [Image.fromarray(picture(30, 30, seed)) for seed in range(3)]
  moving = encode(first, "GIF", save_all=True, append_images=more)
  np.testing.assert_array_equal(
    predictor.fit(moving, model()), predictor.fit(encode(first, "GIF"), model())
  )


@pytest.mark.parametrize(
  ("image", "problem"),
  [
    (np.zeros((4, 4, 3)), "array of float64.* expected uint8"),
    (np.zeros((4, 4, 4), np.uint8), r"\[4, 4, 4\] is no image"),
    (np.zeros((0, 4, 3), np.uint8), "is no image"),
    (Image.new("RGB", (0, 4)), "no pixels"),
    (Image.fromarray(np.ones((4, 4), np.float32)), "no agreed range"),
    (Image.open(io.BytesIO(encode(picture(9, 9), "EPS"))), "EPS image, not de"),
    (Image.open(io.BytesIO(encode(picture(41, 63))[:900])), "trunc"),
    (3, "a int is no image: expected a path, the bytes"),
    (io.StringIO("a"), "'rb'"),
    (b"", "0 bytes"),
    (b"<html>", "not an image"),
    ("/none/a.jpg", "No such file"),
    ("/", "Is a directory"),
    ("a\0b", "null"),
  ],
  ids=range(14),
)
def test_what_is_no_image_is_refused(image, problem):
  with pytest.raises(ValueError, match=problem):
    predictor.fit(image, model())


def test_odd_files(tmp_path, caplog):
  os.mkfifo(tmp_path / "pipe.jpg")
  with open(tmp_path / "huge.jpg", "wb") as f:
    f.truncate(20 << 30)
  with pytest.raises(ValueError, match="no regular file"):
    predictor.fit(tmp_path / "pipe.jpg", model())
  with pytest.raises(ValueError, match="more than 268,435,456 bytes"):
    predictor.fit(tmp_path / "huge.jpg", model())
  Image.fromarray(np.full((30, 30), 99, np.uint16)).save(tmp_path / "a.png")
  assert not predictor.fit(tmp_path / "a.png", model()).any()
  (message,) = caplog.messages
  assert message.startswith(f"{tmp_path}/a.png: black: the upper 8 bits")
