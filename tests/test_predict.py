"""`mixer predict`: what it says, writes, refuses, and leaves when stopped."""

import codecs
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from configs import smoke
from mixer import cli, predictor, trained
from mixer.commands import predict
from mixer.datasets import shipped
from tests import conftest, trained_files

pytestmark = pytest.mark.usefixtures("untouched")
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
  """A workdir with classes of its own; evaluation crops."""
  workdir = tmp_path_factory.mktemp("run")
  config = smoke.get_config()
  config.data.eval_short_side = 20
  config.data.data_dir = data_dir
  trained_files.save(workdir, config, lambda m: m.update(class_names=NAMES))
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
def mixed(photos, tmp_path):
  """Files, some of them damaged."""
  (tmp_path / "empty.jpg").touch()
  (tmp_path / "page.jpg").write_text("<!DOCTYPE html><p>404")
  return [
    str(photos / "00.png"),
    str(tmp_path / "empty.jpg"),
    str(photos / "below" / "01.jpg"),
    str(tmp_path / "page.jpg"),
  ]


@pytest.fixture
def command(run, capfd):
  def go(*args, code=0, checkpoint=run):
    words = ["predict", f"--checkpoint={checkpoint}", *map(str, args)]
    assert cli.main(words) == code
    return capfd.readouterr()

  return go


def table(out):
  """File -> (score, class), the highest first."""
  found, last = {}, ""
  for line in out.split("\n\n", 1)[1].splitlines():
    match = re.fullmatch(r"(.*?) +(\d\.\d{3})  (.*)", line)
    assert match, line
    last = match[1] or last
    found.setdefault(last, []).append((float(match[2]), match[3]))
  return found


def test_it_says_what_evaluation_computes(run, command, data_dir, tmp_path):
  """Digits as files, and the same ones as a data set."""
  images, _ = shipped.load_digits()
  for i, pixels in enumerate(images[1400:1413]):
    Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
  out = tmp_path / "evaluated.csv"
  words = [f"--checkpoint={run}", "--data=digits", "--split=test[:13]"]
  words += [f"--data_dir={data_dir}", "--same_classes", f"--examples={out}"]
  assert cli.main(["evaluate", *words, f"--output={tmp_path}/e"]) == 0
  with open(out) as f:
    evaluated = list(csv.DictReader(f))
  paths = sorted(map(str, tmp_path.glob("*.png")))
  printed = table(command(*paths, "--top=3").out)
  assert list(printed) == paths
  for rows, other in zip(printed.values(), evaluated, strict=True):
    assert len(rows) == 3 and rows[0][1] == NAMES[int(other["prediction"])]
    assert abs(rows[0][0] - float(other["score"])) < 5.1e-4


def test_damaged_files_are_reported_and_the_rest_goes_on(
  command, photos, tmp_path
):
  good = sorted(photos.glob("*.png"))
  (tmp_path / "cut.png").write_bytes(good[0].read_bytes()[:60])
  (tmp_path / "empty.jpg").touch()
  misnamed = tmp_path / "misnamed.jpg"
  misnamed.write_bytes(good[1].read_bytes())
  missing = tmp_path / "none.png"
  words = (good[0], tmp_path, missing, good[1], f"{tmp_path}/*.gif")
  got = command(*words, "--top=1", code=1)
  printed = table(got.out)
  assert list(printed) == [str(good[0]), str(misnamed), str(good[1])]
  assert printed[str(misnamed)] == printed[str(good[1])]
  empty, *errors = got.err.splitlines()
  assert empty == f"error: {tmp_path}/*.gif: there is no image"
  names = (tmp_path / "cut.png", tmp_path / "empty.jpg", missing)
  assert [e.split(": ")[1] for e in errors] == list(map(str, names))
  assert "0 bytes" in errors[1] and "No such file" in errors[2]


def test_models_without_names_and_without_a_head(command, photos, tmp_path):
  path, image = tmp_path / "w.npz", photos / "00.png"
  trained_files.npz(path, 21_843, -9.0)
  out = command(image, checkpoint=path).out
  assert "scores        sigmoid of 21,843 classes" in out
  ((_, rows),) = table(out).items()
  assert all(re.fullmatch(r"output \d+", label) for _, label in rows)
  trained_files.npz(path, 0)
  words = (photos, f"--output={tmp_path}/out.csv")
  err = command(*words, checkpoint=path, code=1).err
  assert "has no head" in err and "--features" in err
  assert os.listdir(tmp_path) == ["w.npz"]
  config = smoke.get_config()
  config.optimizer.ema_decay = 0.0
  trained_files.save(tmp_path, config, scale=np.nan)
  got = command(image, "--top=1", checkpoint=tmp_path, code=1)
  assert "00.png: the model's logits for it are not numbers" in got.err


def test_json_csv_and_a_list_of_files(command, mixed, tmp_path, monkeypatch):
  got = command(*mixed, "--format=json", "--top=2", code=1)
  rows = [json.loads(line) for line in got.out.splitlines()]
  assert [row["path"] for row in rows] == mixed
  assert [bool(row["error"]) for row in rows] == [False, True, False, True]
  assert [len(row["predictions"]) for row in rows] == [2, 0, 2, 0]
  for row in rows[0]["predictions"]:
    assert row["name"] == row["class_id"] == NAMES[row["index"]]
  assert (
    "checkpoint    " in got.err
    and "scores        softmax of 10 classes" in got.err
  )
  assert "0 bytes" in rows[1]["error"] and "not an image" in rows[3]["error"]
  out = tmp_path / "o.csv"
  printed = command(*mixed, "--format=csv", "--top=2", code=1).out
  got = command(*mixed, f"--output={out}", "--top=2", code=1)
  assert got.out == "" and out.read_text() == printed
  flat = list(csv.DictReader(printed.splitlines()))
  assert [row["path"] for row in flat] == [mixed[k] for k in (0, 0, 1, 2, 2, 3)]
  assert [row["rank"] for row in flat] == ["1", "2", "", "1", "2", ""]
  assert flat[2]["error"] == rows[1]["error"] and flat[2]["name"] == ""
  top = rows[0]["predictions"][0]
  assert {k: flat[0][k] for k in top} == {k: str(v) for k, v in top.items()}
  listed = codecs.BOM_UTF8 + "\r\n".join(["", *mixed]).encode()
  (tmp_path / "list").write_bytes(listed)
  words = ("--format=csv", "--top=2", "--batch_size=3")
  got = command(f"--files={tmp_path}/list", *words, code=1)
  assert got.out == printed
  monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
  assert command("--files=-", *words, code=1).out == printed
  text = tmp_path / "o.txt"
  command(mixed[0], f"--output={text}", "--top=1")
  assert re.fullmatch(r"\S+00.png +\d\.\d{3}  \w+\n", text.read_text())


_TEXT = st.text(st.characters(codec=None), min_size=1)


@hypothesis.given(_TEXT, _TEXT, st.floats(0, 1, width=32), _TEXT)
def test_any_names_are_read_back(source, name, score, problem):
  one = predictor.Prediction(source, (name,), (score,), (7,), ("",))
  bad = predictor.Prediction(source, problem=problem)
  parts = {form: [] for form in ("csv", "json", "table")}
  for form, written in parts.items():
    predict._write(written.append, form, iter([one, bad]), 9)
  assert list(csv.reader(io.StringIO("".join(parts["csv"]), newline="")))[
    1:
  ] == [
    [source, "1", "7", "", name, str(float(str(np.float32(score)))), ""],
    [source, *[""] * 5, problem],
  ]
  assert [line.count("\n") for line in parts["json"]] == [1, 1]
  good, other = map(json.loads, parts["json"])
  (found,) = good["predictions"]
  assert np.float32(found["score"]) == score and found["class_id"] is None
  assert found["name"] == name and other["error"] == problem
  (shown,) = parts["table"]
  assert shown.count("\n") == 1 and not {*"\r\0\x1b\u2028"} & {*shown}


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
@pytest.mark.parametrize("num_classes", [0, 10])
def test_features(command, mixed, tmp_path, monkeypatch, suffix, num_classes):
  monkeypatch.setattr(predict, "_ROW_GROUP", 3)
  weights, path = tmp_path / "w.npz", tmp_path / f"f.{suffix}"
  trained_files.npz(weights, num_classes)
  got = command(*mixed, f"--features={path}", checkpoint=weights, code=1)
  assert got.out == "" and "features      8 of each" in got.err
  model = predictor.Predictor(trained.load(str(weights)))
  want = model.features([mixed[0], mixed[2]])
  if suffix == "npy":
    array = np.load(path)
    with open(path.with_suffix(".csv")) as f:
      rows = list(csv.DictReader(f))
    np.testing.assert_allclose(array[[0, 2]], want, rtol=1e-5)
    assert np.isnan(array[[1, 3]]).all()
  else:
    rows = parquet.read_table(path).to_pylist()
    vectors = [row["features"] for row in rows]
    np.testing.assert_allclose([vectors[0], vectors[2]], want, rtol=1e-5)
    assert vectors[1] is None and vectors[3] is None
  assert [row["path"] for row in rows] == mixed
  assert [bool(row["error"]) for row in rows] == [False, True, False, True]


@pytest.mark.parametrize("write", [predict._npy, predict._parquet])
def test_features_take_memory_for_few_images(tmp_path, monkeypatch, write):
  monkeypatch.setattr(predict, "_ROW_GROUP", 512)
  path = str(tmp_path / "f")
  tracemalloc.start()
  try:  # 40 MB
    numbers = range(10_000)
    values = (np.full(1_024, k, np.float32) for k in numbers)
    write(path, (predictor.Features(f"{k}", "", next(values)) for k in numbers))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
  finally:
    tracemalloc.stop()
  if write is predict._npy:
    found = np.load(path)[:, -1]
  else:
    column = parquet.read_table(path)["features"].combine_chunks()
    found = np.asarray(column.values).reshape(-1, 1_024)[:, -1]
  np.testing.assert_array_equal(found, np.arange(10_000))


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    (["--output=/dev/null/o.csv"], "null/o.csv can't be written: "),
    (["--output=/tmp"], "it is a folder"),
    (["--features=/dev/null/f.npy"], "f.npy can't be written: "),
    (["--features=f.txt"], "to FILE.npy or FILE.parquet"),
    (["--features=f.npy", "--top=3"], "leave out --output, --format and --top"),
    (
      ["--files=/tmp/none.txt"],
      "--files=/tmp/none.txt: expected .*; No such file",
    ),
    (["--files=/dev/null"], "--files=/dev/null: expected .*; it names none"),
  ],
  ids=range(7),
)
def test_refused_before_anything_is_read(
  command, photos, monkeypatch, words, sentence
):
  monkeypatch.setattr(trained, "load", None)
  assert re.search(sentence, command(photos, *words, code=1).err)


@pytest.mark.parametrize("name", ["o.csv", "f.npy", "f.parquet", ""])
def test_control_c_leaves_what_is_done(
  command, photos, tmp_path, monkeypatch, name
):
  monkeypatch.chdir(tmp_path)
  read, count = predictor._read, 4 if name else 0

  def interrupted(*args):
    for k, one in enumerate(read(*args)):
      if k == count:
        raise KeyboardInterrupt
      yield one

  monkeypatch.setattr(predictor, "_read", interrupted)
  flag = f"--{'output' if name == 'o.csv' else 'features'}={name}"
  got = command(photos, *([flag] if name else []), code=130)
  last = got.err.splitlines()[-1]
  if not name:
    assert last == "Ctrl-C: stopped after 0 of 11 images"
    return
  part = f"{name}.partial"
  assert last.startswith("Ctrl-C: stopped after 4 of 11 images; they are in ")
  assert last.endswith(part) and not os.path.exists(name)
  if name == "f.npy":
    assert np.load(part).shape[0] == 4
  elif name == "f.parquet":
    assert len(parquet.read_table(part)) == 4
  else:
    with open(part) as f:
      assert len({row["path"] for row in csv.DictReader(f)}) == 4


_ONE = """
import sys
from mixer import cli
assert not cli.main(["predict", *sys.argv[1:]])
heavy = "optax orbax grain fsspec matplotlib pyarrow requests scipy sklearn"
heavy = {*heavy.split(), "tensorflow_datasets", "tensorstore", "torch"}
assert not heavy & {*sys.modules}, heavy & {*sys.modules}
"""


def test_an_npz_file_and_an_image_take_few_libraries(photos, tmp_path):
  trained_files.npz(tmp_path / "a.npz", 3)
  words = "--checkpoint=a.npz", str(photos / "00.png")
  env = dict(os.environ) | {"PYTHONPATH": str(conftest.ROOT)}
  command = [sys.executable, "-c", _ONE, *words]
  subprocess.run(command, cwd=tmp_path, env=env, check=True)


@pytest.mark.slow
def test_a_signal_to_a_process(run, photos, tmp_path):
  """A real signal to the command, once rows are there."""
  listed = tmp_path / "list"
  listed.write_text(f"{photos / '00.png'}\n" * 200_000)
  process = subprocess.Popen(
    [
      sys.executable, "-m", "mixer", "predict", f"--checkpoint={run}",
      f"--files={listed}", "--format=json",
    ],
    cwd=conftest.ROOT, env=dict(os.environ) | {"XLA_FLAGS": ""},
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert process.stdout and process.stderr
  assert json.loads(process.stdout.readline())["path"]
  process.send_signal(signal.SIGHUP)
  with process:
    out, err = process.stdout.read(), process.stderr.read()
  assert process.returncode == 129
  assert "Traceback" not in err
  assert re.fullmatch(
    r"SIGHUP: stopped after [\d,]+ of 200,000 images", err.splitlines()[-1]
  )
  assert all(json.loads(line)["predictions"] for line in out.splitlines())
