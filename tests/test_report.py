"""What `mixer.report` collects, against plain numpy; and the page's text."""

import base64
import html.parser
import io
import json
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import smoke
from mixer import (
  __version__,
  block,
  metrics,
  model,
  notebook,
  reporter,
  sharding,
)
from mixer import config as config_lib
from mixer import workdir as workdir_lib
from mixer.insight import kernels
from mixer.report import collect, predictions
from tests import object_store, trained_files

# Steps 10 and 20 are logged and evaluated, the checkpoint is that of step 4.
RECORDS = [
  {"step": 10, "train/loss": 2.1, "train/images_per_second": 900.0},
  {
    "step": 20,
    "train/loss": None,
    "train/images_per_second": 1100.0,
    **{f"goodput/{kind}": 0.0 for kind in reporter.KINDS},
    "goodput/start": 4.0,
    "goodput/step": 61.5,
  },
  {"step": 10, "eval/accuracy": 0.5, "eval/loss": 1.9, "eval/macro_f1": 0.125},
  {"step": 20, "eval/accuracy": 0.25, "eval/loss": 1.5},
]


def make_run(path, config, records=RECORDS):
  """The files of a run beside its checkpoints."""
  path.mkdir(exist_ok=True)
  resolved = {"total": 20, "train_examples": 1400, "eval_examples": 397}
  resolved |= {"num_classes": 10}
  workdir_lib.write_config(path, config_lib.to_json(config), resolved)
  with open(path / metrics.FILE, "w") as f:
    for i, record in enumerate(records):
      f.write(metrics._line(i, record) + "\n")


def save_checkpoint(path, config, change=lambda metadata: None):
  """The checkpoint of a run, with where it comes from."""

  def about(metadata):
    metadata["environment"] = {
      "device_kind": "TPU v0",
      "num_devices": 8,
      "versions": {"mixer": "0.1.0", "jax": "1.2.3"},
      "commit": "abc",
    }
    metadata["origin"] = "starting from random weights"
    change(metadata)

  trained_files.save(path, config, about)


def decoded(uri):
  """The kind that a data URI names, and its image."""
  head, _, text = uri.partition(",")
  image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
  assert head == f"data:image/{image.format.lower()};base64"
  return image.format, np.asarray(image)


def elements(text):
  """[name, attributes, text] of each element of a page."""
  found = []
  parser = html.parser.HTMLParser(convert_charrefs=True)
  parser.handle_starttag = lambda tag, attrs: found.append([tag, attrs, ""])

  def handle_data(data):
    if found:
      found[-1][2] += data

  parser.handle_data = handle_data
  parser.feed(text)
  parser.close()
  return found


def data_of(text):
  """The data in a page."""
  (data,) = [t for _, attrs, t in elements(text) if ("id", "data") in attrs]
  return json.loads(data)


# What the model predicts.


class Split:
  """Of K classes: a white image for each of N examples."""

  expression = "test"

  def __init__(self, num_classes, count):
    self.class_names = tuple(f"c{k}" for k in range(num_classes))
    self._count = count
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "white").save(buffer, "png")
    self._image = buffer.getvalue()

  def __len__(self):
    return self._count

  def read(self, places):
    image = self._image
    names = [{"file_name": f"a\x1b/{i}.png"} if i % 2 else {} for i in places]
    return [{"image": image, "index": 0} | name for name in names]


def random_rows(seed, num_classes, count, nan=0.1, infinite=0.1):
  """Rows as `evaluate.examples` gives; often right, some not to be counted."""
  rng = np.random.default_rng(seed)
  logits = np.round(rng.normal(0, 2, (count, num_classes)), 1)
  label = rng.integers(0, num_classes, count).astype(np.int32)
  logits[np.arange(count), label] += 1.5
  order = np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int32)
  scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  loss = -np.log(scores[np.arange(count), label]).astype(np.float32)
  scores = np.take_along_axis(scores, order, 1).astype(np.float32)
  broken = rng.random(count) < nan
  order[broken], scores[broken], loss[broken] = -1, np.nan, np.nan
  loss[(rng.random(count) < infinite) & ~broken] = np.inf
  return {"classes": order, "scores": scores, "label": label, "loss": loss}


def gathered(rows, num_classes, cuts=()):
  """What is kept after the rows came in some pieces."""
  count = len(rows["label"])
  spans = zip([0, *cuts], [*cuts, count], strict=True)
  pieces = [{k: v[a:b] for k, v in rows.items()} for a, b in spans]
  params = {"stem": {"kernel": np.zeros((4, 4, 3, 2), np.float32)}}
  split: object = Split(num_classes, count)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(predictions.evaluate, "examples", lambda *_: pieces)
    _, found = predictions.gather(
      *(7, types.SimpleNamespace(mesh=sharding.make_mesh()), params, [], split),
      smoke.get_config(),
    )
  json.dumps(found, allow_nan=False)
  return found


@settings(max_examples=25)
@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 200), st.data())
def test_predictions_against_numpy(seed, k, n, data):
  rows = random_rows(seed, k, n)
  cuts = data.draw(st.lists(st.integers(0, n), max_size=4))
  kept = gathered(rows, k, sorted(cuts))
  got = kept["predictions"]
  label, first, loss = rows["label"], rows["classes"][:, 0], rows["loss"]
  assert (got["examples"], got["step"], got["split"]) == (n, 7, "test")
  assert got["accuracy"] == np.mean(label == first)
  right = [np.mean(first[label == c] == c) for c in np.unique(label)]
  assert got["balanced_accuracy"] == pytest.approx(np.mean(right))
  assert 0 <= got["macro_f1"] <= 1
  mean = loss.astype(np.float64).mean()
  expected = pytest.approx(mean, rel=1e-6) if np.isfinite(mean) else None
  assert got["mean_loss"] == expected
  full = np.zeros((k, k), int)
  np.add.at(full, (label[first >= 0], first[first >= 0]), 1)
  totals = np.bincount(label, minlength=k)
  assert (
    got["by_class"]
    == np.stack([np.arange(k), totals, full.diagonal()], 1).tolist()
  )
  # The matrix: a part of the whole one, with those that are confused most.
  chosen = got["confusion"]["classes"]
  assert chosen == (list(range(k)) if k <= 30 else sorted(set(chosen))[:30])
  counts = np.array(got["confusion"]["counts"], int)
  np.testing.assert_array_equal(counts, full[np.ix_(chosen, chosen)])
  elsewhere = totals[chosen] - counts.sum(axis=1)
  assert got["confusion"]["elsewhere"] == elsewhere.tolist()
  wrong = full - np.diag(full.diagonal())
  assert wrong.max() == wrong[np.ix_(chosen, chosen)].max()
  pairs = [[int(a), int(b), int(wrong[a, b])] for a, b in np.argwhere(wrong)]
  assert got["pairs"] == sorted(pairs, key=lambda p: -p[2])[:30]
  samples = [e["index"] for e in got["samples"]]
  assert samples == sorted(set(samples)) and len(samples) == min(n, 24)
  assert {samples[0], samples[-1]} == {0, n - 1}

  def rank(i):  # NaN, then by loss, then what could not be right.
    group = int(np.isinf(loss[i])) - int(np.isnan(loss[i]))
    return group, -np.nan_to_num(loss[i])

  worst = sorted(np.flatnonzero(label != first).tolist(), key=rank)[:24]
  assert [e["index"] for e in got["worst"]] == worst
  for example in got["samples"] + got["worst"]:
    i = example["index"]
    assert example["file"] == (f"a\\x1b/{i}.png" if i % 2 else "")
    assert decoded(example["image"])[1].shape == (16, 16, 3)
    assert example["loss"] == (loss[i] if np.isfinite(loss[i]) else None)
    row = rows["classes"][i].tolist(), rows["scores"][i].tolist()
    expected = list(map(list, zip(*row, strict=True))) if first[i] >= 0 else []
    assert (example["label"], example["top"]) == (label[i], expected)
  broken = np.isnan(loss).sum()
  said = f"{broken} of the {n} examples have a NaN"
  assert any(note.startswith(said) for note in kept["notes"]) == (broken > 0)
  # Calibration, by its definition.
  sound = first >= 0
  score, right = rows["scores"][sound, 0].astype(float), (first == label)[sound]
  bins, ece = [], 0.0
  for m in range(15):
    inside = (score > m / 15) & (score <= (m + 1) / 15)
    if inside.any():
      accuracy, mean = right[inside].mean(), score[inside].mean()
      ece += inside.sum() / len(score) * abs(accuracy - mean)
      bins.append([m / 15, (m + 1) / 15, inside.sum(), mean, accuracy])
  found = got["calibration"]
  shape = (-1, 5)
  np.testing.assert_allclose(
    np.reshape(found["bins"], shape), np.reshape(bins, shape), atol=1e-12
  )
  assert found["ece"] == (pytest.approx(ece, abs=1e-12) if bins else None)


def test_many_classes():
  k, n = 21_843, 3_000
  rng = np.random.default_rng(1)
  label = rng.integers(0, k, n).astype(np.int32)
  classes = rng.integers(0, k, (n, 5)).astype(np.int32)
  classes[::3, 0] = label[::3]
  # Two classes that are taken for each other, often.
  label[:60], classes[:60, 0] = 17, 20_000
  label[60:80], classes[60:80, 0] = 20_000, 17
  scores = np.full((n, 5), np.nextafter(np.float32(1), np.float32(2)))
  loss = rng.random(n).astype(np.float32)
  rows = {"label": label, "classes": classes, "scores": scores, "loss": loss}
  got = gathered(rows, k, [1, 2_000])["predictions"]
  assert got["pairs"][:2] == [[17, 20_000, 60], [20_000, 17, 20]]
  assert {17, 20_000} <= set(got["confusion"]["classes"])
  # Of the table the worst: none right, and the most examples.
  assert len(got["by_class"]) == 100 and got["by_class"][0][0] == 17
  # A score that is rounded above 1 is in the last bin.
  ((_, last, count, _, _),) = got["calibration"]["bins"]
  assert (last, count) == (1, n)


def test_thumbnails():
  image = np.random.default_rng(0).integers(0, 256, (64, 40, 3), np.uint8)
  kind, got = decoded(notebook.thumbnail(image))
  assert kind == "PNG"
  np.testing.assert_array_equal(got, image)
  rows = np.linspace(0, 255, 192)[:, None, None]
  image = np.broadcast_to(rows, (192, 384, 3)).astype(np.uint8)
  kind, got = decoded(notebook.thumbnail(image))
  assert kind == "JPEG" and got.shape == (96, 192, 3)
  assert np.abs(got - rows.reshape(96, 2).mean(1)[:, None, None]).max() < 12


# Figures of weights.


def drawn(mixing=None, change=lambda params: None):
  """The figures of a model's weights by title, and the notes."""
  mixing = mixing or block.TokenMixing()
  module = model.MlpMixer(4, 12, 100, 132, 12, mixing=mixing)
  params = trained_files.random_params(module, 16)
  change(params)
  mesh, config = sharding.make_mesh(), smoke.get_config()
  found, notes = predictions._figures(params, config, mesh)
  return params, {figure["title"]: figure for figure in found}, notes


def test_weights_are_drawn_in_pairs_and_no_more_than_64():
  params, found, notes = drawn()
  blocks = [f"Token mixing, block {i}" for i in (0, 6, 11)]
  assert notes == [] and [*found] == ["Stem", *blocks]
  assert "64 of 100 kernels" in found["Stem"]["caption"]
  assert "64 of 132 hidden units" in found[blocks[0]]["caption"]
  kernel = params["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"]
  units = kernels.token_units(kernel, (4, 4), np.arange(16))
  strip = kernels.montage(units, 132)
  _, pixels = decoded(found[blocks[0]]["image"])
  tiles = [pixels[y : y + 4, x : x + 4] for y in range(0, 40, 5)
           for x in range(0, 40, 5)]  # fmt: skip
  every = [strip[:, 5 * i : 5 * i + 4] for i in range(132)]
  places = [[(t == e).all() for e in every].index(True) for t in tiles]
  # Pairs stay together, the first and the last one are in it.
  assert (places[0], places[62]) == (0, 130)
  assert places[1::2] == [place + 1 for place in places[::2]]


def test_weights_that_cannot_be_drawn():
  def damage(params):
    params["stem"]["kernel"][0, 0, 0, 0] = np.nan
    mlp = params["MixerBlock_6"]["token_mixing"]
    mlp["Dense_0"]["kernel"][1, 1] = np.inf

  _, found, notes = drawn(change=damage)
  assert [title[-2:] for title in found] == [" 0", "11"] and len(notes) == 2
  for mixing, said in (
    ({"untied": True}, "Token mixing is not drawn: each channel"),
    ({"groups": 2}, "Token mixing, block 11 is not drawn: its hidden"),
    ({"pyramid": ((1, 4),)}, "block 6 is not drawn: its hidden units don't"),
  ):
    _, found, notes = drawn(block.TokenMixing(**mixing))
    assert any(said in note for note in notes)
    assert len(found) == 1 + ("pyramid" in mixing)


# A workdir as it is read.


def test_a_whole_run(tmp_path):
  config = smoke.get_config()
  save_checkpoint(tmp_path, config)
  make_run(tmp_path, config)
  got = collect.read(tmp_path, "me")
  assert got["curves"]["train/loss"] == [[10, 20], [2.1, None]]
  assert got["curves"]["hours"] == [[20], [65.5 / 3600]]
  assert ["model.variant", "S/4"] in got["settings"]
  assert ["versions.jax", "1.2.3"] in got["environment"]
  assert (got["predictions"], got["weights"]) == (None, None)
  assert dict(got["facts"]) == {
    "workdir": str(tmp_path),
    "model": "Mixer S/4 at 16 x 16 px, 10 classes, float32",
    "parameters": "0.01 M",
    "started": "from random weights",
    "data": "digits: train (1,400 images), evaluation on test (397)",
    "steps": "20 of 20 (0.5 epochs), 32 images each",
    "devices": "8 x TPU v0",
    "time": "1m06s: updates 93.9%, start 6.1%",
  }
  assert got["finals"] == [
    ["Accuracy", "25.00%", "at step 20; best 50.00% at 10"],
    ["Macro F1", "12.50%", "at step 10"],
    ["Evaluation loss", "1.5", "at step 20"],
    ["Training loss", "not finite", "at step 20"],
    ["Images per second", "1,100", "at step 20"],
  ]
  (note,) = got["notes"]
  assert f"weights: none. mixer report --evaluate {tmp_path} takes" in note


def test_a_run_that_has_only_begun(tmp_path):
  make_run(tmp_path, smoke.get_config(), RECORDS[:1])
  with open(tmp_path / metrics.FILE, "a") as f:
    f.write('{"step": 20, "train/lo')
  got = collect.read(tmp_path, "x")
  assert got["curves"]["train/loss"] == [[10], [2.1]]
  assert "are not known: there is no checkpoint" in got["notes"][0]
  assert "has done 10 of 20 updates" in got["notes"][1]
  (tmp_path / metrics.FILE).write_text("damaged\n")
  got = collect.read(tmp_path, "x")
  assert (got["curves"], got["finals"]) == ({}, [])
  assert any("lines are damaged or gone" in note for note in got["notes"])


def test_long_metrics_are_thinned(tmp_path):
  records = [{"step": n, "train/loss": n / 7} for n in range(1, 40_000)]
  make_run(tmp_path, smoke.get_config(), [*records, {"step": 9, "some": 1}])
  curves = collect.read(tmp_path, "x")["curves"]
  steps, values = curves["train/loss"]
  assert len(steps) == 20_000 and steps[::19_999] == [1, 39_999]
  assert max(np.diff(steps)) <= 3
  assert values == [step / 7 for step in steps]
  assert curves["some"] == [[9], [1]]


def kept(step):
  return {"step": step, "predictions": {"a": 1}, "weights": [], "notes": ["!"]}


def test_what_is_kept_and_how_old_it_is(tmp_path):
  make_run(tmp_path, smoke.get_config())
  assert collect.kept(tmp_path) == (None, [])
  assert collect.read(tmp_path, "x", kept(20))["notes"][1:] == ["!"]
  got = collect.read(tmp_path, "x", kept(4))
  assert "Predictions and weights: those of step 4. " in got["notes"][-1]
  collect.keep(tmp_path, kept(20))
  got = collect.read(tmp_path, "x")
  assert got["predictions"] == {"a": 1} and got["notes"][1:] == ["!"]
  path = tmp_path / collect.KEPT
  written = json.loads(path.read_text())
  for broken, said in (
    ("{", "is no JSON"),
    (json.dumps(written | {"step": 21}), "is damaged"),
  ):
    path.write_text(broken)
    got = collect.read(tmp_path, "x")
    assert got["predictions"] is None
    assert any(said in note for note in got["notes"])


def test_an_object_store(monkeypatch):
  pytest.importorskip("gcsfs")
  with object_store.Server() as server:
    for key, value in server.environment.items():
      monkeypatch.setenv(key, value)
    run = workdir_lib.path(f"gs://{object_store.BUCKET}/run")
    assert collect.kept(run) == (None, [])
    collect.keep(run, kept(1))
    assert collect.kept(run) == ({"format": 2, **kept(1)}, [])
    collect.write(run / collect.PAGE, [{"name": "a \ud800"}])
    assert b"a \\ud800" in server.store.objects["run/report.html"]


@pytest.mark.parametrize(
  "nasty",
  [
    "</script><script>alert(1)</script>",
    "<!--<script>{{data}}{{title}}{{js}}",
    "\u2028\u2029\0\x1b]]>&lt;&amp;",
    "a\"b\\c'd`${e}\\1\\g<0> été \U0001f600",
  ],
)
def test_nothing_gets_out_of_its_place(nasty):
  run = {"name": nasty, "facts": [[nasty, nasty]], "notes": {nasty: nasty}}
  plain, text = (collect.text([r]) for r in ({"name": "a"}, run))
  tags, found = ([tag for tag, _, _ in elements(t)] for t in (plain, text))
  assert found == tags
  assert data_of(text) == {"version": __version__, "runs": [run]}
  (title,) = [t for tag, _, t in elements(text) if tag == "title"]
  assert title.strip("\n").replace("\0", "") == (
    f"{nasty}: report".replace("\0", "")
  )
