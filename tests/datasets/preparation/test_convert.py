"""TFRecord data sets become ArrayRecord ones."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
from array_record.python import array_record_module

from mixer.datasets import locate
from mixer.datasets.preparation import convert
from mixer.errors import UserError
from tests.conftest import ROOT
from tests.datasets import prepared
from tests.datasets.preparation import tfrecords


def stored(folder: pathlib.Path) -> list[bytes]:
  """All records of the ArrayRecord files, by the files' names."""
  out = []
  for path in sorted(folder.glob("*.array_record-*")):
    reader = array_record_module.ArrayRecordReader(str(path))
    if reader.num_records():
      out += reader.read_all()
    reader.close()
  return out


def expected() -> list[bytes]:
  """Those of `tfrecords.make`; its file of `test` comes first."""
  everything = tfrecords.records(16)
  return everything[12:] + everything[:12]


def refusal(folder: pathlib.Path, data_dir: pathlib.Path) -> str:
  with pytest.raises(UserError) as caught:
    convert.convert(folder, data_dir)
  assert str(caught.value).endswith(".")
  return str(caught.value)


def names(folder: pathlib.Path) -> list[str]:
  return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("config", ["", "special"])
def test_into_another_place(tmp_path, config):
  old = tfrecords.make(tmp_path / "old", config=config)
  before = {p: p.read_bytes() for p in old.iterdir()}
  told = []
  new = convert.convert(old, tmp_path / "new", lambda *n: told.append(n))
  assert new == tmp_path / "new" / "others" / config / "2.1.0"
  assert stored(new) == expected()
  assert {p: p.read_bytes() for p in old.iterdir()} == before
  assert names(new) == [
    "dataset_info.json",
    "features.json",
    "label.labels.txt",
    "manifest.json",
    "others-test.array_record-00000-of-00001",
    "others-train.array_record-00000-of-00002",
    "others-train.array_record-00001-of-00002",
  ]
  assert names(new.parent) == ["2.1.0"]
  assert told[-1] == (16, 16)
  info = json.loads((new / "dataset_info.json").read_text("utf-8"))
  was = json.loads((old / "dataset_info.json").read_text("utf-8"))
  assert info == was | {"fileFormat": "array_record"}


def test_beside_its_files(tmp_path):
  folder = tfrecords.make(tmp_path)
  before = {p.name: p.read_bytes() for p in folder.iterdir()}
  was = json.loads(before.pop("dataset_info.json"))
  assert convert.convert(folder, tmp_path) == folder
  assert stored(folder) == expected()
  for name, content in before.items():
    assert (folder / name).read_bytes() == content
  info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
  # As TFDS has it where both are there: its own readers go on as before.
  assert info == was | {"alternativeFileFormats": ["array_record"]}
  assert not [n for n in names(folder) if n.startswith("incomplete")]
  inode = (folder / "others-test.array_record-00000-of-00001").stat().st_ino
  convert.convert(folder, tmp_path)  # Once more does no harm.
  again = folder / "others-test.array_record-00000-of-00001"
  assert again.stat().st_ino == inode


def test_beside_its_files_through_a_link(tmp_path):
  folder = tfrecords.make(tmp_path / "elsewhere")
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "others").symlink_to(folder.parent)
  convert.convert(tmp_path / "data" / "others" / "2.1.0", tmp_path / "data")
  assert stored(folder) == expected()


def test_the_result_opens(tmp_path):
  folder = tfrecords.make(tmp_path)
  convert.convert(folder, tmp_path)
  for expression, count in (("train", 12), ("test", 4), ("train[7:]", 5)):
    source, classes, _ = prepared.open_source(
      "others", expression, str(tmp_path)
    )
    assert len(source) == count
    assert classes == tfrecords.CLASSES
  for path in folder.glob("*.tfrecord-*"):  # As the command offers.
    path.unlink()
  source, _, _ = prepared.open_source("others", "train", str(tmp_path))
  assert source[11]["image"].startswith(b"\x89PNG")


@pytest.mark.parametrize("beside", [True, False])
def test_it_goes_on_after_a_kill(tmp_path, beside):
  old = tfrecords.make(tmp_path / "old", shards=(5,) * 40, test=1)
  data_dir = tmp_path / ("old" if beside else "new")
  program = (
    "import pathlib, sys, time\n"
    "from mixer.datasets.preparation import convert\n"
    "def slow(done, total):\n"
    "  print(done, flush=True)\n"
    "  time.sleep(0.05)\n"
    "convert.convert(*map(pathlib.Path, sys.argv[1:]), slow)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", program, str(old), str(data_dir)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout
  for line in process.stdout:
    if int(line) >= 60:
      process.send_signal(signal.SIGKILL)
      break
  process.communicate(timeout=60)
  with pytest.raises(UserError):
    prepared.open_source("others", "train", str(data_dir))
  work = next(data_dir.glob("**/others-train.array_record-00000-*")).parent
  kept = {p.name: p.stat().st_ino for p in work.glob("*.array_record-*")}
  kept = {n: i for n, i in kept.items() if not n.startswith("incomplete")}
  assert 10 <= len(kept) < 41
  new = convert.convert(old, data_dir)
  assert stored(new) == tfrecords.records(201)[200:] + tfrecords.records(200)
  for name, inode in kept.items():  # Not written twice.
    assert (new / name).stat().st_ino == inode
  assert not list(data_dir.glob("**/incomplete*"))


def test_a_cut_file_is_named(tmp_path):
  folder = tfrecords.make(tmp_path / "old")
  path = folder / "others-train.tfrecord-00001-of-00002"
  path.write_bytes(path.read_bytes()[:-30])
  text = refusal(folder, tmp_path / "new")
  assert text.startswith(f"{path} is damaged at record 4 (counted from 0)")
  assert not locate.versions(tmp_path / "new", "others")
  tfrecords.write(path, tfrecords.records(12)[7:])  # Mended, it goes on.
  assert stored(convert.convert(folder, tmp_path / "new")) == expected()


def test_a_file_with_fewer_records(tmp_path):
  folder = tfrecords.make(tmp_path)
  path = folder / "others-train.tfrecord-00000-of-00002"
  tfrecords.write(path, tfrecords.records(3))
  text = refusal(folder, tmp_path)
  assert text.startswith(f"{path} has 3 records, and dataset_info.json says 7.")
  assert not list(folder.glob("incomplete*"))


def test_a_missing_file(tmp_path):
  folder = tfrecords.make(tmp_path)
  (folder / "others-train.tfrecord-00001-of-00002").unlink()
  text = refusal(folder, tmp_path)
  assert (
    f"{folder}: 1 of 3 files are missing, the first is others-train" in text
  )


@pytest.mark.parametrize(
  ("spoil", "what"),
  [
    (lambda f: (f / "dataset_info.json").unlink(), "there is no file"),
    (lambda f: (f / "dataset_info.json").write_text("{ no"), "is no JSON ("),
    (lambda f: (f / "features.json").unlink(), "by TFDS before 4.0"),
  ],
)
def test_what_is_no_data_set(tmp_path, spoil, what):
  folder = tfrecords.make(tmp_path)
  spoil(folder)
  text = refusal(folder, tmp_path)
  assert str(folder) in text and what in text


def test_another_format(tmp_path):
  folder = tfrecords.make(tmp_path)
  path = folder / "dataset_info.json"
  info = json.loads(path.read_text("utf-8"))
  path.write_text(json.dumps(info | {"fileFormat": "riegeli"}), "utf-8")
  assert "stored as riegeli; only tfrecord" in refusal(folder, tmp_path)


def test_what_is_in_the_way_stays(tmp_path):
  folder = tfrecords.make(tmp_path / "old")
  there = tfrecords.make(tmp_path / "new")
  text = refusal(folder, tmp_path / "new")
  assert text.startswith(f"{there} is there already; remove it")
  assert not list(there.glob("*.array_record*"))


def test_too_little_room(tmp_path, monkeypatch):
  folder = tfrecords.make(tmp_path / "old")
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  text = refusal(folder, tmp_path / "new")
  assert "GB for the ArrayRecord files and 0.0 GB are free. Make room" in text


def test_a_place_that_cannot_be_written(tmp_path):
  folder = tfrecords.make(tmp_path / "old")
  (tmp_path / "new").write_text("a file")
  text = refusal(folder, tmp_path / "new")
  assert "can't be written or read: Not a directory" in text
