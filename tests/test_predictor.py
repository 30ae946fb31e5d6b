"""`mixer.load` and what it gives, against numpy and the model itself."""

import itertools
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import mixer
from mixer import errors, predictor, runtime, sharding, trained
from mixer.datasets import wordnet
from tests import conftest, reference, trained_files

_SIDE, _CLASSES = 8, 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("predictor")


@pytest.fixture(scope="module")
def loaded(folder):
  """A tiny model on eight devices: 8 images at a time, or 16."""
  path = folder / "w.npz"
  trained_files.npz(path, _CLASSES, side=_SIDE)
  return predictor.Predictor(trained.load(str(path)), batch_size=12)


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (70, 11, 13, 3), np.uint8)


def by_numpy(model, images, head=True):
  fitted = np.stack([predictor.fit(image, model) for image in images])
  scaled = fitted.astype(np.float64) / 127.5 - 1
  return reference.forward(model.params, scaled, head=head)


def close(one, other):
  np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


def test_importing_mixer_loads_nothing():
  code = "import mixer, sys; print(*sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=conftest.ROOT, capture_output=True, text=True, check=True,
  )  # fmt: skip
  heavy = {"jax", "numpy", "flax", "PIL", "cv2", "orbax", "absl"}
  assert not heavy & set(done.stdout.split())
  assert mixer.UserError is errors.UserError


def test_load(folder, loaded, images, monkeypatch, caplog):
  monkeypatch.setattr(runtime, "start_as_library", lambda: None)
  path = folder / "w.npz"
  got = mixer.load(path, batch_size=100)
  assert "which classes its 25 outputs are, so they are" in caplog.text
  assert got.batch_size == 104 and got.model.num_classes == _CLASSES
  assert "w.npz" in repr(got) and "8 x 8 px, 25 classes" in repr(got)
  larger = mixer.load(str(path), 16, "tiles", "bfloat16")
  assert larger.model.image_size == (16, 16)
  assert larger.model.module.dtype == jax.numpy.bfloat16
  assert mixer.load(path, list(np.array([8, 8]))).model.image_size == (8, 8)
  cases: tuple[dict[str, Any], ...] = (
    {"batch_size": 0}, {"batch_size": 2.5}, {"batch_size": "8"},
    {"dtype": "foo"}, {"dtype": "int8"}, {"resize": "foo"},
    {"image_size": 8.5}, {"image_size": "8"}, {"image_size": 0},
    {"image_size": (8, 8, 8)}, {"image_size": (8, -8)},
  )  # fmt: skip
  for wrong in cases:
    (name, value), *_ = wrong.items()
    said = re.escape(f"{name}={value!r}")
    with pytest.raises(errors.UserError, match=f"{said}.*expected"):
      mixer.load(path, **wrong)
  with pytest.raises(errors.UserError, match="nothing|no "):
    mixer.load(folder / "none")


@pytest.mark.parametrize("count", [1, 8, 17, 33])
def test_features_and_logits_are_the_model_s(loaded, images, count):
  """Fewer and more than devices, and than a batch."""
  some = images[:count]
  features, logits = loaded.features(some), loaded.logits(some)
  assert features.shape == (count, loaded.model.module.hidden_dim)
  assert logits.shape == (count, _CLASSES)
  assert features.dtype == logits.dtype == np.float32
  close(features, by_numpy(loaded.model, some, head=False))
  close(logits, by_numpy(loaded.model, some))


@pytest.mark.parametrize("top", [1, 5, 12, 99])
def test_predictions_are_the_highest_logits(loaded, images, top):
  logits = loaded.logits(images[:20]).astype(np.float64)
  p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  order = np.argsort(-p, axis=1, kind="stable")[:, :top]
  said = loaded.predict(images[:20], top)
  assert [one.indexes for one in said] == [tuple(row) for row in order.tolist()]
  scores = np.array([one.scores for one in said])
  close(scores, np.take_along_axis(p, order, 1))
  first = said[0]
  assert first.names[0] == f"output {order[0, 0]}"
  assert first.source == "images[0]" and said[19].source == "images[19]"
  assert set(first.class_ids) == {""} and first.problem == ""


@pytest.fixture
def sizes(monkeypatch):
  """Of the batches that go to the devices, as they go."""
  found, put = [], sharding.put_batch
  monkeypatch.setattr(
    sharding,
    "put_batch",
    lambda mesh, b: found.append(len(b["image"])) or put(mesh, b),
  )
  return found


def test_no_call_compiles_again(loaded, images, sizes):
  for count, top in itertools.product((1, 4, 5, 16, 17, 40), (1, 3, 10)):
    loaded.predict(images[:count], top)
    loaded.predict(iter(images[:count]), top)
  assert set(sizes) == {8, 16}
  functions = loaded._functions(1)
  assert functions is loaded._functions(10)
  # A compilation for each size of batch.
  assert functions.examples._cache_size() == 2
  # A few images don't pay for many: up to a quarter of the large batch.
  sizes.clear()
  loaded.features(images[:4])
  loaded.features(images[:5])
  assert sizes == [8, 16]
  most = loaded._functions(25)
  assert loaded._functions(11) is most and loaded._functions(999) is most


def test_forms_of_images(loaded, images, tmp_path):
  array = images[0]
  path = tmp_path / "a.png"
  Image.fromarray(array).save(path)
  want = loaded.features(array)
  assert want.shape[0] == 1
  with open(path, "rb") as file:
    assert [p.source for p in loaded.predict([file])] == [str(path)]
  mixed = [path, array, Image.open(path), path.read_bytes()]
  for form in mixed:
    np.testing.assert_array_equal(loaded.features(form), want)
  for many in (mixed, iter(mixed), np.array([str(path)] * 4), images[[0] * 4]):
    np.testing.assert_array_equal(loaded.features(many), want[[0] * 4])
  assert [p.source for p in loaded.predict(mixed)] == [
    str(path), "images[1]", "images[2]", "images[3]"
  ]  # fmt: skip
  with pytest.raises(errors.UserError, match="^dict is no image, nor many"):
    loaded.predict({"a": path})
  with pytest.raises(errors.UserError, match="can't be read: .*closed file"):
    loaded.predict(file)


def test_a_copy_for_another_process_says_the_same(loaded, images, monkeypatch):
  monkeypatch.setattr(runtime, "start_as_library", lambda: None)
  pickled = pickle.dumps(loaded)
  again = pickle.loads(pickled)
  assert again.batch_size == loaded.batch_size
  np.testing.assert_array_equal(again.logits(images), loaded.logits(images))
  # In a forked process, where JAX would hang: a sentence, once it is used.
  monkeypatch.setattr(predictor, "_processes", [-1])
  for one in (loaded, pickle.loads(pickled)):
    with pytest.raises(errors.UserError, match="'spawn'"):
      one.predict(images)
  with pytest.raises(errors.UserError, match="'spawn'"):
    mixer.load("none")


@pytest.mark.slow
def test_processes_that_are_spawned(loaded, images):
  with multiprocessing.get_context("spawn").Pool(1) as pool:
    (said,) = pool.map(loaded.predict, [images])
  assert [p.indexes for p in said] == [
    p.indexes for p in loaded.predict(images)
  ]


def test_images_are_read_a_few_batches_ahead(loaded, images):
  """A stream without an end."""
  read = []

  def endless():
    for k in itertools.count():
      read.append(k)
      yield images[k % len(images)]

  stream = loaded.stream(endless())
  assert len(read) <= 5
  for k in range(100):
    one = next(stream)
    assert one.source == f"images[{k}]"
    # One is consumed, one computed, two and a new one are being made.
    assert len(read) - k <= 5 * loaded.batch_size
  stream.close()


def test_a_bad_image_is_named_and_a_stream_goes_on(loaded, images, tmp_path):
  bad = [images[0], tmp_path / "none.jpg", images[1], images[2] / 255]
  with pytest.raises(
    errors.UserError, match=r"none\.jpg can't be used: No suc"
  ):
    loaded.predict(bad)
  with pytest.raises(errors.UserError, match=r"images\[1\] .* expected uint8"):
    loaded.features([images[0], images[2] / 255])
  with pytest.raises(
    errors.UserError, match=r"images\[0\] .* bytes that begin"
  ):
    loaded.logits([b"<html>"])
  said = list(loaded.stream(bad))
  assert [bool(one.problem) for one in said] == [False, True, False, True]
  assert said[1].names == () and "No such file" in str(said[1])
  assert said[0] == loaded.predict(images[0])[0]
  rows = list(loaded.stream_features(bad))
  assert np.isnan(rows[1].values).all() and rows[1].problem
  np.testing.assert_allclose(
    rows[2].values, loaded.features(images[1])[0], rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize("call", ["predict", "features", "logits", "stream"])
def test_no_image(loaded, images, call):
  for none in ([], iter(()), np.zeros((0, 8, 8, 3), np.uint8)):
    with pytest.raises(errors.UserError, match="there is no image"):
      getattr(loaded, call)(none)
  with pytest.raises(errors.UserError, match="int is no image, nor many"):
    getattr(loaded, call)(3)
  for top in (0, 2.0, "2", None):
    with pytest.raises(errors.UserError, match=f"top={top!r}: expected"):
      loaded.predict(images[0], top=top)


def test_without_head(folder, images):
  path = folder / "headless.npz"
  trained_files.npz(path, 0)
  headless = predictor.Predictor(trained.load(str(path)))
  for call in (headless.predict, headless.logits, headless.stream):
    with pytest.raises(
      errors.UserError, match=r"headless.npz has no head.*fea"
    ):
      call(images[0])
  want = by_numpy(headless.model, images[:2], head=False)
  close(headless.features(images[:2]), want)


def test_classes_of_imagenet(folder, images):
  path = folder / "imagenet.npz"
  trained_files.npz(path, 1_000, classes=wordnet.classes("imagenet1k"))
  said = predictor.Predictor(trained.load(str(path))).predict(images[0], top=2)
  (one,) = said
  assert all(i.startswith("n") and len(i) == 9 for i in one.class_ids)
  lines = str(one).splitlines()
  assert lines[0] == f"images[0]  {one.scores[0]:6.3f}  {one.names[0]}"
  assert lines[1] == f"{'':9}  {one.scores[1]:6.3f}  {one.names[1]}"


@pytest.mark.slow
def test_the_readme_way_in_a_process_of_its_own(folder, loaded, tmp_path):
  """One device, and nothing prepared by the tests."""
  path = tmp_path / "a.png"
  Image.fromarray(np.full((9, 9, 3), 99, np.uint8)).save(path)
  code = (
    "import sys, mixer\n"
    "model = mixer.load(sys.argv[1])\n"
    "for p in model.predict([sys.argv[2]] * 3, top=3): print(p)\n"
    "print(model.features(sys.argv[2]).shape)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, folder / "w.npz", path],
    cwd=conftest.ROOT, env=dict(os.environ) | {"XLA_FLAGS": ""},
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  lines = done.stdout.splitlines()
  assert len(lines) == 10 and lines[-1] == "(1, 8)"
  assert lines[0].startswith(str(path))
