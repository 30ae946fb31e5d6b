"""Every form of an image becomes what evaluation sees of it."""

import io
import os
import pathlib
import tracemalloc

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mixer import errors, inspection, metadata, predictor, preprocess

_AS_SEEN = {"upright": True, "white_ground": True}


def model(size=(20, 24), short_side=30):
  return metadata.Metadata(size, short_side, "softmax", None, None)


def pixels(height, width, seed=0):
  """Smooth, with some noise; uint8 [H, W, 3]."""
  rng = np.random.default_rng(seed)
  y, x, _ = np.mgrid[:height, :width, :1]
  waves = 128 + 80 * np.sin(x / 11 + np.arange(3)) * np.cos(y / 7)
  return (
    (waves + rng.normal(0, 9, (height, width, 3))).clip(0, 255).astype("u1")
  )


_KINDS = {
  "JPEG": ("RGB", "L", "CMYK", "YCbCr"),
  "PNG": ("RGB", "L", "LA", "RGBA", "P", "1", "I;16"),
  "GIF": ("RGB", "L", "P"),
  "WEBP": ("RGB", "RGBA"),
  "BMP": ("RGB", "L", "P", "1"),
  "TIFF": ("RGB", "L", "CMYK", "RGBA", "1", "I;16", "LAB"),
  "PPM": ("RGB", "L", "1"),
}


@st.composite
def files(draw):
  """Bytes of a file of any format, mode, size, orientation; some are bent."""
  kind = draw(st.sampled_from(["JPEG", "JPEG", *_KINDS]))
  mode = draw(st.sampled_from(_KINDS[kind]))
  size = draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
  image = pixels(*size, seed=draw(st.integers(0, 9)))
  if mode == "I;16":
    pil = Image.fromarray(image[..., 0].astype(np.uint16) * 257)
  else:
    pil = Image.fromarray(image).convert("RGB" if mode == "LAB" else mode)
  options = {}
  if kind in ("JPEG", "PNG", "TIFF", "WEBP") and draw(st.booleans()):
    options["exif"] = Image.Exif()
    options["exif"][0x0112] = draw(st.integers(0, 9))
  if kind == "JPEG":
    options |= {
      "quality": draw(st.sampled_from([5, 60, 95, 100])),
      "subsampling": draw(st.sampled_from([-1, 0, 1, 2])),
      "progressive": draw(st.booleans()),
      "restart_marker_blocks": draw(st.sampled_from([0, 1, 3])),
    }
    # Not every pair of these can be encoded.
    if mode == "RGB" and draw(st.booleans()):
      options |= {"keep_rgb": True, "subsampling": 0}
  if kind in ("PNG", "GIF") and draw(st.booleans()):
    options["transparency"] = 0 if mode in ("L", "P", "1") else None
  options = {k: v for k, v in options.items() if v is not None}
  file = io.BytesIO()
  pil.save(file, kind, **options)
  data = bytearray(file.getvalue())
  if draw(st.integers(0, 3)) == 0:
    for _ in range(draw(st.integers(1, 3))):
      place = draw(st.integers(0, len(data) - 1))
      data[place] = draw(st.integers(0, 255))
    try:
      width, height = Image.open(io.BytesIO(bytes(data))).size
    except Exception:
      width, height = 0, 0
    hypothesis.assume(width * height < 10**6)  # Memory for a flipped bit.
  return bytes(data)


def check(data):
  found = inspection.inspect(data, "", **_AS_SEEN)
  if found.problem:
    with pytest.raises(ValueError, match=".") as e:
      predictor.fit(data, model())
    assert str(e.value) == found.problem
    return
  twice = preprocess.decode(found.data)
  once = inspection.decoded(found)
  assert once.dtype == np.uint8
  np.testing.assert_array_equal(once, twice)
  want = preprocess.evaluation(found.data, (20, 24), 30)
  np.testing.assert_array_equal(predictor.fit(data, model()), want)


# Pillow's, of odd metadata.
_odd = pytest.mark.filterwarnings("ignore::UserWarning")


@_odd
@hypothesis.given(files())
@hypothesis.settings(max_examples=120, deadline=None)
def test_one_decode_is_two(data):
  check(data)


@pytest.mark.slow
@_odd
@hypothesis.given(files())
@hypothesis.settings(max_examples=2_000, deadline=None)
def test_one_decode_is_two_at_length(data):
  check(data)


@pytest.mark.parametrize("sampling", ["411", "440"])
def test_one_decode_is_two_of_what_pillow_does_not_write(sampling):
  from mixer import jpeg

  check(jpeg.encode(pixels(50, 70), 90, sampling))


def test_usual_files_are_decoded_once(monkeypatch):
  """That the pixels are kept where it counts."""
  for kind, mode in (("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB")):
    file = io.BytesIO()
    Image.fromarray(pixels(40, 60)).convert(mode).save(file, kind)
    found = inspection.inspect(file.getvalue(), "a", **_AS_SEEN)
    assert found.pixels is not None, (kind, mode)
  # Harmless, but Pillow decodes it, and evaluation wouldn't.
  odd = file.getvalue()
  file = io.BytesIO()
  Image.fromarray(pixels(40, 60)).save(file, "JPEG")
  odd = file.getvalue()[:-2] + b"\0" * 9 + file.getvalue()[-2:]
  assert inspection.inspect(odd, "a", **_AS_SEEN).problem == ""
  check(odd)


@pytest.fixture
def png(tmp_path):
  path = tmp_path / "a.png"
  Image.fromarray(pixels(41, 63)).save(path)
  return path


def test_all_forms_of_an_image_are_one(png):
  array = pixels(41, 63)
  want = preprocess.evaluation(png.read_bytes(), (20, 24), 30)
  for form in (
    png,
    str(png),
    png.read_bytes(),
    bytearray(png.read_bytes()),
    memoryview(png.read_bytes()),
    Image.open(png),
    Image.fromarray(array),
    array,
    np.asfortranarray(array),
    array[::-1, ::-1][::-1, ::-1],
  ):
    got = predictor.fit(form, model())
    np.testing.assert_array_equal(got, want)
    assert got.flags.writeable and not np.shares_memory(got, array)


@pytest.mark.parametrize("short_side", [0, 24])
def test_an_array_is_left_alone(short_side):
  array = pixels(24, 24)
  kept = array.copy()
  got = predictor.fit(array, model((24, 24), short_side))
  np.testing.assert_array_equal(got, kept)
  got[:] = 0
  np.testing.assert_array_equal(array, kept)


def test_grey_arrays():
  grey = pixels(41, 63)[..., 0]
  file = io.BytesIO()
  Image.fromarray(grey).save(file, "PNG")
  want = predictor.fit(file.getvalue(), model())
  for form in (grey, grey[..., None], np.stack([grey] * 3, -1)):
    np.testing.assert_array_equal(predictor.fit(form, model()), want)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_pillow_images_are_turned_upright(kind, turn):
  exif = Image.Exif()
  exif[0x0112] = turn
  file = io.BytesIO()
  Image.fromarray(pixels(41, 63)).save(file, kind, exif=exif, **(
    {"quality": 95} if kind == "JPEG" else {}
  ))  # fmt: skip
  image = Image.open(file)
  upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))
  want = predictor.fit(upright, model()).astype(int)
  np.testing.assert_array_equal(predictor.fit(image, model()), want)
  # Of a turned JPEG's file the pixels are encoded once more.
  of_file = predictor.fit(file.getvalue(), model())
  assert np.abs(of_file - want).mean() < (3 if kind == "JPEG" else 1e-9)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_pillow_images_of_other_modes(mode):
  image = pixels(41, 63)
  if mode == "I;16":
    pil = Image.fromarray(image[..., 0].astype(np.uint16) * 257)
  else:
    pil = Image.fromarray(image).convert(mode)
  file = io.BytesIO()
  pil.save(file, "TIFF" if mode == "CMYK" else "PNG")
  np.testing.assert_array_equal(
    predictor.fit(pil, model()), predictor.fit(file.getvalue(), model())
  )


def test_the_first_frame_of_an_animation():
  frames = [Image.fromarray(pixels(30, 30, seed)) for seed in range(3)]
  file = io.BytesIO()
  frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
  still = io.BytesIO()
  frames[0].save(still, "GIF")
  np.testing.assert_array_equal(
    predictor.fit(file.getvalue(), model()),
    predictor.fit(still.getvalue(), model()),
  )


def test_sizes_at_the_edge():
  dot = predictor.fit(np.full((1, 1, 3), 77, np.uint8), model())
  assert (dot == 77).all()
  done, wide = cv2.imencode(".jpg", np.full((30, 20_000, 3), 50, np.uint8))
  assert done
  assert (
    np.abs(predictor.fit(wide.tobytes(), model()).astype(int) - 50).max() < 3
  )


@pytest.mark.parametrize(
  ("image", "problem"),
  [
    (np.zeros((4, 4, 3)), "array of float64 .* expected uint8"),
    (np.zeros((4, 4, 4), np.uint8), r"\[4, 4, 4\] .*last channel of RGBA"),
    (np.zeros((4, 4, 2), np.uint8), r"\[4, 4, 2\] is no image: expected \[H,"),
    (np.zeros(4, np.uint8), r"\[4\] is no image"),
    (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    (Image.new("RGB", (0, 4)), "no pixels"),
    (Image.fromarray(np.ones((4, 4), np.float32)), "float values"),
    (3, "a int is no image: expected a path, the bytes"),
    (None, "a NoneType is no image"),
    (b"", "0 bytes"),
    (b"<html>", "not an image"),
    ("/none/a.jpg", "No such file"),
    ("a\0b", "null"),
  ],
  ids=range(13),
)
def test_what_is_no_image_is_refused(image, problem):
  with pytest.raises(ValueError, match=problem):
    predictor.fit(image, model())


def test_a_truncated_file_opened_by_pillow_is_refused(png):
  image = Image.open(io.BytesIO(png.read_bytes()[:1000]))
  with pytest.raises(ValueError, match="cannot decode the image: .*trunc"):
    predictor.fit(image, model())


def test_a_folder_and_a_file_without_permission(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="Is a directory"):
    predictor.fit(tmp_path, model())

  def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr("builtins.open", refuse)
  with pytest.raises(ValueError, match="Permission denied"):
    predictor.fit("a.jpg", model())


def test_a_pipe_and_a_huge_file_are_refused(tmp_path):
  os.mkfifo(tmp_path / "pipe.jpg")
  with open(tmp_path / "huge.jpg", "wb") as f:
    f.truncate(20 << 30)
  tracemalloc.start()
  with pytest.raises(ValueError, match="no regular file"):
    predictor.fit(tmp_path / "pipe.jpg", model())
  with pytest.raises(ValueError, match="21,474,836,480 bytes"):
    predictor.fit(tmp_path / "huge.jpg", model())
  assert tracemalloc.get_traced_memory()[1] < 1e6
  tracemalloc.stop()


def test_pillow_images_of_other_formats_are_not_decoded(monkeypatch):
  file = io.BytesIO()
  Image.fromarray(pixels(40, 60)).save(file, "EPS")
  image = Image.open(file)
  monkeypatch.setattr(image, "load", None)
  with pytest.raises(ValueError, match="EPS image, not decoded here; give im"):
    predictor.fit(image, model())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_pillow_images_lie_on_white(mode):
  image = Image.fromarray(np.zeros((30, 30), np.uint8)).convert(mode)
  if mode == "P":
    image.info["transparency"] = image.getpixel((0, 0))
  else:
    image.putalpha(0)
  assert (predictor.fit(image, model()) >= 254).all()


def test_a_dark_file_is_told(tmp_path, caplog):
  Image.fromarray(np.full((30, 30), 99, np.uint16)).save(tmp_path / "a.png")
  assert not predictor.fit(tmp_path / "a.png", model()).any()
  (said,) = caplog.messages
  assert said.startswith(f"{tmp_path}/a.png: black: the upper 8 bits")


def test_one_and_many():
  one = pixels(5, 6)
  for single in ("a", pathlib.Path("a"), b"a", Image.fromarray(one), one):
    assert len(list(predictor._each(single))) == 1
    assert len(list(predictor._each([single]))) == 1
  assert len(list(predictor._each(np.zeros((7, 5, 6, 3), np.uint8)))) == 7
  assert len(list(predictor._each(np.zeros((7, 5, 6, 1), np.uint8)))) == 7
  assert list(predictor._each(iter("ab"))) == ["a", "b"]
  assert list(predictor._each(np.array(["a", "b"]))) == ["a", "b"]
  assert len(list(predictor._each(np.array([b"a", "b"], object)))) == 2
  endless = predictor._each(one for _ in iter(int, 1))
  assert next(endless) is one
  with pytest.raises(errors.UserError, match="int is no image, nor many"):
    predictor._each(3)
