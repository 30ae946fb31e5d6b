"""What `python -m mixer evaluate` finds, against plain numpy."""

import collections
import csv
import json

import jax
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from mixer import cli, evaluate, model, preprocess, runtime, trained
from mixer.datasets import split as split_lib
from mixer.datasets import wordnet
from tests import trained_files
from tests.datasets import tfds_writer

pytestmark = pytest.mark.usefixtures("untouched")


@pytest.fixture
def command(capfd, tmp_path):
  """Runs the command; what it printed and wrote."""

  def run(*args, code=0):
    out = tmp_path / "out"
    assert cli.main(["evaluate", f"--output={out}", *map(str, args)]) == code
    captured = capfd.readouterr()
    if code:
      assert captured.err.startswith("error: ")
      assert not (out / "results.json").exists()
      return captured.err, {}
    return captured.out, json.loads((out / "results.json").read_text())

  return run


@pytest.fixture(scope="module")
def run(digits_run):
  return digits_run


def by_numpy(path, split, pre_logits=False):
  """Logits or features of a split; an example after the other prepared."""
  found = trained.load(str(path))
  images = [
    preprocess.evaluation(r["image"], found.image_size, found.short_side)
    for r in split.read(range(len(split)))
  ]
  scaled = np.stack(images).astype(np.float32) / 127.5 - 1
  apply = jax.jit(
    lambda p, x: model.apply(found.module, p, x, pre_logits=pre_logits)
  )
  return np.asarray(apply(found.params, scaled), np.float64)


def softmax_loss(logits, labels):
  shifted = logits - logits.max(axis=-1, keepdims=True)
  log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
  return -log_p[np.arange(len(labels)), labels].mean()


def test_a_run_on_its_own_data(run, command, data_dir, tmp_path):
  out, got = command(f"--checkpoint={run}")
  split = split_lib.open_split("digits", "test", data_dir)
  logits, labels = by_numpy(run, split), split.labels
  guesses = logits.argmax(axis=-1)
  top5 = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
  m = got["metrics"]
  assert m["accuracy"] == np.mean(guesses == labels)
  assert m["accuracy_top5"] == np.mean((top5 == labels[:, None]).any(axis=-1))
  assert m["loss"] == pytest.approx(softmax_loss(logits, labels), rel=1e-5)
  assert m["examples"] == 397
  assert "real_accuracy" not in m
  assert f"top-1         {m['accuracy']:.2%}\n" in out
  assert "data set      digits, test: 397 examples, 10 classes\n" in out
  assert (got["data"], got["split"]) == ("digits", "test")
  assert (got["image_size"], got["short_side"]) == ([16, 16], 16)
  assert got["environment"]["versions"] == runtime.versions()
  matrix = np.load(tmp_path / "out" / "confusion.npy")
  expected = np.zeros((10, 10), int)
  np.add.at(expected, (labels, guesses), 1)
  np.testing.assert_array_equal(matrix, expected)
  assert set(got["files"]) < {p.name for p in (tmp_path / "out").iterdir()}


def test_a_part_another_size_and_batch(run, command, data_dir):
  flags = ("--split=test[:40]", "--image_size=32", "--resize=interleaved")
  out, got = command(f"--checkpoint={run}", "--batch_size=24", *flags)
  assert got["metrics"]["examples"] == 40
  assert got["batch_size"] == 24
  assert (got["image_size"], got["short_side"]) == ([32, 32], 32)
  assert "token mixing interleaved" in got["origin"]
  assert "images        32 x 32 px, out of a short side of 32\n" in out


_COLUMNS = wordnet.head_indices("imagenet1k", allow_missing=True)


def _guesses(path, num_classes, images):
  """Of ImageNet-1k's classes; the model, made here, has a head for more."""
  which = "head" if num_classes > 1000 else "imagenet1k"
  bias = -9 if num_classes > 1000 else 0
  trained_files.npz(path, num_classes, bias, classes=wordnet.classes(which))
  found = trained.load(str(path))
  pixels = np.stack([preprocess.evaluation(i, 8, 9) for i in images])
  scaled = pixels.astype(np.float32) / 127.5 - 1
  logits = np.asarray(found.module.apply({"params": found.params}, scaled))
  if num_classes == 1_000:
    return logits.argmax(axis=-1)
  return np.where(_COLUMNS < 0, -np.inf, logits[:, _COLUMNS]).argmax(axis=-1)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
  """Sets as TFDS has them, of noise; labels and valid labels of 24 images."""
  root = tmp_path_factory.mktemp("imagenet")
  rng = np.random.default_rng(5)
  teddy = wordnet.classes("imagenet1k").index("n04399382")
  labels = [teddy, *rng.integers(0, 1000, 23).tolist()]
  valid = [
    rng.integers(0, 1000, rng.integers(0, 3)).tolist() for _ in range(24)
  ]
  images = [
    tfds_writer.png(rng.integers(0, 256, (9, 12, 3), np.uint8))
    for _ in range(24)
  ]
  # Some of the labels are what one model predicts, some the other.
  guesses = _guesses(root / "i1k.npz", 1_000, images)
  labels[1::2] = guesses[1::2].tolist()
  others = _guesses(root / "i21k.npz", 21_843, images)
  labels[2::4] = others[2::4].tolist()
  for i in range(0, 24, 3):
    valid[i] = [int(guesses[i]), int(guesses[i] + 1) % 1000]
  valid[4] = []
  tfds_writer.write(
    root,
    "imagenet2012_real",
    [
      {
        "image": image,
        "original_label": label,
        "real_label": right,
        "file_name": f"{i}.jpg",
      }
      for i, (image, label, right) in enumerate(
        zip(images, labels, valid, strict=True)
      )
    ],
    {"validation": (24,)},
  )
  tfds_writer.write(
    root,
    "imagenet2012",
    [
      {"image": image, "label": label, "file_name": f"{i}.jpg"}
      for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ],
    {"train": (24,), "validation": (24,)},
  )
  return root, labels, valid


def test_a_released_model_on_real_labels(imagenet, command):
  root, labels, valid = imagenet
  path = root / "i1k.npz"
  out, got = command(
    *(f"--checkpoint={path}", "--data=imagenet2012_real"),
    f"--data_dir={root}",
  )
  split = split_lib.open_split("imagenet2012_real", "validation", str(root))
  guesses = by_numpy(path, split).argmax(axis=-1)
  right = [g in v for g, v in zip(guesses, valid, strict=True) if v]
  m = got["metrics"]
  assert m["accuracy"] == np.mean(guesses == labels) >= 0.5
  assert m["real_accuracy"] == np.mean(right) > 0
  assert m["real_examples"] == len(right) < 24
  assert f"ReaL          {np.mean(right):.2%}\n" in out
  assert got["num_classes"] == 1_000 and got["classes_matched"] == "as they are"


def test_the_released_21k_head_on_imagenet_1k(imagenet, command):
  root, labels, _ = imagenet
  path = root / "i21k.npz"
  out, got = command(
    f"--checkpoint={path}", "--data=imagenet2012", f"--data_dir={root}"
  )
  split = split_lib.open_split("imagenet2012", "validation", str(root))
  logits = np.where(_COLUMNS < 0, -np.inf, by_numpy(path, split)[:, _COLUMNS])
  guesses = logits.argmax(axis=-1)
  top5 = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
  m = got["metrics"]
  assert m["accuracy"] == np.mean(guesses == labels) >= 0.25
  assert m["accuracy_top5"] == np.mean(
    (top5 == np.array(labels)[:, None]).any(axis=-1)
  )
  assert "loss" not in m and "\nloss" not in out
  assert got["loss"] == "sigmoid"
  assert got["classes_without_output"] == ["n04399382"]
  assert "; no output: n04399382, whose" in out


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_every_example_is_listed(imagenet, command, tmp_path, suffix):
  root, labels, _ = imagenet
  path = tmp_path / f"all.{suffix}"
  _, got = command(
    f"--checkpoint={root}/i1k.npz", f"--data_dir={root}", "--data=imagenet2012",
    f"--examples={path}", "--batch_size=16",
  )  # fmt: skip
  if suffix == "csv":
    with open(path, newline="", encoding="utf-8") as f:
      rows = list(csv.DictReader(f))
  else:
    rows = pyarrow.parquet.read_table(path).to_pylist()
  classes = wordnet.classes("imagenet1k")
  assert [int(row["index"]) for row in rows] == list(range(24))
  assert [row["file"] for row in rows] == [f"{i}.jpg" for i in range(24)]
  assert [row["label"] for row in rows] == [classes[k] for k in labels]
  split = split_lib.open_split("imagenet2012", "validation", str(root))
  logits = by_numpy(root / "i1k.npz", split)
  best = logits.argmax(axis=-1)
  assert [row["prediction"] for row in rows] == [classes[k] for k in best]
  p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  scores = [float(row["score"]) for row in rows]
  np.testing.assert_allclose(scores, p.max(axis=-1), rtol=1e-3)
  right = np.mean([row["label"] == row["prediction"] for row in rows])
  assert got["metrics"]["accuracy"] == right


def test_few_shots_are_those_of_the_features(run, command, data_dir):
  flags = ("--fewshot", "--shots=1,3", "--seeds=2", "--l2=10")
  out, got = command(f"--checkpoint={run}", "--train_split=train[:400]", *flags)
  train = split_lib.open_split("digits", "train[:400]", data_dir)
  test = split_lib.open_split("digits", "test", data_dir)
  task = evaluate.Fewshot(train, test, (1, 3), 2, 10)
  expected = task.accuracies(lambda split: by_numpy(run, split, True))
  m = got["metrics"]
  for shots, draws in expected.items():
    # An example near the border may fall to either side.
    np.testing.assert_allclose(
      m[f"fewshot/{shots}shot_draws"], draws, atol=2 / 397
    )
    name = f"fewshot/{shots}shot"
    assert m[name] == pytest.approx(np.mean(m[f"{name}_draws"]))
    assert f"{shots}shot         {m[name]:.2%} (" in out
  assert got["files"] == []


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ([], ["is no run that knows its data set", "--data=imagenet2012"]),
    (["--data=digits"], ["1,000 outputs", "('0', '1', "]),
    (["--data=digits", "--same_classes"], ["1,000 outputs", "10"]),
    (["--data=digits", "--batch_size=9"], ["--batch_size=9", "8 devices"]),
    # Not the flags of train.py.
    (["--data=pets"], [" --data_dir=DIR"]),
    (["--data=digits", "--fewshot", "--shots=999"], ["fewer, by --shots=N"]),
    (["--data=digits", "--image_size=12", "--resize=tiles"], [" --resize=res"]),
  ],
  ids=[
    *("no data", "classes", "same", "batch", "none", "shots"),
    "resize",
  ],
)
def test_mistakes(imagenet, command, data_dir, flags, words):
  path = imagenet[0] / "i1k.npz"
  where = [f"--checkpoint={path}", f"--data_dir={data_dir}"]
  err, _ = command(*where, "--split=test", *flags, code=1)
  for word in words:
    assert word in err
  assert "--config" not in err


def test_same_classes_and_a_folder_of_its_own(
  run, command, data_dir, tmp_path, monkeypatch, capfd
):
  trained_files.npz(tmp_path / "w.npz", 10)
  monkeypatch.chdir(tmp_path)
  flags = ["--checkpoint=w.npz", "--data=digits", "--split=test[:9]"]
  flags += [f"--data_dir={data_dir}", "--same_classes"]
  (tmp_path / "full").touch()
  (tmp_path / "d.csv").mkdir()
  for flag, why in (
    ("--output=full", "full/results.json can't be written"),
    ("--output=/proc", "/proc/results.json can't be written"),
    ("--examples=/proc/e.csv", "/proc/e.csv can't be written"),
    ("--examples=d.csv", "d.csv can't be written: it is a folder"),
  ):
    assert cli.main(["evaluate", *flags, flag]) == 1
    out, err = capfd.readouterr()
    assert why in err and out == ""  # Before anything is computed.
  assert cli.main(["evaluate", *flags]) == 0
  out = capfd.readouterr().out
  folder = "runs/evaluate/w.npz-digits-test_9_-8x8-head"
  assert f"written to    {folder}\n" in out
  got = json.loads((tmp_path / folder / "results.json").read_text())
  assert got["classes_matched"] == "outputs are taken for the classes, in order"
  split = split_lib.open_split("digits", "test[:9]", data_dir)
  guesses = by_numpy("w.npz", split).argmax(axis=-1)
  assert got["metrics"]["accuracy"] == np.mean(guesses == split.labels)


@pytest.mark.parametrize(
  "flag", ["--image_size=0", "--batch_size=0", "--shots=1,x", "--chekpoint=x"]
)
def test_flags_that_cannot_be(flag, capsys):
  with pytest.raises(SystemExit) as e:
    cli.main(["evaluate", "--checkpoint=x", flag])
  assert e.value.code == 1
  assert "`mixer evaluate --help`" in capsys.readouterr().err


# Labels are those of the names; images are of one shade each.
_SET = """
import numpy as np

def load(split, data_dir):
  labels = {labels}
  images = [np.full((8, 8, 3), 37 * i % 256, np.uint8) for i in range(9)]
  examples = [dict(image=i, label=k) for i, k in zip(images, labels)]
  return examples, {names!r}
"""


def read(path):
  with open(path, newline="", encoding="utf-8", errors="surrogateescape") as f:
    return list(csv.reader(f))


@pytest.mark.parametrize("many", [False, True])
def test_files_about_the_classes(command, tmp_path, monkeypatch, many):
  names = ["crane (bird)", 'a "quoted", name', "K\xe4se", "$\\frac\x1b\n\udcff"]
  names += [f"n{i:08d}" for i in range(1000 if many else 2)]
  labels = [0, 0, 0, 0, 1, 1, 3, 3, len(names) - 1]
  text = _SET.format(labels=labels, names=names)
  module = tmp_path / f"odd_{many}.py"
  module.write_bytes(text.encode("utf-8", "surrogateescape"))
  monkeypatch.syspath_prepend(tmp_path)
  trained_files.npz(tmp_path / "w.npz", len(names))
  _, got = command(
    f"--checkpoint={tmp_path}/w.npz", f"--data=odd_{many}:load",
    "--same_classes", f"--examples={tmp_path}/all.csv",
  )  # fmt: skip
  rows = read(tmp_path / "all.csv")[1:]
  predicted = [names.index(row[3]) for row in rows]
  assert [row[2] for row in rows] == [names[k] for k in labels]
  pairs = collections.Counter(zip(labels, predicted, strict=True))
  header, *found = read(tmp_path / "out" / "confusion.csv")
  assert header == "true predicted count true_name predicted_name".split()
  assert found == [
    [names[t], names[p], str(n), names[t], names[p]]
    for (t, p), n in sorted(pairs.items())
  ]
  header, *table = read(tmp_path / "out" / "per_class.csv")
  assert header[:5] == "class name examples correct accuracy".split()
  assert [row[0] for row in table] == names
  for k, (_, name, count, correct, share, other, _, times) in enumerate(table):
    assert name == names[k]
    assert int(count) == labels.count(k) and int(correct) == pairs[k, k]
    assert share == (
      f"{pairs[k, k] / labels.count(k):.6f}" if k in labels else ""
    )
    wrong = {p: n for (t, p), n in pairs.items() if t == k != p}
    assert int(times) == max(wrong.values(), default=0)
    assert other == (
      names[min(wrong, key=lambda p: (-wrong[p], p))] if wrong else ""
    )
  dense = {"confusion.npy", "confusion.png"}
  assert set(got["files"]) & dense == (set() if many else dense)
  if not many:
    assert np.load(tmp_path / "out" / "confusion.npy").sum() == 9
    with Image.open(tmp_path / "out" / "confusion.png") as image:
      grey = np.asarray(image.convert("L")).astype(int)
    # Far more than axes and letters have.
    assert (grey < 40).sum() > 0.02 * grey.size
