"""What `python -m mixer predict` writes, refuses, and leaves when stopped."""

import csv
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from mixer import predictor, trained
from tests import conftest, trained_files
from tests.commands import predict_fixtures

pytestmark = pytest.mark.usefixtures("untouched")

run = predict_fixtures.run
photos = predict_fixtures.photos
command = predict_fixtures.command
_NAMES = predict_fixtures.NAMES


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


def test_json(command, mixed):
  got = command(*mixed, "--format=json", "--top=2", code=1)
  rows = [json.loads(line) for line in got.out.splitlines()]
  assert [row["path"] for row in rows] == mixed
  assert [bool(row["error"]) for row in rows] == [False, True, False, True]
  assert [len(row["predictions"]) for row in rows] == [2, 0, 2, 0]
  for row in rows[0]["predictions"]:
    assert row["name"] == row["class_id"] == _NAMES[row["index"]]
  assert "checkpoint    " in got.err and "scores        prob" in got.err
  assert "0 bytes" in rows[1]["error"] and "not an image" in rows[3]["error"]


def test_csv_on_stdout_and_in_a_file(command, mixed, tmp_path):
  out = tmp_path / "o.csv"
  printed = command(*mixed, "--format=csv", "--top=2", code=1).out
  got = command(*mixed, f"--output={out}", "--top=2", code=1)
  assert got.out == "" and out.read_text() == printed
  rows = list(csv.DictReader(printed.splitlines()))
  assert [row["path"] for row in rows] == [mixed[k] for k in (0, 0, 1, 2, 2, 3)]
  assert [row["rank"] for row in rows] == ["1", "2", "", "1", "2", ""]
  assert "0 bytes" in rows[2]["error"] and rows[2]["name"] == ""
  table = tmp_path / "o.txt"
  command(mixed[0], f"--output={table}", "--top=1")
  assert re.fullmatch(r"\S+00.png +\d\.\d{3}  \w+\n", table.read_text())


def test_a_list_of_files(command, mixed, tmp_path):
  path = tmp_path / "list"
  path.write_text("\n".join(mixed))
  args = ("--format=csv", "--batch_size=3")
  listed = command(f"--files={path}", *args, code=1).out
  assert listed == command(*mixed, *args, code=1).out


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
@pytest.mark.parametrize("num_classes", [0, 10])
def test_features(command, mixed, tmp_path, suffix, num_classes):
  parquet = pytest.importorskip("pyarrow.parquet")
  weights, path = tmp_path / "w.npz", tmp_path / f"f.{suffix}"
  trained_files.npz(weights, num_classes)
  args = (*mixed, f"--features={path}")
  got = command(*args, checkpoint=weights, code=1)
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


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (
      ["--output=/dev/null/o.csv"],
      "null/o.csv can't be written: ",
    ),
    (["--features=/dev/null/f.npy"], "f.npy can't be written: "),
    (["--features=f.txt"], "ends in .npy or .parquet"),
    (["--features=f.npy", "--top=3"], "leave out --output, --format and --top"),
    (["--files=none.txt"], "none.txt can't be read: No such file"),
  ],
  ids=range(5),
)
def test_refused_before_anything_is_read(
  command, photos, monkeypatch, flags, sentence
):
  monkeypatch.setattr(trained, "load", None)
  monkeypatch.setattr(predictor, "fit", None)
  assert sentence in command(photos, *flags, code=1).err


def test_no_image_is_named(command):
  assert "no image is named" in command(code=1).err


def test_checkpoints_of_other_models(command, photos, tmp_path):
  flat = trained_files.npz(tmp_path / "w.npz", 10)
  kernel = np.zeros((8, 8), np.float32)
  vit = {"cls": kernel, "Transformer/encoderblock_0/LayerNorm_0/bias": kernel}
  state = {f"params/{k}": v for k, v in flat.items()} | {"opt/step": kernel}
  for other in (vit, state):
    np.savez(tmp_path / "other.npz", allow_pickle=False, **other)
    err = command(photos, checkpoint=tmp_path / "other.npz", code=1).err
    assert err.startswith("error: ") and "Traceback" not in err
    assert "other.npz" in err and len(err.splitlines()) == 1


def test_a_file_that_vanishes_meanwhile(command, photos, tmp_path, monkeypatch):
  path = tmp_path / "gone.png"
  path.write_bytes((photos / "00.png").read_bytes())
  fit = predictor.fit

  def vanish(image, model):
    path.unlink(missing_ok=True)
    return fit(image, model)

  monkeypatch.setattr(predictor, "fit", vanish)
  got = command(path, photos / "00.png", "--format=json", code=1)
  first, second = map(json.loads, got.out.splitlines())
  assert "No such file" in first["error"] and second["predictions"]


def interrupt_after(monkeypatch, count):
  """As Ctrl-C does, while the rows of an image are written."""
  stream = predictor.Predictor._rows

  def broken(*args):
    for k, one in enumerate(stream(*args)):
      if k == count:
        raise KeyboardInterrupt
      yield one

  monkeypatch.setattr(predictor.Predictor, "_rows", broken)


@pytest.mark.parametrize("flag", ["--output=o.csv", "--features=f.npy"])
def test_control_c_leaves_what_is_done(
  command, photos, tmp_path, monkeypatch, flag
):
  monkeypatch.chdir(tmp_path)
  interrupt_after(monkeypatch, 4)
  got = command(photos, flag, code=130)
  name = flag.partition("=")[2]
  last = got.err.splitlines()[-1]
  assert last == (
    f"Ctrl-C: stopped after 4 of 11 images; they are in {name}.partial"
  )
  assert not os.path.exists(name)
  if name == "f.npy":
    assert np.load("f.npy.partial").shape[0] == 4
  else:
    with open("o.csv.partial") as f:
      assert len({row["path"] for row in csv.DictReader(f)}) == 4


def test_control_c_with_nothing_done(command, photos, monkeypatch):
  interrupt_after(monkeypatch, 0)
  got = command(photos, code=130)
  assert got.err.splitlines()[-1] == "Ctrl-C: stopped after 0 of 11 images"


@pytest.fixture
def attended():
  """Processes hear Ctrl-C, as a shell's jobs in the background do not."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("attended")
@pytest.mark.parametrize(
  ("number", "name", "code"),
  [
    (signal.SIGINT, "Ctrl-C", 130),
    (signal.SIGHUP, "SIGHUP", 129),
    (signal.SIGTERM, "SIGTERM", 143),
  ],
)
def test_a_signal_to_a_process(run, photos, tmp_path, number, name, code):
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
  process.send_signal(number)
  with process:
    out, err = process.stdout.read(), process.stderr.read()
  assert process.returncode == code
  assert "Traceback" not in err
  assert re.fullmatch(
    rf"{name}: stopped after [\d,]+ of 200,000 images", err.splitlines()[-1]
  )
  assert all(json.loads(line)["predictions"] for line in out.splitlines())
