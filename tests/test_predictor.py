"""`mixer.load` and what it gives, against numpy and the model itself."""

import base64
import dataclasses
import io
import itertools
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
from mixer import errors, evaluate, predictor, runtime, sharding, trained
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


def test_load(folder, loaded, images, monkeypatch, caplog):
  monkeypatch.setattr(runtime, "start_as_library", lambda: None)
  path = folder / "w.npz"
  got = mixer.load(path, batch_size=100)
  assert "which classes its 25 outputs are, so they are" in caplog.text
  assert got.batch_size == 104 and got.model.num_classes == _CLASSES
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
    sentence = re.escape(f"{name}={value!r}")
    with pytest.raises(errors.UserError, match=f"{sentence}.*expected"):
      mixer.load(path, **wrong)
  with pytest.raises(errors.UserError, match="there are no weights"):
    mixer.load(folder / "none")


@pytest.mark.parametrize("count", [1, 17, 33])
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
  found = loaded.predict(images[:20], top)
  assert [x.indexes for x in found] == [tuple(row) for row in order.tolist()]
  scores = np.array([one.scores for one in found])
  close(scores, np.take_along_axis(p, order, 1))
  first = found[0]
  assert first.names[0] == f"output {order[0, 0]}"
  assert first.source == "images[0]" and found[19].source == "images[19]"
  assert set(first.class_ids) == {""} and first.problem == ""


def test_no_call_compiles_again(loaded, images, monkeypatch):
  sizes, put = [], sharding.put_batch

  def counted(mesh, batch):
    sizes.append(len(batch["image"]))
    return put(mesh, batch)

  monkeypatch.setattr(sharding, "put_batch", counted)
  for count, top in itertools.product((1, 4, 5, 16, 17, 40), (2, 3, 10)):
    loaded.predict(images[:count], top)
    loaded.predict(iter(images[:count]), top)
  # A compilation for each size of batch.
  assert loaded._steps(10).examples._cache_size() == len({*sizes}) == 2
  # A few images don't pay for many: up to a quarter of the large batch.
  sizes.clear()
  loaded.features(images[:4])
  loaded.features(images[:5])
  assert sizes == [8, 16]


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
  for call, some, sentence in (
    (loaded.predict, bad, r"none\.jpg can't be used: No such"),
    (loaded.features, bad[::3], r"images\[1\] .* expected uint8"),
    (loaded.logits, [b"<html>"], r"images\[0\] .* bytes that begin"),
  ):
    with pytest.raises(errors.UserError, match=sentence):
      call(some)
  found, rows = list(loaded.stream(bad)), list(loaded.stream_features(bad))
  for each in (found, rows):
    assert [bool(one.problem) for one in each] == [False, True, False, True]
  assert found[1].names == () and "No such file" in str(found[1])
  assert found[0] == loaded.predict(images[0])[0]
  assert np.isnan(rows[1].values).all()
  close(rows[2].values, loaded.features(images[1])[0])


def test_notebooks_show_models_predictions_and_confusions(loaded, images):
  """Pictures are what the model saw; nothing that is named becomes HTML."""
  named = tuple(f"<b>{k}</b>\x1b" for k in range(_CLASSES))
  model = dataclasses.replace(loaded.model, class_names=named)
  model = predictor.Predictor(model, loaded.batch_size)
  many = model.predict(np.concatenate([images, images]), top=1)
  shown = many._repr_html_()
  pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)"', shown)
  assert len(pictures) == 100 and "and 40 more" in shown
  seen = np.array(Image.open(io.BytesIO(base64.b64decode(pictures[69]))))
  np.testing.assert_array_equal(seen, predictor.fit(images[69], model.model))
  assert many[69]._repr_html_().count(pictures[69]) == 1
  (problem,) = model.stream([b"<html>"])
  counts = evaluate.ConfusionCounts(_CLASSES, names=named)
  assert counts._repr_html_() == "no examples"
  label = np.array([1, 1, 1, 2, 3])
  classes = np.array([[2], [2], [1], [2], [-1]])
  counts.add({"label": label, "classes": classes, "loss": np.ones(5)})
  rows = re.findall("<tr>(.*?)</tr>", counts._repr_html_())
  cells = [re.findall("<td[^>]*>(.*?)</td>", row) for row in rows]
  assert ["accuracy", "0.4"] in cells
  name = r"&lt;b&gt;{}&lt;/b&gt;\x1b".format
  assert [name(1), "3", "1", name(2), "2"] in cells
  assert [name(3), "1", "0", "", "0"] in cells  # Its logits are NaN.
  texts = shown, model._repr_html_(), problem._repr_html_(), *rows
  assert not any("<b" in x.replace("<br>", "") for x in texts)
  assert "25: &lt;b&gt;0" in texts[1] and "&lt;html&gt;" in texts[2]
  assert repr(model) == f"<Predictor of {model.model.origin}>"


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
    with pytest.raises(errors.UserError, match=r"headless.npz has no head"):
      call(images[0])
  want = by_numpy(headless.model, images[:2], head=False)
  close(headless.features(images[:2]), want)


@pytest.mark.slow
def test_the_readme_way_in_a_process_of_its_own(folder, loaded, tmp_path):
  """One device, and nothing prepared by the tests."""
  weights = tmp_path / "imagenet.npz"
  trained_files.npz(weights, 1_000, classes=wordnet.classes("imagenet1k"))
  path = tmp_path / "a.png"
  Image.fromarray(np.full((9, 9, 3), 99, np.uint8)).save(path)
  code = (
    "import sys, mixer\n"
    "model = mixer.load(sys.argv[1])\n"
    "import multiprocessing\n"
    "if __name__ == '__main__':\n"
    "  with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
    "    (found,) = pool.map(model.predict, [[sys.argv[2]] * 3])\n"
    "  for p in found: print(p)\n"
    "print(model.features(sys.argv[2]).shape)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, weights, path],
    cwd=conftest.ROOT, env=dict(os.environ) | {"XLA_FLAGS": ""},
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  lines = done.stdout.splitlines()
  assert len(lines) == 16 and lines[-1] == "(1, 8)"
  shown = re.fullmatch(rf"{path}  ( 0\.\d{{3}})  (.+)", lines[0])
  assert shown and shown[2] in wordnet.names(wordnet.classes("imagenet1k"))
  assert re.fullmatch(rf" {{{len(str(path))}}}   0\.\d{{3}}  .+", lines[1])
