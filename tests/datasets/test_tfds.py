"""Sets that TFDS prepares or has written: `mixer.datasets.prepare.tfds`."""

import http.server
import io
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Iterator

import pytest
import tensorflow_datasets as tfds_lib
from array_record.python import array_record_module
from tensorflow_datasets.core.download import checksums, downloader

from mixer import cli, progress
from mixer.datasets import catalog, split
from mixer.datasets import stored as stored_lib
from mixer.datasets.prepare import tfds
from mixer.errors import UserError
from tests.datasets import test_vtab, tfds_writer, tfrecords

NAME = "prepared_by_tfds"
FILES: dict[str, bytes] = {}


class PreparedByTfds(tfds_lib.core.GeneratorBasedBuilder):
  """Downloads a file, reads another one, needs no TensorFlow."""

  VERSION = tfds_lib.core.Version("1.2.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = "Put names.txt there."
  url = ""  # Set by the server.
  url_infos: dict = {}  # noqa: RUF012
  fails: BaseException | None = None

  def _info(self):
    return tfds_lib.core.DatasetInfo(
      builder=self,
      features=tfds_lib.features.FeaturesDict(
        {
          "image": tfds_lib.features.Image(shape=(8, 8, 1)),
          "label": tfds_lib.features.ClassLabel(names=tfrecords.CLASSES),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    path = dl_manager.download(self.url)
    names = (dl_manager.manual_dir / "names.txt").read_text()
    return {"train": self._generate_examples(path, len(names))}

  def _generate_examples(self, path, count):
    for i in range(count):
      if self.fails:
        raise self.fails
      yield i, {"image": io.BytesIO(path.read_bytes()), "label": i % 10}


class Server(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    if self.path not in FILES:
      self.send_error(404)
      return
    self.send_response(200)
    self.send_header("Content-length", str(len(FILES[self.path])))
    self.end_headers()
    self.wfile.write(FILES[self.path])

  def log_message(self, *args):
    pass


@pytest.fixture
def site(monkeypatch) -> Iterator[str]:
  monkeypatch.setattr(catalog, "tfds_names", lambda: {NAME})
  monkeypatch.setattr(catalog, "missing", lambda base: [])
  monkeypatch.setattr(downloader, "MAX_RETRIES", 0)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  url = f"http://127.0.0.1:{server.server_port}/image.png"
  monkeypatch.setattr(PreparedByTfds, "url", url)
  FILES["/image.png"] = tfds_writer.png(tfrecords.shipped.load_digits()[0][0])
  yield url
  server.shutdown()
  thread.join()
  server.server_close()


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
  folder = tmp_path / "by hand"
  folder.mkdir()
  (folder / "names.txt").write_text("seven..")
  return folder


@pytest.fixture
def run(tmp_path, capfd):
  """The command; what it says on stdout and stderr."""

  def run(*words: str, code: int = 0) -> tuple[str, str]:
    got = cli.main(["prepare", *words, f"--data_dir={tmp_path / 'data'}"])
    out, err = capfd.readouterr()
    assert got == code, err
    return out, err

  return run


def opened(tmp_path, name, part="train"):
  return split.open_split(name, part, str(tmp_path / "data"))


def test_a_set_is_downloaded_and_prepared(tmp_path, site, source, run):
  root = tmp_path / "data"
  left = (
    f"{NAME}/incomplete.ABC_1.2.0",
    f"downloads/{NAME}/x.tmp.123",
    f"downloads/extracted/{NAME}/incomplete.x",
  )
  for killed in left:
    (root / killed).mkdir(parents=True)
    (root / killed / "half").write_text("half")
  out, _ = run(NAME, f"--source={source}")
  assert f"data set {NAME} is ready in {root}/{NAME}/1.2.0\n" in out
  found = opened(tmp_path, NAME)
  assert len(found) == 7 and found.class_names == tfrecords.CLASSES
  assert found.read([3])[0]["image"] == FILES["/image.png"]
  assert (root / NAME / "1.2.0" / "manifest.json").exists()
  # The download stays; what was made of it, and what a kill left, doesn't.
  assert not any((root / killed).exists() for killed in left)
  assert len(list((root / "downloads" / NAME).iterdir())) == 2
  shutil.rmtree(root / NAME)
  FILES.clear()
  run(f"{NAME}:1.2.0", f"--source={source}")
  assert run(NAME)[0].startswith(f"data set {NAME} was prepared before; noth")


def test_what_tfds_raises_is_said(tmp_path, site, source, run, monkeypatch):
  def said(error: BaseException | None, *words: str) -> str:
    monkeypatch.setattr(PreparedByTfds, "fails", error)
    _, err = run(*(words or (NAME, f"--source={source}")), code=1)
    assert err.splitlines()[-1].startswith("error: ") and "Traceba" not in err
    return err

  begin = f"{NAME} can't be prepared by TFDS: "
  assert f"{begin}KeyError: 'a defect'. Mend" in said(KeyError("a defect"))
  wrapped = RuntimeError("somewhere")
  wrapped.__cause__ = ModuleNotFoundError("No module", name="tensorflow.io")
  assert "needs TensorFlow, for preparing only (make setup-ten" in said(wrapped)
  told = said(None, NAME)
  assert "Manual dir" in told and f"from {tmp_path}/data/downloads/man" in told
  assert "cannot be loaded at version 9.0.0" in said(None, f"{NAME}:9.0.0")
  FILES.clear()
  shutil.rmtree(tmp_path / "data" / "downloads")
  assert "HTTP code: 404. Mend that and give" in said(None)
  url = PreparedByTfds.url
  info = checksums.UrlInfo(size=7, checksum="ab", filename="image.png")
  monkeypatch.setattr(PreparedByTfds, "url_infos", {url: info})
  (source / "image.png").write_bytes(b"another one")
  told = said(None)
  assert "NonMatchingChecksumError" in told and "that --source=DIR na" in told
  (tmp_path / "data" / NAME / "1.2.0").mkdir(parents=True)
  assert "is no whole data set" in said(None)


def test_shipped_sets_and_tasks_of_vtab(run, tmp_path):
  scene = test_vtab.example("clevr", 0)
  tfds_writer.write(tmp_path / "data", "clevr", [scene], {"train": [3]})
  out, _ = run("vtab/clevr_count")
  assert out.startswith("vtab/clevr_count is made of the data set clevr\n")
  assert "  its features are file_name, image, objects, question_answe" in out
  out, _ = run("digits")
  assert "  10 classes: 0, 1, 2, ..., 9\n" in out
  assert "--config=configs/smoke.py" in out


# TFRecord.
def stored(folder: pathlib.Path) -> list[bytes]:
  """All records of the ArrayRecord files, by the files' names."""
  out = []
  for path in sorted(folder.glob("*.array_record-*")):
    reader = array_record_module.ArrayRecordReader(str(path))
    out += reader.read_all()
    reader.close()
  return out


def expected() -> list[bytes]:
  """Those of `tfrecords.make`; its file of `test` comes first."""
  everything = tfrecords.records(16)
  return everything[12:] + everything[:12]


def convert(folder, data_dir):
  return tfds.convert(folder, data_dir, progress.Progress(io.StringIO()))


@pytest.mark.parametrize("config", ["", "special"])
def test_a_tfrecord_set_from_elsewhere(run, tmp_path, config):
  old = tfrecords.make(tmp_path / "old", config=config)
  before = {p: p.read_bytes() for p in old.iterdir()}
  out, _ = run("others", f"--source={tmp_path / 'old'}")
  assert out.startswith("converting data set others from TFRecord\n")
  new = tmp_path / "data" / "others" / config / "2.1.0"
  assert stored(new) == expected()
  assert {p: p.read_bytes() for p in old.iterdir()} == before
  assert sorted(p.name for p in new.iterdir()) == [
    "dataset_info.json",
    "features.json",
    "label.labels.txt",
    "manifest.json",
    "others-test.array_record-00000-of-00001",
    "others-train.array_record-00000-of-00002",
    "others-train.array_record-00001-of-00002",
  ]
  info = json.loads((new / "dataset_info.json").read_text("utf-8"))
  was = json.loads((old / "dataset_info.json").read_text("utf-8"))
  assert info == was | {"fileFormat": "array_record"}
  out, _ = run("others", f"--source={tmp_path / 'old'}")
  assert "was prepared before; nothing is to be done\n" in out


def test_a_tfrecord_set_in_its_place(run, tmp_path):
  """Of a data set that is ours as well, and behind a link."""
  folder = tfrecords.make(tmp_path / "elsewhere", name="mnist")
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "mnist").symlink_to(folder.parent)
  before = {p.name: p.read_bytes() for p in folder.iterdir()}
  was = json.loads(before.pop("dataset_info.json"))
  assert run("mnist")[0].startswith("converting data set mnist from TFRecord")
  assert stored(folder) == expected()
  for name, content in before.items():
    assert (folder / name).read_bytes() == content
  # As TFDS has it where both are there: its own readers go on as before.
  info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
  assert info == was | {"alternativeFileFormats": ["array_record"]}
  for path in folder.glob("*.tfrecord-*"):
    path.unlink()
  found = split.open_split("mnist", "train[7:]", str(tmp_path / "data"))
  assert found.class_names == tfrecords.CLASSES
  assert run("mnist")[0].startswith("data set mnist was prepared before; noth")


@pytest.mark.parametrize("where", ["old", "new"])
def test_a_conversion_goes_on_after_a_kill(tmp_path, monkeypatch, where):
  """In its place, and from elsewhere."""
  rename, left = os.rename, 4

  def killed(*args):
    nonlocal left
    left -= 1
    if not left:
      raise KeyboardInterrupt
    rename(*args)

  old = tfrecords.make(tmp_path / "old", shards=(3,) * 6, test=1)
  with monkeypatch.context() as patch:
    patch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
      convert(old, tmp_path / where)
  kept = [*(tmp_path / where).glob("others/2.1.0/others*array_record-*")]
  inodes = [path.stat().st_ino for path in kept]
  assert len(kept) == 3
  with pytest.raises(UserError):
    split.open_split("others", "train", str(tmp_path / where))
  new = convert(old, tmp_path / where)
  # Not written twice.
  assert [(new / path.name).stat().st_ino for path in kept] == inodes
  assert stored(new) == tfrecords.records(19)[18:] + tfrecords.records(18)
  assert not list(new.glob("incomplete*"))


def test_what_cannot_be_converted(tmp_path):
  folder = tfrecords.make(tmp_path / "old")
  new = tmp_path / "new"

  def refusal(says: str) -> None:
    with pytest.raises(UserError, match=says):
      convert(folder, new)
    assert not stored_lib.versions(new, "others")

  path = folder / "others-train.tfrecord-00001-of-00002"
  content = path.read_bytes()
  for cut in (1, 4, 5, 8, 16, 30):
    path.write_bytes(content[:-cut])
    refusal(r"00001-of-00002 is damaged: record 4 \(from 0\) is cut off")
  for place in (0, 9, 13, len(content) - 3):
    flipped = bytearray(content)
    flipped[place] ^= 4
    path.write_bytes(flipped)
    refusal(r"00001-of-00002 is damaged: record [04] .*wrong checksum")
  length = (2**62).to_bytes(8, "little")
  path.write_bytes(length + tfrecords.masked(length) + content)
  refusal(r"is damaged: record 0 ")
  tfrecords.write(path, tfrecords.records(3))
  refusal("has 3 records, not 5")
  path.unlink()
  refusal("others-train.tfrecord-00001-of-00002")
  path.write_bytes(content)  # Mended, it goes on.
  assert stored(convert(folder, new)) == expected()
  with pytest.raises(UserError, match="no data set there already"):
    convert(folder, new)
  info = folder / "dataset_info.json"
  told = json.loads(info.read_text("utf-8"))
  info.write_text(json.dumps(told | {"fileFormat": "riegeli"}), "utf-8")
  with pytest.raises(UserError, match="stored as riegeli, can't be conv"):
    convert(folder, tmp_path / "more")
