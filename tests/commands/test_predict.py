"""What `python -m mixer predict` says, against what evaluation computes."""

import io
import os
import re

import jax
import numpy as np
import pytest
from PIL import Image

import input_pipeline
from configs import smoke
from mixer import cli, image_files, predictor, sharding, train_step, trained
from mixer.datasets import shipped
from mixer.datasets import split as split_lib
from tests import test_images, trained_files
from tests.commands import predict_fixtures

pytestmark = pytest.mark.usefixtures("untouched")

run = predict_fixtures.run
photos = predict_fixtures.photos
command = predict_fixtures.command
_NAMES = predict_fixtures.NAMES


def table(out):
  """File -> (score, class), the highest first."""
  found, last = {}, ""
  for line in out.split("\n\n", 1)[1].splitlines():
    match = re.fullmatch(r"(.*?) +(\d\.\d{3})  (.*)", line)
    assert match, line
    last = match[1] or last
    found.setdefault(last, []).append((float(match[2]), match[3]))
  return found


def test_it_says_what_evaluation_computes_of_the_same_bytes(
  run, command, data_dir, tmp_path
):
  """Digits as files, and the same ones as a data set."""
  images, _ = shipped.load_digits()
  for i, pixels in enumerate(images[1400:1413]):
    Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
  found = trained.load(str(run))
  config = found.config
  assert config is not None
  config.batch_size = 16
  split = split_lib.open_split("digits", "test[:13]", data_dir)
  mesh = sharding.make_mesh()
  functions = train_step.Inference(found.module, "softmax", 10, mesh)
  (batch,) = input_pipeline.eval_batches(split, config)
  logits, _ = jax.device_get(
    functions.logits(found.params, sharding.put_batch(mesh, batch))
  )
  logits = logits[:13].astype(np.float64)
  p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  order = np.argsort(-p, axis=-1, kind="stable")

  paths = sorted(map(str, tmp_path.iterdir()))
  said = predictor.Predictor(found).predict(paths, top=3)
  assert [s.source for s in said] == paths
  for i, one in enumerate(said):
    np.testing.assert_array_equal(one.indexes, order[i, :3])
    np.testing.assert_allclose(one.scores, p[i, order[i, :3]], rtol=1e-5)
  printed = table(command(tmp_path, "--top=3").out)
  assert list(printed) == paths
  for i, rows in enumerate(printed.values()):
    assert [name for _, name in rows] == [_NAMES[k] for k in order[i, :3]]
    np.testing.assert_allclose(
      [score for score, _ in rows], p[i, order[i, :3]], atol=5.1e-4
    )


def test_files_are_treated_as_a_data_set_made_of_them_is(run, photos, tmp_path):
  """Upright by EXIF; every pixel the same."""
  found = trained.load(str(run))
  assert found.config is not None
  source = tmp_path / "source"
  source.mkdir()
  os.symlink(photos, source / "only")
  flags = ["folder", "--name=photos", f"--source={source}"]
  flags += ["--hold_out=none", "--workers=0", f"--data_dir={tmp_path}/data"]
  assert cli.main(["prepare", *flags]) == 0
  split = split_lib.open_split("photos", "train", f"{tmp_path}/data")
  assert len(split) == 11
  found.config.batch_size = 16
  (batch,) = input_pipeline.eval_batches(split, found.config)
  theirs = {x.tobytes() for x in batch["image"][:11]}
  paths, _ = image_files.expand([str(photos)])
  ours = {predictor.read(path, found).tobytes() for path in paths}
  assert ours == theirs
  assert len(ours) == 11


def test_odd_files(command, tmp_path, caplog):
  """Neither Ghostscript, nor a wait, nor all of the memory."""
  Image.fromarray(np.full((9, 9), 99, np.uint16)).save(tmp_path / "dark.png")
  file = io.BytesIO()
  Image.fromarray(np.full((9, 9), 99, np.uint8)).save(file, "EPS")
  (tmp_path / "cat.jpg").write_bytes(file.getvalue())
  os.mkfifo(tmp_path / "pipe.jpg")
  with open(tmp_path / "huge.jpg", "wb") as f:
    f.truncate(20 << 30)
  (tmp_path / "441.jpg").write_bytes(test_images.rotated_411())
  names = ["dark.png", "cat.jpg", "pipe.jpg", "huge.jpg", "441.jpg"]
  got = command(*(tmp_path / name for name in names), "--top=1", code=1)
  assert list(table(got.out)) == [
    str(tmp_path / n) for n in (names[0], names[4])
  ]
  assert f"{tmp_path}/dark.png: black: the upper 8 bits of all" in caplog.text
  for name, why in (
    ("cat.jpg", "not an image in any format that is read here"),
    ("pipe.jpg", "is no regular file"),
    ("huge.jpg", "has 21,474,836,480 bytes"),
  ):
    assert f"error: {tmp_path}/{name}: {why}" in got.err


def test_damaged_files_are_told_and_the_rest_goes_on(command, photos, tmp_path):
  good = sorted(photos.glob("*.png"))
  cut = tmp_path / "cut.png"
  cut.write_bytes(good[0].read_bytes()[:60])
  (tmp_path / "empty.jpg").touch()
  (tmp_path / "text.jpg").write_text("no image at all")
  misnamed = tmp_path / "misnamed.jpg"
  misnamed.write_bytes(good[1].read_bytes())
  got = command(
    *(good[0], tmp_path, tmp_path / "none.png", good[1]), "--top=1", code=1
  )
  printed = table(got.out)
  assert list(printed) == [str(good[0]), str(misnamed), str(good[1])]
  assert printed[str(misnamed)] == printed[str(good[1])]
  *errors, speed = got.err.splitlines()
  assert re.fullmatch(
    r"7 images in [\d.]+ s, [\d.,]+ images/s; 4 can't be used", speed
  )
  assert [e.split(": ")[1] for e in errors] == [
    *(str(tmp_path / name) for name in ("cut.png", "empty.jpg", "text.jpg")),
    str(tmp_path / "none.png"),
  ]
  assert "0 bytes" in errors[1] and "No such file" in errors[3]


def test_batches_do_not_depend_on_what_lies_beside(run, photos):
  """More files than a batch: 8 devices have 256 at a time."""
  model = predictor.Predictor(trained.load(str(run)))
  paths, _ = image_files.expand([str(photos)])
  once = {s.source: s for s in model.predict(paths)}
  for one in model.stream([*paths * 25, "none.jpg", paths[0]]):
    if one.source == "none.jpg":
      assert one.problem and not one.names
    else:
      assert one.indexes == once[one.source].indexes
      np.testing.assert_allclose(
        one.scores, once[one.source].scores, rtol=1e-5, atol=1e-7
      )


def test_nothing_found(command, tmp_path):
  err = command(tmp_path, f"{tmp_path}/*.png", code=1).err
  assert err.startswith(f"error: there is no image in {tmp_path}, ")
  assert "expected files, folders" in err


def test_a_pattern_that_matches_nothing_is_told(command, photos, tmp_path):
  got = command(photos / "00.png", f"{tmp_path}/*.gif", code=1)
  assert f"error: {tmp_path}/*.gif: there is no image\n" in got.err
  assert len(table(got.out)) == 1


@pytest.mark.parametrize(
  ("num_classes", "bias", "header", "name"),
  [
    (10, 0.0, "probabilities (softmax); 10 classes", r"output \d"),
    (21_843, -9.0, "sigmoids, each class for itself; 21,843", r"[\w' ().-]+"),
  ],
)
def test_the_header_says_what_the_scores_are(
  command, photos, tmp_path, num_classes, bias, header, name
):
  path = tmp_path / "w.npz"
  trained_files.npz(path, num_classes, bias)
  out = command(photos / "00.png", checkpoint=path).out
  assert f"scores        {header}" in out
  ((_, rows),) = table(out).items()
  assert len(rows) == 5
  assert all(re.fullmatch(name, label) for _, label in rows)


def test_without_head(command, photos, tmp_path):
  trained_files.npz(tmp_path / "w.npz", 0)
  out = tmp_path / "out.csv"
  args = (photos, f"--output={out}")
  err = command(*args, checkpoint=tmp_path / "w.npz", code=1).err
  assert "has no head" in err and "--features" in err
  assert os.listdir(tmp_path) == ["w.npz"]


def test_logits_that_are_not_numbers(command, photos, tmp_path):
  config = smoke.get_config()
  config.optimizer.ema_decay = 0.0
  trained_files.save(tmp_path, config, scale=np.nan)
  got = command(photos / "00.png", "--top=1", checkpoint=tmp_path, code=1)
  assert "00.png: the model's logits for it are not numbers" in got.err
