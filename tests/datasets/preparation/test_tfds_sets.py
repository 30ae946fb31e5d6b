"""Sets that TFDS prepares: by its own machinery, from a server of our own."""

import errno
import http.server
import io
import pathlib
import shutil
import threading
from collections.abc import Iterator

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, downloader

from mixer.datasets import catalog
from mixer.datasets.preparation import tfds_errors, tfds_sets
from mixer.errors import UserError
from tests.datasets import prepared
from tests.datasets.preparation import tfrecords

FILES: dict[str, bytes] = {}


class PreparedByTfds(tfds.core.GeneratorBasedBuilder):
  """Downloads a file, reads another one, needs no TensorFlow."""

  VERSION = tfds.core.Version("1.2.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = "Lay names.txt there."
  url = ""  # Set by the server.
  url_infos: dict = {}  # noqa: RUF012
  fails: BaseException | None = None

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1)),
          "label": tfds.features.ClassLabel(names=tfrecords.CLASSES),
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
  monkeypatch.setattr(catalog, "tfds_names", lambda: {"prepared_by_tfds"})
  monkeypatch.setattr(downloader, "MAX_RETRIES", 0)
  # It may be installed where the tests run.
  monkeypatch.setattr(tfds_sets, "_load_tensorflow", lambda: None)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  url = f"http://127.0.0.1:{server.server_port}/image.png"
  monkeypatch.setattr(PreparedByTfds, "url", url)
  FILES["/image.png"] = tfrecords.png(tfrecords.shipped.load_digits()[0][0])
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


def refusal(root, source=None, name="prepared_by_tfds") -> str:
  with pytest.raises(UserError) as caught:
    tfds_sets.check(name, root, source)
    tfds_sets.prepare(name, root, source)
  assert str(caught.value).endswith(".")
  return str(caught.value)


@pytest.mark.parametrize("name", ["prepared_by_tfds", "prepared_by_tfds:1.2.0"])
def test_a_set_is_downloaded_and_prepared(tmp_path, site, source, name, capsys):
  root = tmp_path / "data"
  for killed in (
    "prepared_by_tfds/incomplete.ABC_1.2.0",
    "downloads/prepared_by_tfds/x.tmp.123",
    "downloads/extracted/prepared_by_tfds/incomplete.x",
  ):
    (root / killed).mkdir(parents=True)
    (root / killed / "half").write_text("half")
  tfds_sets.prepare(name, root, source)
  assert capsys.readouterr().out == ""
  records, classes, _ = prepared.open_source(name, "train", str(root))
  assert len(records) == 7 and classes == tfrecords.CLASSES
  assert records[3]["image"] == FILES["/image.png"]
  folder = root / "prepared_by_tfds"
  assert [p.name for p in folder.iterdir()] == ["1.2.0"]
  assert len(list(folder.glob("1.2.0/*.array_record*"))) == 1
  # The download stays; what was made of it, and what a kill left, doesn't.
  assert len(list((root / "downloads/prepared_by_tfds").iterdir())) == 2
  assert not (root / "downloads/extracted/prepared_by_tfds").exists()


def test_a_download_is_not_repeated(tmp_path, site, source, monkeypatch):
  with monkeypatch.context() as m:
    m.setattr(PreparedByTfds, "fails", OSError(errno.ENOSPC, "No space left"))
    text = refusal(tmp_path, source)
  assert "prepared_by_tfds can't be prepared: [Errno 28] No space left" in text
  assert not list(tmp_path.glob("prepared_by_tfds/*"))
  FILES.clear()
  tfds_sets.prepare("prepared_by_tfds", tmp_path, source)
  assert len(
    prepared.open_source("prepared_by_tfds", "train", str(tmp_path))[0]
  )


def test_a_file_by_its_name_takes_the_place_of_a_download(
  tmp_path, site, source, monkeypatch
):
  FILES.clear()
  (source / "image.png").write_bytes(b"\x89PNG as it was fetched by hand")
  info = checksums.compute_url_info(source / "image.png")
  monkeypatch.setattr(PreparedByTfds, "url_infos", {site: info})
  tfds_sets.prepare("prepared_by_tfds", tmp_path, source)
  (source / "image.png").write_bytes(b"another one")
  shutil.rmtree(tmp_path / "prepared_by_tfds")
  text = refusal(tmp_path, source)
  assert text.startswith(f"{source}/image.png isn't what TFDS knows as {site}:")


def test_a_site_that_cannot_be_reached(
  tmp_path, site, source, monkeypatch, capsys
):
  info = checksums.UrlInfo(size=7, checksum="ab", filename="image.png")
  url = "http://127.0.0.1:9/image.png"
  monkeypatch.setattr(PreparedByTfds, "url", url)
  monkeypatch.setattr(PreparedByTfds, "url_infos", {url: info})
  monkeypatch.setattr(downloader, "MAX_RETRIES", 1)
  text = refusal(tmp_path, source)
  assert "of prepared_by_tfds can't be downloaded: " in text
  assert "Connection refused. What was fetched before is kept" in text
  assert f"--source=DIR the folder with: {url} as image.png." in text
  told = "no connection to 127.0.0.1 yet; trying for three minutes\n"
  assert capsys.readouterr().err == told


def test_a_file_that_is_gone(tmp_path, site, source):
  FILES.clear()
  assert "HTTP code: 404. What was" in refusal(tmp_path, source)


def test_files_to_be_fetched_by_hand(tmp_path, site):
  text = refusal(tmp_path)
  assert "TFDS's builder of prepared_by_tfds stopped: Manual dir" in text
  assert f"looked for in {tmp_path}/downloads/manual; --source=DIR" in text


def test_a_source_that_is_no_folder(tmp_path, site):
  text = refusal(tmp_path, tmp_path / "nosuch")
  assert text.startswith(f"--source={tmp_path}/nosuch is no folder; name the")


def test_a_module_that_is_missing(tmp_path, site, source, monkeypatch):
  error = ModuleNotFoundError("No module", name="tensorflow.io")
  wrapped = RuntimeError("somewhere")
  wrapped.__cause__ = error
  monkeypatch.setattr(PreparedByTfds, "fails", wrapped)
  text = refusal(tmp_path, source)
  assert "needs TensorFlow, for preparing only (make setup-tensorflow" in text
  error.name = "apache_beam"
  assert "also `pip install apache-beam`; then give" in refusal(
    tmp_path, source
  )


def test_what_tfds_is_not_prepared_for_keeps_its_traceback(
  tmp_path, site, source, monkeypatch
):
  monkeypatch.setattr(PreparedByTfds, "fails", KeyError("a defect"))
  with pytest.raises(KeyError):
    tfds_sets.prepare("prepared_by_tfds", tmp_path, source)


@pytest.mark.parametrize(
  ("name", "what"),
  [
    ("prepared_by_tfds/x", "prepared_by_tfds has no config 'x'; leave it out."),
    ("prepared_by_tfds:9.0.0", "prepared_by_tfds:9.0.0 can't be prepared in"),
    ("nosuch", "There is no data set 'nosuch'. TFDS has no builder of that"),
  ],
)
def test_names_that_are_none(tmp_path, site, source, name, what):
  assert what in refusal(tmp_path, source, name)


def test_a_config_that_is_none(tmp_path, site, monkeypatch):
  monkeypatch.setattr(catalog, "missing", lambda needs: [])
  text = refusal(tmp_path, name="eurosat/infrared")
  assert "eurosat has no config 'infrared'; it has eurosat/rgb, " in text


def test_half_a_folder_is_refused(tmp_path, site, source):
  (tmp_path / "prepared_by_tfds" / "1.2.0").mkdir(parents=True)
  assert "is no whole data set" in refusal(tmp_path, source)


def test_too_little_room(tmp_path, site, source, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  entry = catalog.Entry("prepared_by_tfds", "", needs=(), downloads=10**9)
  monkeypatch.setitem(catalog.ENTRIES, "prepared_by_tfds", entry)
  text = refusal(tmp_path, source)
  assert (
    "1.0 GB free, and preparing prepared_by_tfds takes up to 4.0 GB" in text
  )


@pytest.fixture
def no_tensorflow(monkeypatch):
  """As where it isn't installed; it may be, where the tests run."""
  monkeypatch.setattr(
    catalog, "missing", lambda needs: [m for m in needs if m == "tensorflow"]
  )


def test_tensorflow_is_asked_for_before_anything(tmp_path, no_tensorflow):
  text = refusal(tmp_path / "data", name="cifar10")
  assert text.startswith("TFDS's builder of cifar10 needs TensorFlow, for ")
  assert not (tmp_path / "data").exists()


def test_missing_files_of_imagenet_are_named(tmp_path, monkeypatch):
  monkeypatch.setattr(catalog, "missing", lambda needs: [])
  text = refusal(tmp_path, name="imagenet2012")
  assert text.startswith("imagenet2012 isn't downloaded by TFDS, and ")
  assert "has no ILSVRC2012_img_train.tar and no ILSVRC2012_img_val.tar" in text
  (tmp_path / "ILSVRC2012_img_train.tar").touch()
  text = refusal(tmp_path, tmp_path, name="imagenet2012")
  assert text.startswith(f"{tmp_path} has no ILSVRC2012_img_val.tar. Name with")


def test_a_line_is_one():
  assert tfds_errors.line(ValueError("two\n lines.")) == "two lines"
  assert tfds_errors.line(ValueError()) == "ValueError"
