"""`python -m mixer visualize`, as a user calls it."""

import re

import numpy as np
import pytest
from PIL import Image

from configs import smoke
from mixer import model as model_lib
from mixer.commands import arguments, visualize
from tests import trained_files

pytestmark = pytest.mark.usefixtures("untouched")


@pytest.fixture(scope="module")
def run(digits_run):
  return digits_run


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
  def go(*words, code=0):
    out = tmp_path / "out"
    assert visualize.main([*map(str, words), "-o", str(out)]) == code
    said = capfd.readouterr()
    names = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    listed = re.findall(r"(?m)^  (\w+)\.png, \.svg +\S", said.out)
    both = [f"{name}.{end}" for name in listed for end in ("png", "svg")]
    assert names == sorted(both)
    return said, listed

  return go


@pytest.mark.slow
def test_everything_from_a_run(run, command):
  words = ["--examples=8", "--explain=2", "--smooth=2"]
  said, files = command(run, *words, "--image_size=16x24")
  assert files == [
    "tokens_block0",
    "tokens_block1",
    "tokens",
    "stem",
    "distance",
    "receptive_field",
    "similarity",
    "saliency",
    "embedding_pca",
  ]
  assert "8 looked at" in said.out and not said.err
  assert "left out" not in said.out


@pytest.mark.slow
@pytest.mark.parametrize(
  "change, some",
  [
    ({"model.token_mixing": "untied"}, {"similarity", "distance"}),
    ({"data.permute": "patches"}, {"tokens", "receptive_field", "similarity"}),
    ({"data.permute": "pixels"}, {"similarity", "saliency"}),
    (
      {
        "model.num_blocks": 3,
        "model.pyramid_blocks": [1],
        "model.pyramid_tokens": [4],
      },
      {"tokens", "receptive_field", "saliency"},
    ),
  ],
)
def test_whatever_can_be_made_of_other_models(
  tmp_path, photos, command, change, some
):
  config = smoke.get_config()
  with config.unlocked():
    config.update_from_flattened_dict(change)
  trained_files.save(tmp_path / "run", config)
  words = [photos, "--explain=1", "--smooth=1"]
  said, files = command(tmp_path / "run", *words, code=1)
  assert some < set(files) and "left out: " in said.out


def test_images_of_the_command_line(run, photos, command):
  said, files = command(
    "--checkpoint", run, "--figures=embedding,similarity", photos, code=1
  )
  assert files == ["embedding_pca", "similarity"]
  assert "6 looked at" in said.out
  (line,) = said.err.splitlines()
  assert line.startswith("error: ") and "dogs/broken.jpg" in line


def test_weights_without_images(tmp_path, command):
  trained_files.npz(tmp_path / "some.npz", 3)
  said, files = command(tmp_path / "some.npz")
  assert files == [
    "tokens_block0",
    "tokens_block1",
    "tokens",
    "stem",
    "distance",
  ]
  assert said.out.splitlines()[-1] == (
    "left out: receptive_field, similarity, saliency, embedding: it needs "
    "images: name some with --images."
  )


def test_few_images_and_no_head(tmp_path, photos, command):
  trained_files.npz(tmp_path / "body.npz", 0)
  said, files = command(
    tmp_path / "body.npz",
    "--images",
    photos / "cats" / "0.png",
    "--figures=saliency,similarity,embedding,stem",
  )
  assert files == ["stem"]
  assert "saliency: the checkpoint has no head" in said.out
  assert "similarity: it needs at least 4 images, and there is 1" in said.out
  assert "embedding: it needs at least 5 images" in said.out


def test_other_token_mixings_say_what_cannot_be(tmp_path, command):
  config = smoke.get_config()
  config.model.token_groups = 2
  trained_files.save(tmp_path / "run", config)
  said, files = command(tmp_path / "run", "--figures=tokens,distance")
  assert files == ["distance"]
  assert "left out: tokens: units of block 0 take in 32 numbers" in said.out


def test_nothing_to_show(run, tmp_path, command):
  (tmp_path / "empty").mkdir()
  said, _ = command(
    run, "--images", tmp_path / "empty", "--figures=saliency", code=1
  )
  assert f"error: {tmp_path}/empty: there is no image in it." in said.err
  assert "saliency: none of the images could be read." in said.out
  assert said.err.splitlines()[-1] == (
    "error: no figure could be made; see above."
  )


def test_a_data_set_that_is_not_there(tmp_path, command):
  config = smoke.get_config()
  config.data.name = "imagenet2012"
  config.data.data_dir = str(tmp_path / "data")
  trained_files.save(tmp_path / "run", config)
  said, files = command(tmp_path / "run", "--figures=stem,embedding")
  assert files == ["stem"]
  assert "embedding: it needs images: name some with --images. Those of" in (
    said.out
  )


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_way_is_told_first(tmp_path, capfd, monkeypatch, place):
  (tmp_path / "file").write_text("mine")
  monkeypatch.setattr(model_lib, "from_config", None)  # Nothing is loaded.
  out = str(tmp_path / place)
  assert visualize.main(["nowhere", "-o", out]) == 1
  assert "a file is in the way" in capfd.readouterr().err
  assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
  "words, sentence",
  [
    (["-o", "out"], "the checkpoint is missing"),
    (["run"], "required: -o"),
    (["run", "-o", "out", "--figures=tokens,heads"], "'heads' is none of"),
    (["run", "-o", "out", "--examples=0"], "no whole number above 0"),
  ],
)
def test_words_that_make_no_sense(words, sentence, capfd):
  with pytest.raises(SystemExit):
    visualize.main(words)
  assert sentence in capfd.readouterr().err


def test_the_checkpoint_is_a_flag_or_the_first_word():
  for words in (
    ["run", "-o", "out", "a.jpg", "b"],
    ["run", "--images", "a.jpg", "b", "-o", "out"],
    ["--checkpoint=run", "-o", "out", "a.jpg", "b"],
    ["a.jpg", "--checkpoint=run", "-o", "out", "b"],
  ):
    args = arguments.visualize(words)
    assert (args.checkpoint, args.images) == ("run", ["a.jpg", "b"])
