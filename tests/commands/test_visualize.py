"""`python -m mixer visualize`, as a user calls it."""

import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from configs import smoke
from mixer import cli
from mixer import model as model_lib
from mixer.commands import visualize
from mixer.insight import kernels
from tests import trained_files

pytestmark = pytest.mark.usefixtures("untouched")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Three images in each of two folders, and a damaged one."""
  root = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  for folder in ("cats", "dogs"):
    (root / folder).mkdir()
    for i in range(3):
      image = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
      image.save(root / folder / f"{i}.png")
  (root / "dogs" / "broken.jpg").write_bytes(b"\xff\xd8 no more")
  return root


@pytest.fixture
def command(tmp_path, capfd):
  """Runs it; what it said, and the figures that are there."""

  def go(*words, code=0):
    out = tmp_path / "out"
    assert cli.main(["visualize", *map(str, words), "-o", str(out)]) == code
    said = capfd.readouterr()
    listed = re.findall(r"(?m)^  (\w+)\.png, \.svg +\S", said.out)
    both = [f"{name}.{end}" for name in listed for end in ("png", "svg")]
    assert {p.name for p in out.iterdir()} >= {*both}
    return said, listed

  return go


@pytest.mark.slow
@pytest.mark.parametrize(
  "change, left_out",
  [
    ({}, set()),
    ({"model.token_mixing": "untied"}, {"tokens"}),
    ({"model.token_groups": 2}, {"tokens"}),
    ({"data.permute": "patches"}, set()),
    ({"data.permute": "pixels"}, {"tokens", "distance", "receptive_field"}),
    (
      {
        "model.num_blocks": 3,
        "model.pyramid_blocks": [1],
        "model.pyramid_tokens": [4],
      },
      {"tokens", "similarity"},
    ),
  ],
)
def test_what_can_be_made_of_each_model(
  tmp_path, photos, command, change, left_out
):
  config = smoke.get_config()
  with config.unlocked():
    config.update_from_flattened_dict(change)
  trained_files.save(tmp_path / "run", config)
  words = [photos, "--explain=1", "--smooth=1"]
  size = [] if change else ["--image_size=16x24"]
  said, files = command(tmp_path / "run", *words, *size, code=1)
  assert {*re.findall(r"(?m)^left out: (\w+): ", said.out)} == left_out
  kinds = {name.removesuffix("_pca") for name in files}
  assert kinds >= set(visualize.FIGURES) - left_out
  # Of a pyramid what comes before its first step.
  some = "model.num_blocks" in change or "tokens" not in left_out
  assert ("tokens_block0" in files) == ("tokens" in files) == some


def test_files_are_sharp_and_repeat(
  digits_run, photos, tmp_path, command, monkeypatch
):
  words = [digits_run, "--figures=stem,embedding", photos]
  said, files = command(*words, code=1)
  assert files == ["stem", "embedding_pca"]
  assert re.search("images +6\n", said.out)
  (line,) = said.err.splitlines()
  assert line.startswith("error: ") and "dogs/broken.jpg" in line
  folder = tmp_path / "out"
  before = {path: path.read_bytes() for path in folder.iterdir()}
  command(*words, code=1)
  assert before == {path: path.read_bytes() for path in folder.iterdir()}
  ET.fromstring(before[folder / "stem.svg"])
  # Every weight is a square of pixels, all as large.
  drawn = np.asarray(Image.open(folder / "stem.png").convert("RGB"))
  kernel = visualize.trained.load(str(digits_run)).params["stem"]["kernel"]
  picture = kernels.montage(kernels.stem_kernels(kernel), 8)
  zoom = min(1800 // picture.shape[1], 110 // 4)
  large = picture.repeat(zoom, 0).repeat(zoom, 1)
  height, width = large.shape[:2]
  assert any(
    np.array_equal(drawn[y : y + height, x : x + width], large)
    for y, x in np.argwhere((drawn == large[0, 0]).all(-1))[:50]
  )
  # Without images, those of the run's data set.
  monkeypatch.setitem(sys.modules, "umap", None)
  words = ["--figures=embedding", "--examples=8", "--embedding=umap"]
  said, files = command(digits_run, *words)
  assert files == ["embedding_pca"] and re.search("images +8\n", said.out)
  assert "embedding: install it: python -m pip install umap-learn" in said.out


def test_weights_alone_few_images_and_no_head(tmp_path, photos, command):
  body, bad = tmp_path / "body.npz", tmp_path / "bad.png"
  trained_files.npz(body, 0)
  one = ["--images", photos / "cats" / "0.png"]
  said, files = command(body, *one, "--figures=stem,saliency,similarity")
  assert files == ["stem"]
  assert "saliency: the checkpoint has no head" in said.out
  assert "similarity: it needs 4 images at least." in said.out
  said, files = command(body, "--figures=stem,saliency")
  assert said.out.splitlines()[-1] == (
    "left out: saliency: it needs 1 images at least: name some with --images."
  )
  bad.write_bytes(b"")
  said, _ = command(body, "--images", bad, "--figures=embedding", code=1)
  last = said.err.splitlines()[-1]
  assert last == "error: no figure could be made; see above."
  config = smoke.get_config()
  config.data.name, config.data.data_dir = "imagenet2012", str(tmp_path / "no")
  trained_files.save(tmp_path / "run", config)
  said, files = command(tmp_path / "run", "--figures=stem,embedding")
  assert files == ["stem"]
  assert "embedding: it needs 5 images at least: data set imag" in said.out


def test_mistakes_are_told_first(tmp_path, capfd, monkeypatch):
  (tmp_path / "file").write_text("mine")
  monkeypatch.setattr(model_lib, "from_config", None)  # Nothing is loaded.
  for words, said in (
    (["nowhere", "-o", str(tmp_path / "file")], "can't be written"),
    (["-o", "out"], "the checkpoint is missing"),
  ):
    assert cli.main(["visualize", *words]) == 1
    assert said in capfd.readouterr().err
  for words, said in (
    (["run"], "required: -o"),
    (["run", "-o", "out", "--figures=tokens,heads"], "expected some of to"),
  ):
    with pytest.raises(SystemExit):
      cli.main(["visualize", *words])
    assert said in capfd.readouterr().err
  # The checkpoint is a flag or the first word.
  for words in (
    ["run", "-o", str(tmp_path / "file"), "a.jpg", "b"],
    ["--checkpoint=run", "-o", str(tmp_path / "file"), "a.jpg", "b"],
  ):
    args = cli.parser("visualize").read(words)
    with pytest.raises(visualize.UserError, match="can't be written"):
      visualize.main(args)
    assert (args.checkpoint, args.images) == ("run", ["a.jpg", "b"])
