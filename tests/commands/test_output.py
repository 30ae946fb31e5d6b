"""Where output can't go, and what foreign names may not do in it."""

import csv
import io
import os
import pathlib
import re
import subprocess
import sys

import pytest
from PIL import Image

from configs import smoke
from mixer import cli
from tests import conftest, trained_files

# A name that clears the terminal, goes back to the line's start, forges a line
# and isn't UTF-8; one that ASCII lacks.
EVIL = "e\x1b[2J\r\nFORGED \u202ec\x9b\udcff.png"
SHOWN = r"e\x1b[2J\r\nFORGED \u202ec\x9b\udcff.png"
ASCII = ("b\u00e4r.png", r"b\xe4r.png")


@pytest.mark.parametrize(
  ("where", "code", "message"),
  [
    (
      ">/dev/full",
      1,
      "error: stdout can't be written: No space left on device",
    ),
    ("2>/dev/full", 0, ""),
    (">&- 2>&-", 0, ""),
  ],
)
def test_results_that_go_nowhere(tmp_path, where, code, message):
  path = tmp_path / "w.npz"
  trained_files.npz(path, 10)
  done = subprocess.run(
    ["sh", "-c", f"'{sys.executable}' -m mixer inspect {path} {where}"],
    cwd=conftest.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == code
  assert done.stderr.startswith(message)
  assert ("sha256" in done.stdout) == (where == "2>/dev/full")


class Captured(io.TextIOWrapper):
  def __init__(self, encoding):
    self.bytes = io.BytesIO()
    super().__init__(self.bytes, encoding)

  def text(self):
    self.flush()
    return harmless(self.bytes.getvalue().decode(self.encoding))


@pytest.fixture(params=["utf-8", "ascii"])
def streams(request, monkeypatch):
  """A function that makes them stdout and stderr."""

  def go():
    out, err = Captured(request.param), Captured(request.param)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return out, err

  return go


def harmless(text):
  """Nothing in it moves a cursor, and no name forged a line."""
  assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)
  assert not re.search(r"(?m)^FORGED", text)
  return text


def image(path, color=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (16, 16), (color, 0, 0)).save(path, "png")


@pytest.mark.usefixtures("untouched")
def test_predict(streams, tmp_path):
  trained_files.npz(tmp_path / "w.npz", 10)
  for name in (EVIL, ASCII[0]):
    image(tmp_path / "photos" / name)
  (tmp_path / "photos" / f"0{EVIL}").touch()
  args = ["predict", f"--checkpoint={tmp_path / 'w.npz'}", "--top=1"]
  args.append(str(tmp_path / "photos"))
  out, err = streams()
  assert cli.main(args) == 1
  shown = ASCII[out.encoding == "ascii"]
  assert SHOWN in out.text() and shown in out.text()
  error = rf"(?m)^error: .*0{re.escape(SHOWN)}: .*0 bytes"
  assert re.search(error, err.text())
  # Data are for programs.
  assert cli.main([*args, f"--output={tmp_path / 'a.csv'}"]) == 1
  text = (tmp_path / "a.csv").read_bytes().decode("utf-8", "surrogateescape")
  rows = csv.DictReader(io.StringIO(text, newline=""))
  names = {os.path.basename(r["path"]) for r in rows}
  assert names == {EVIL, f"0{EVIL}", ASCII[0]}


def test_prepare(streams, tmp_path):
  photos = tmp_path / "photos"
  for number in range(6):
    for name in (f"c{EVIL}", ASCII[0]):
      image(photos / name / f"{number}{EVIL}", 10 * number + len(name))
  (photos / ASCII[0] / f"x{EVIL}").touch()
  args = ["prepare", "folder", "--name=evil", f"--source={photos}"]
  args.append(f"--data_dir={tmp_path / 'data'}")
  out, err = streams()
  assert cli.main([*args, "--bad=fail"]) == 1
  assert cli.main([*args, "--max_bad=1", "--restart"]) == 0
  assert ASCII[out.encoding == "ascii"] in out.text()
  assert "2 classes: " in out.text()
  assert r"FORGED \u202ec" in err.text()
  (listed,) = re.findall("listed in (.*)", out.text())
  assert len(pathlib.Path(listed).read_text("utf-8").splitlines()) == 2


@pytest.fixture(scope="module")
def evil_run(tmp_path_factory, data_dir):
  """A workdir whose classes have such names."""
  workdir = tmp_path_factory.mktemp("evil")
  config = smoke.get_config()
  config.data.data_dir = data_dir
  names = [f"{k}{EVIL}" for k in range(10)]
  trained_files.save(
    workdir, config, lambda metadata: metadata.update(class_names=names)
  )
  return workdir


@pytest.mark.usefixtures("untouched")
def test_names_of_a_checkpoint(streams, evil_run):
  out, err = streams()
  assert cli.main(["inspect", str(evil_run)]) == 0
  args = [f"--checkpoint={evil_run}", "--batch_size=8"]
  assert cli.main(["evaluate", *args]) == 1
  assert SHOWN in out.text()
  assert err.text().splitlines()[-1].startswith("error: the checkpoint ")


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("tokens_block0.png", ["visualize", "--figures=tokens"]),
    ("confusion.csv", ["evaluate", "--batch_size=8"]),
  ],
)
@pytest.mark.usefixtures("untouched")
def test_a_full_disk(name, words, tmp_path, capsys, digits_run):
  (tmp_path / name).symlink_to("/dev/full")
  args = [*words, f"--checkpoint={digits_run}", f"--output={tmp_path}"]
  assert cli.main(args) == 1
  err = capsys.readouterr().err.splitlines()[-1]
  assert err.startswith(f"error: {tmp_path / name} can't be written: No space")
