"""Thumbnails, decoded again."""

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from mixer import preprocess
from mixer.datasets import split as split_lib
from mixer.errors import UserError
from mixer.report import thumbnails


def decoded(uri):
  """The kind that a data URI says, and its image."""
  head, _, text = uri.partition(",")
  image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
  assert head == f"data:image/{image.format.lower()};base64"
  return image.format, np.asarray(image)


def test_small_ones_are_exact():
  rng = np.random.default_rng(0)
  for shape in ((1, 1, 3), (16, 16, 3), (64, 40, 3)):
    image = rng.integers(0, 256, shape, np.uint8)
    kind, got = decoded(thumbnails.of_image(image))
    assert kind == "PNG"
    np.testing.assert_array_equal(got, image)


@pytest.mark.parametrize(
  ("shape", "expected"),
  [
    ((65, 20, 3), (65, 20, 3)),
    ((224, 224, 3), (192, 192, 3)),
    ((192, 384, 3), (96, 192, 3)),
  ],
)
def test_large_ones_are_small_jpegs(shape, expected):
  rows = np.linspace(0, 255, shape[0])[:, None, None]
  image = np.broadcast_to(rows, shape).astype(np.uint8)
  uri = thumbnails.of_image(image)
  kind, got = decoded(uri)
  assert kind == "JPEG"
  assert got.shape == expected
  rows = np.linspace(0, 255, expected[0])[:, None, None]
  assert np.abs(got - rows).max() < 12
  assert len(uri) < 20_000


def test_what_the_model_sees(data_dir):
  split = split_lib.open_split("digits", "test", data_dir)
  found = thumbnails.read(split, [3, 0, 396], (8, 12), 12)
  assert list(found) == [3, 0, 396]
  for place, uri in found.items():
    expected = preprocess.evaluation(split[place]["image"], (8, 12), 12)
    np.testing.assert_array_equal(decoded(uri)[1], expected)
  assert thumbnails.read(split, [], (8, 8), 8) == {}


def test_a_damaged_record(data_dir):
  whole = split_lib.open_split("digits", "test", data_dir)

  class Source:
    def __getitems__(self, indices):
      return [{"image": b"no image", "label": 0} for _ in indices]

  split = dataclasses.replace(whole, source=Source())
  with pytest.raises(UserError, match="split test, record 5 can't be decoded"):
    thumbnails.read(split, [5], (8, 8), 8)
