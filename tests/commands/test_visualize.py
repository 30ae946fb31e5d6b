"""`python -m mixer visualize`, as a user calls it."""

import re
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
    names = sorted(p.name for p in out.iterdir())
    listed = re.findall(r"(?m)^  (\w+)\.png, \.svg +\S", said.out)
    both = [f"{name}.{end}" for name in listed for end in ("png", "svg")]
    assert names == sorted(both)
    return said, listed

  return go


@pytest.mark.slow
def test_everything_from_a_run(digits_run, command):
  words = ["--examples=8", "--explain=2", "--smooth=2", "--image_size=16x24"]
  said, files = command(digits_run, *words)
  assert set(files) == {
    *("tokens_block0", "tokens_block1", "embedding_pca"),
    *set(visualize.FIGURES) - {"embedding"},
  }
  assert re.search("images +8\n", said.out) and not said.err
  assert "left out" not in said.out


@pytest.mark.slow
@pytest.mark.parametrize(
  "change, left_out",
  [
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
def test_what_can_be_made_of_other_models(
  tmp_path, photos, command, change, left_out
):
  config = smoke.get_config()
  with config.unlocked():
    config.update_from_flattened_dict(change)
  trained_files.save(tmp_path / "run", config)
  words = [photos, "--explain=1", "--smooth=1"]
  said, files = command(tmp_path / "run", *words, code=1)
  assert {*re.findall(r"(?m)^left out: (\w+): ", said.out)} == left_out
  kinds = {name.removesuffix("_pca") for name in files}
  assert kinds >= set(visualize.FIGURES) - left_out
  # Of a pyramid what comes before its first step.
  assert ("tokens_block0" in files) == ("tokens" in files)
  assert ("tokens" in files) == (
    "model.num_blocks" in change or "tokens" not in left_out
  )


def test_files_are_sharp_and_repeat(digits_run, photos, tmp_path, command):
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


def test_weights_alone_few_images_and_no_head(tmp_path, photos, command):
  trained_files.npz(tmp_path / "body.npz", 0)
  one = ["--images", photos / "cats" / "0.png"]
  kinds = "--figures=stem,saliency,similarity"
  said, files = command(tmp_path / "body.npz", *one, kinds)
  assert files == ["stem"]
  assert "saliency: the checkpoint has no head" in said.out
  assert "similarity: it needs 4 images at least." in said.out
  said, files = command(tmp_path / "body.npz", "--figures=stem,saliency")
  assert said.out.splitlines()[-1] == (
    "left out: saliency: it needs 1 images at least. name some with --images."
  )
  (tmp_path / "bad.png").write_bytes(b"")
  bad = ["--images", tmp_path / "bad.png", "--figures=embedding"]
  for name in tmp_path.glob("out/*"):
    name.unlink()
  said, _ = command(tmp_path / "body.npz", *bad, code=1)
  last = said.err.splitlines()[-1]
  assert last == "error: no figure could be made; see above."


def test_a_data_set_that_is_not_there(tmp_path, command):
  config = smoke.get_config()
  config.data.name = "imagenet2012"
  config.data.data_dir = str(tmp_path / "data")
  trained_files.save(tmp_path / "run", config)
  said, files = command(tmp_path / "run", "--figures=stem,embedding")
  assert files == ["stem"]
  assert "embedding: it needs 5 images at least. data set imag" in said.out


def test_mistakes_are_told_first(tmp_path, capfd, monkeypatch):
  (tmp_path / "file").write_text("mine")
  monkeypatch.setattr(model_lib, "from_config", None)  # Nothing is loaded.
  monkeypatch.setattr(visualize.importlib.util, "find_spec", lambda name: None)
  for words, said in (
    (["nowhere", "-o", str(tmp_path / "file")], "can't be written"),
    (["x", "-o", "out", "--embedding=umap"], "pip install umap-learn"),
    (["-o", "out"], "the checkpoint is missing"),
  ):
    assert cli.main(["visualize", *words]) == 1
    assert said in capfd.readouterr().err
  for words, said in (
    (["run"], "required: -o"),
    (["run", "-o", "out", "--figures=tokens,heads"], "expected some of to"),
    (["run", "-o", "out", "--examples=0"], "no whole number from 1"),
  ):
    with pytest.raises(SystemExit):
      cli.main(["visualize", *words])
    assert said in capfd.readouterr().err


def test_the_checkpoint_is_a_flag_or_the_first_word(monkeypatch):
  seen = []
  monkeypatch.setattr(visualize.files, "writing", lambda *_: 1 / 0)
  for words in (
    ["run", "-o", "out", "a.jpg", "b"],
    ["run", "--images", "a.jpg", "b", "-o", "out"],
    ["--checkpoint=run", "-o", "out", "a.jpg", "b"],
  ):
    args = cli.parser("visualize").read(words)
    with pytest.raises(ZeroDivisionError):
      visualize.main(args)
    seen.append((args.checkpoint, args.images))
  assert seen == 3 * [("run", ["a.jpg", "b"])]
