"""Image files of every format that is decoded, damaged at random.

Whatever the bytes, and whatever was decoded before: the answer is an image or a
sentence, the same one from preparing, evaluating and training. A process of its
own decodes them, with memory bound to `_MEMORY` beyond what it needs to start;
an input ends within `_SECONDS`.
"""

import faulthandler
import resource
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mixer import inspection, jpeg, predictor, preprocess
from tests import test_images, test_inputs
from tests.fuzz import mutations

_INPUTS = 10_000
_MEMORY, _SECONDS = 2 << 30, 60


def _seeds() -> list[bytes]:
  picture = test_images.picture(40, 56)
  rgb = Image.fromarray(picture)
  rgba = rgb.copy()
  rgba.putalpha(Image.fromarray(picture[..., 0]))
  grey = Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
  exif = Image.Exif()
  exif[0x0112] = 6
  more = {"save_all": True, "append_images": [rgba.rotate(90)]}
  kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
    (rgb, "jpeg", {"progressive": True}),
    (rgb, "jpeg", {"restart_marker_blocks": 2, "exif": exif}),
    (rgb, "jpeg", {"optimize": True, "keep_rgb": True, "subsampling": 0}),
    (rgb, "jpeg", {"mode": "L"}),
    (rgb, "jpeg", {"mode": "CMYK", "icc_profile": bytes(200)}),
    (rgb, "png", {"mode": "P", "transparency": 3}),
    (rgb, "png", {"transparency": (1, 2, 3), "exif": exif}),
    (rgba, "webp", {"lossless": True, "exif": exif}),
    *((rgba, kind, more) for kind in ("webp", "gif")),
    (rgba, "tiff", {"exif": exif}),
    (rgb, "tiff", {"mode": "1", "compression": "group4"}),
    *((rgba, kind, {}) for kind in ("png", "gif", "bmp", "avif")),
    *((rgb, kind, {}) for kind in ("png", "webp", "bmp", "ppm", "avif")),
    *((rgb, kind, {"mode": "1"}) for kind in ("png", "ppm")),
    *((grey, kind, {}) for kind in ("png", "tiff")),
    *((rgb, kind, {"mode": m}) for kind, m in (("bmp", "P"), ("tiff", "CMYK"))),
    *(
      (rgb, "tiff", {"compression": c})
      for c in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")
    ),
  ]
  return [
    *(test_images.encode(image, kind, **o) for image, kind, o in kinds),
    *(jpeg.encode(picture, 95, s) for s in ("420", "422", "440", "444")),
    test_images.rotated_411(),
    b"P5 4 2 4095 " + bytes(range(16)),
    b"P3 2 1 255 1 2 3 4 5 6 ",
    test_images.tiff_12_bits(np.full((40, 56), 999, np.uint16)),
  ]


def _answer(function: Any, *args: Any) -> Any:
  """Pixels or a sentence."""
  try:
    return function(*args)
  except ValueError as e:  # The documented one.
    return str(e)


def _check(data: bytes, rng: np.random.Generator) -> bool:
  """Whether it is an image."""
  found = inspection.inspect(data, "")
  good = found.kind in inspection.USABLE
  assert bool(found.problem) == bool(found.kind)
  first = inspection.decoded(found) if good else found.problem
  np.testing.assert_array_equal(_answer(preprocess.decode, data), first)
  evaluated = _answer(preprocess.evaluation, data, 24, 24)
  options = preprocess.TrainOptions(size=24)
  trained = _answer(preprocess.train, data, rng, options)
  # What is cut off needn't decode.
  assert not (good and isinstance(trained, str)), trained
  predicted = _answer(predictor.fit, data, test_inputs.model())
  for answer in (evaluated, predicted):
    assert isinstance(answer, str) != good
  seen = inspection.inspect(
    data, "a.jpg", upright=True, white_ground=True, short_side=20
  )
  if seen.kind in inspection.USABLE:
    preprocess.decode(seen.data)
  return good


def _run(count: int, seed: int) -> None:
  warnings.simplefilter("ignore")
  rng, seeds = np.random.default_rng(seed), _seeds()
  for data in seeds:
    assert _check(data, rng)

  def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

  before, good = peak(), 0
  for i in range(count):
    data = mutations.mutated(seeds[rng.integers(len(seeds))], rng, seeds)
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    try:
      good += _check(data, rng)
    except Exception as e:
      raise AssertionError(f"input {i}") from e
    faulthandler.cancel_dump_traceback_later()
    assert peak() < before + _MEMORY, f"input {i}"
  assert count / 20 < good < count * 19 / 20


@pytest.mark.slow
def test_any_bytes_are_an_image_or_a_sentence():
  command = [sys.executable, "-m", "tests.fuzz.test_images", str(_INPUTS), "15"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert not done.returncode, done.stderr[-5000:]


_LARGE = """
import pathlib, resource, sys
from mixer import preprocess
data = pathlib.Path(sys.argv[1]).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
  preprocess.evaluation(data)
except ValueError as e:
  print(e)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ("kind", "size", "refused"),
  [
    ("webp", (8192, 8192), False),
    ("webp", (16383, 10922), True),
    ("png", (16384, 8192), False),
  ],
)
def test_the_largest_images(kind, size, refused, tmp_path, monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
  options = {"lossless": True, "quality": 0} if kind == "webp" else {}
  image = Image.new("RGBA", size, (255, 0, 0, 9))
  image.save(tmp_path / "a", kind, **options)
  command = [sys.executable, "-W", "ignore", "-c", _LARGE, str(tmp_path / "a")]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  *messages, memory = done.stdout.splitlines()
  assert bool(messages) == refused
  assert int(memory) < (2**28 if refused else _MEMORY)


if __name__ == "__main__":
  _run(*map(int, sys.argv[1:]))
