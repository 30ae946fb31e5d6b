"""What figures share: titles that fit, full rows, files that repeat."""

import dataclasses
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from mixer import model, trained
from mixer.insight import figures, kernels


def of(module, size=(224, 224), source="somewhere"):
  return trained.Trained(
    module, {}, size, 256, None, None, "softmax", source, source
  )


def test_names():
  b16 = model.build("B/16", num_classes=3)
  assert figures.name_of(of(b16)) == "Mixer-B/16 at 224 x 224 px"
  assert figures.name_of(of(model.build("H/9"), (90, 18))).startswith(
    "Mixer-H/9 at 90 x 18"
  )
  other = dataclasses.replace(b16, hidden_dim=5)
  assert "12 blocks, 5 channels, patches of 16 px" in figures.name_of(of(other))


def test_long_paths_lose_their_first_folders():
  path = "/".join(f"folder_{i}" for i in range(30)) + "/run (step 9)"
  text = figures.subtitle(of(model.build("S/16"), source=path))
  assert len(text) <= 104 and ".../folder_" in text
  assert text.endswith("/folder_29/run (step 9)")
  short = figures.subtitle(of(model.build("S/16"), source="a/b"))
  assert short.endswith("; a/b")


@pytest.mark.parametrize(
  "count, ideal, step, expected",
  [(64, 12, 2, 16), (384, 30, 2, 32), (512, 30, 1, 32), (5, 3, 2, 2)],
)
def test_columns_fill_the_last_row(count, ideal, step, expected):
  assert figures.columns(count, ideal, step) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 7, 640, 2560])
def test_columns_are_never_more_than_there_is(count):
  found = figures.columns(count, (2.2 * count) ** 0.5, 2)
  assert found % 2 == 0 and 2 <= found <= count + 1


def test_files_are_sharp_and_repeat(tmp_path):
  units = np.random.default_rng(0).normal(size=(8, 3, 3))
  picture = kernels.montage(units, 4)
  bytes_ = []
  for name in ("one", "two"):
    with figures.style():
      figure = figures.tiles(picture, 4, ("A $ title", "more"), bar="weight")
      files = figures.save(figure, tmp_path, name)
    bytes_.append([file.read_bytes() for file in files])
  assert bytes_[0] == bytes_[1]
  assert [file.name for file in files] == ["two.png", "two.svg"]
  ET.fromstring(bytes_[0][1])
  assert b"<dc:date>" not in bytes_[0][1]
  drawn = np.asarray(Image.open(files[0]).convert("RGB"))
  # Every pixel of the montage is a square of pixels of the file.
  zoom = 110 // 4
  large = picture.repeat(zoom, 0).repeat(zoom, 1)
  first = np.argwhere((drawn == large[0, 0]).all(-1))
  assert any(
    np.array_equal(drawn[y : y + len(large), x : x + large.shape[1]], large)
    for y, x in first[:50]
  )
