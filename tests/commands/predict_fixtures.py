"""What the tests of `python -m mixer predict` share: fixtures to take over."""

import numpy as np
import pytest
from PIL import Image

from configs import smoke
from mixer import cli
from tests import trained_files

NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
  """A workdir with classes of its own; evaluation crops."""
  workdir = tmp_path_factory.mktemp("run")
  config = smoke.get_config()
  config.data.eval_short_side = 20
  config.data.data_dir = data_dir
  trained_files.save(
    workdir, config, lambda metadata: metadata.update(class_names=NAMES)
  )
  return workdir


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Files of several formats and shapes; some lie on their side, by EXIF."""
  root = tmp_path_factory.mktemp("photos")
  (root / "below").mkdir()
  rng = np.random.default_rng(0)
  for i in range(11):
    size = (int(rng.integers(12, 60)), int(rng.integers(12, 60)), 3)
    image = Image.fromarray(rng.integers(0, 256, size, np.uint8))
    if i % 3:
      exif = Image.Exif()
      exif[0x0112] = 1 + i % 8
      image.save(root / "below" / f"{i:02}.jpg", exif=exif, quality=90)
    else:
      image.save(root / f"{i:02}.png")
  return root


@pytest.fixture
def command(run, capfd):
  def go(*args, code=0, checkpoint=run):
    words = [f"--checkpoint={checkpoint}", *map(str, args)]
    assert cli.main(["predict", *words]) == code
    return capfd.readouterr()

  return go
