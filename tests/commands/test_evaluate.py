"""What `python -m mixer evaluate` finds, against plain numpy."""

import collections
import csv
import json

import jax
import numpy as np
import pyarrow.parquet
import pytest
import sklearn.metrics
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


def check(metrics, logits, labels):
  """Top-1 and top-5 of logits are those of the metrics; gives the guesses."""
  labels = np.asarray(labels)
  top5 = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
  assert metrics["accuracy"] == np.mean(top5[:, 0] == labels) > 0.1
  assert metrics["accuracy_top5"] == (top5 == labels[:, None]).any(-1).mean()
  assert metrics["examples"] == len(labels)
  return top5[:, 0]


def test_a_run_on_its_own_data(digits_run, command, data_dir, tmp_path):
  out, got = command(f"--checkpoint={digits_run}")
  split = split_lib.open_split("digits", "test", data_dir)
  logits, labels = by_numpy(digits_run, split), split.labels
  guesses, m = check(got["metrics"], logits, labels), got["metrics"]
  log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  loss = -log_p[np.arange(len(labels)), labels].mean()
  assert m["loss"] == pytest.approx(loss, rel=1e-5)
  assert "real_accuracy" not in m
  assert m["balanced_accuracy"] == pytest.approx(
    sklearn.metrics.balanced_accuracy_score(labels, guesses)
  )
  assert m["macro_f1"] == pytest.approx(
    sklearn.metrics.f1_score(labels, guesses, average="macro")
  )
  assert f"balanced      {m['balanced_accuracy']:.2%}\nmacro F1   " in out
  assert f"top-1         {m['accuracy']:.2%}\n" in out
  assert "data set      digits, test: 397 examples, 10 classes\n" in out
  assert (got["data"], got["split"]) == ("digits", "test")
  assert (got["image_size"], got["short_side"]) == ([16, 16], 16)
  assert got["environment"]["versions"] == runtime.versions()
  matrix = np.load(tmp_path / "out" / "confusion.npy")
  expected = np.zeros((10, 10), int)
  np.add.at(expected, (labels, guesses), 1)
  np.testing.assert_array_equal(matrix, expected)


def test_a_part_another_size_and_batch(digits_run, command):
  flags = ("--split=test[:40]", "--image_size=32", "--resize=interleaved")
  out, got = command(f"--checkpoint={digits_run}", "--batch_size=20", *flags)
  assert got["metrics"]["examples"] == 40
  assert got["batch_size"] == 24  # For 8 devices.
  assert "token mixing interleaved" in got["origin"]
  assert "images        32 x 32 px, out of a short side of 32\n" in out


_COLUMNS = wordnet.head_indices("imagenet1k", allow_missing=True)


def chosen(logits):
  """Of the 21,843-way head those of ImageNet-1k's classes."""
  if logits.shape[-1] == 1000:
    return logits
  return np.where(_COLUMNS < 0, -np.inf, logits[:, _COLUMNS])


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
  """Sets as TFDS has them, of noise; two models, which are sometimes right."""
  root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(5)
  records = [
    {"image": tfds_writer.png(image), "file_name": f"{i}.jpg"}
    for i, image in enumerate(rng.integers(0, 256, (24, 9, 12, 3), np.uint8))
  ]
  labels, classes = np.zeros(24, int), wordnet.classes("imagenet1k")
  labels[0] = classes.index("n04399382")  # The teddy bear.
  for start, count, bias, names in (
    (2, 21_843, -9, wordnet.classes("head")),
    (1, 1_000, 0, classes),
  ):
    path = root / f"{count}.npz"
    trained_files.npz(path, count, bias, classes=names)
    guesses = chosen(by_numpy(path, Records(records))).argmax(axis=-1)
    labels[start::2] = guesses[start::2]
  valid = [([], [5], [int(k), 9])[i % 3] for i, k in enumerate(guesses)]
  plain = [r | {"label": k} for r, k in zip(records, labels, strict=True)]
  real = [
    r | {"original_label": k, "real_label": v}
    for r, k, v in zip(records, labels, valid, strict=True)
  ]
  splits = {"validation": (24,)}
  tfds_writer.write(root, "imagenet2012_real", real, splits)
  tfds_writer.write(root, "imagenet2012", plain, splits)
  return root, labels, valid


class Records(list):
  """Read like a split."""

  def read(self, places):
    return self


def test_a_released_head_on_real_labels(imagenet, command, tmp_path):
  root, labels, valid = imagenet
  data, listing = "imagenet2012_real", tmp_path / "all.parquet"
  out, got = command(
    f"--checkpoint={root}/1000.npz", f"--data={data}", f"--data_dir={root}",
    f"--examples={listing}", "--batch_size=16",
  )  # fmt: skip
  split = split_lib.open_split(data, "validation", str(root))
  logits = by_numpy(root / "1000.npz", split)
  guesses, m = check(got["metrics"], logits, labels), got["metrics"]
  right = [g in v for g, v in zip(guesses, valid, strict=True) if v]
  assert m["real_accuracy"] == np.mean(right) > 0
  assert m["real_examples"] == len(right) < 24
  assert f"ReaL          {np.mean(right):.2%}\n" in out
  assert got["classes_matched"] == "as they are"
  found = pyarrow.parquet.read_table(listing).to_pydict()
  classes = np.array(wordnet.classes("imagenet1k"))
  scores = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  np.testing.assert_allclose(found.pop("score"), scores.max(-1), rtol=1e-3)
  assert found == {
    "index": list(range(24)),
    "file": [f"{i}.jpg" for i in range(24)],
    "label": classes[labels].tolist(),
    "prediction": classes[guesses].tolist(),
  }


def test_the_released_21k_head_on_imagenet_1k(imagenet, command):
  root, labels, _ = imagenet
  path, data = root / "21843.npz", "imagenet2012"
  out, got = command(
    f"--checkpoint={path}", f"--data={data}", f"--data_dir={root}"
  )
  split = split_lib.open_split(data, "validation", str(root))
  check(got["metrics"], chosen(by_numpy(path, split)), labels)
  assert "loss" not in got["metrics"] and "\nloss" not in out
  assert got["loss"] == "sigmoid"
  assert "1,000 of the 21,843 outputs; no output, so wrong" in out
  assert "loss: n04399382\n" in out


def test_few_shots_are_those_of_the_features(digits_run, command, data_dir):
  flags = ("--fewshot", "--shots=1,3", "--seeds=2", "--l2=10")
  flags += ("--train_split=train[:400]",)
  out, got = command(f"--checkpoint={digits_run}", *flags)
  train = split_lib.open_split("digits", "train[:400]", data_dir)
  test = split_lib.open_split("digits", "test", data_dir)
  task = evaluate.Fewshot(train, test, (1, 3), 2, 10)
  expected = task.accuracies(lambda split: by_numpy(digits_run, split, True))
  m = got["metrics"]
  for shots, draws in expected.items():
    name = f"fewshot/{shots}shot"
    # An example near the border may fall to either side.
    np.testing.assert_allclose(m[f"{name}_draws"], draws, atol=2 / 397)
    assert m[name] == pytest.approx(np.mean(m[f"{name}_draws"]))
    assert f"{shots}shot         {m[name]:.2%} (" in out


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ([], ["is no run that knows its data set", "--data=imagenet2012"]),
    (["--data=digits"], ["1,000 outputs", "('0', '1', "]),
    (["--data=digits", "--same_classes"], ["1,000 outputs", "10"]),
    # Not the flags of train.py.
    (["--data=pets"], [" --data_dir=DIR"]),
    (["--data=digits", "--fewshot", "--shots=999"], ["fewer, by --shots=N"]),
    (["--data=digits", "--image_size=12", "--resize=tiles"], [" --resize=res"]),
  ],
)
def test_mistakes(imagenet, command, data_dir, flags, words):
  path = imagenet[0] / "1000.npz"
  where = [f"--checkpoint={path}", f"--data_dir={data_dir}"]
  err, _ = command(*where, "--split=test", *flags, code=1)
  for word in words:
    assert word in err
  assert "--config" not in err


def test_same_classes_and_a_folder_of_its_own(
  data_dir, tmp_path, monkeypatch, capfd
):
  trained_files.npz(tmp_path / "w.npz", 10)
  monkeypatch.chdir(tmp_path)
  flags = ["--checkpoint=w.npz", "--data=digits", "--split=test[:9]"]
  flags += [f"--data_dir={data_dir}", "--same_classes"]
  (tmp_path / "full").touch()
  (tmp_path / "d.csv").mkdir()
  for flag, why in (
    ("--output=full", "full/results.json can't be written"),
    ("--examples=/proc/e.csv", "/proc/e.csv can't be written"),
    ("--examples=d.csv", "d.csv can't be written: it is a folder"),
  ):
    assert cli.main(["evaluate", *flags, flag]) == 1
    out, err = capfd.readouterr()
    assert why in err and out == ""  # Before anything is computed.
  assert cli.main(["evaluate", *flags]) == 0
  folder = "runs/evaluate/w.npz-digits-test_9_-8x8-head"
  assert f"written to    {folder}\n" in capfd.readouterr().out
  got = json.loads((tmp_path / folder / "results.json").read_text())
  split = split_lib.open_split("digits", "test[:9]", data_dir)
  guesses = by_numpy("w.npz", split).argmax(axis=-1)
  assert got["metrics"]["accuracy"] == np.mean(guesses == split.labels)


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
  out = tmp_path / "out"
  command(
    f"--checkpoint={tmp_path}/w.npz", f"--data=odd_{many}:load",
    "--same_classes", f"--examples={tmp_path}/all.csv",
  )  # fmt: skip
  header, *rows = read(tmp_path / "all.csv")
  assert header == "index file label prediction score".split()
  predicted = [names.index(row[3]) for row in rows]
  assert [row[2] for row in rows] == [names[k] for k in labels]
  pairs = collections.Counter(zip(labels, predicted, strict=True))
  header, *found = read(out / "confusion.csv")
  assert header == "true predicted count true_name predicted_name".split()
  assert found == [
    [names[t], names[p], str(n), names[t], names[p]]
    for (t, p), n in sorted(pairs.items())
  ]
  header, *table = read(out / "per_class.csv")
  assert header[:5] == "class name examples correct accuracy".split()
  for k, row in enumerate(table):
    count, right = labels.count(k), pairs[k, k]
    wrong = {p: n for (t, p), n in pairs.items() if t == k != p}
    # Of equals the first.
    most = sorted((-n, p) for p, n in wrong.items())[:1]
    other = names[most[0][1]] if wrong else ""
    share = f"{right / count:.6f}" if count else ""
    times = str(-most[0][0]) if wrong else "0"
    expected = [names[k]] * 2 + [str(count), str(right), share]
    assert row == [*expected, other, other, times]
  assert len(table) == len(names)
  dense = {path.name for path in out.glob("confusion.[np]*")}
  assert dense == (set() if many else {"confusion.npy", "confusion.png"})
  if not many:
    assert np.load(out / "confusion.npy").sum() == 9
    with Image.open(out / "confusion.png") as image:
      grey = np.asarray(image.convert("L")).astype(int)
    # Far more than axes and letters have.
    assert (grey < 40).sum() > 0.02 * grey.size
