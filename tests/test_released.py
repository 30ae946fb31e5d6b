"""Released weights by name: found, downloaded, checked."""

import functools
import http.server
import io
import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import requests
from requests import adapters

from mixer import released, trained, weights
from mixer.errors import UserError
from tests import trained_files

NAME = "gsam/Mixer-S_32"
# Zeros, as they are quick to check; packed, so that a cut is in a member.
FLAT = {
  k: np.zeros(v, np.float32)
  for k, v in weights.expected(trained_files.shape_of("S/32", 1000)).items()
}


def assert_same(params, flat):
  assert weights.flatten(params).keys() == flat.keys()
  for name, array in weights.flatten(params).items():
    np.testing.assert_array_equal(array, flat[name], name)


@pytest.fixture(scope="module")
def content():
  file = io.BytesIO()
  np.savez(file, allow_pickle=False, **FLAT)
  return file.getvalue()


class Server(http.server.ThreadingHTTPServer):
  """Serves one file at every path, well or badly."""

  daemon_threads = True

  def __init__(self, content):
    super().__init__(("127.0.0.1", 0), Handler)
    self.content = content
    self.chunked = False  # Without a length.
    self.statuses: list[int] = []  # With which to answer first instead.
    self.cuts: list[int] = []  # Bytes after which to hang up, an answer each.
    self.requests: list[str] = []
    self.stall: Any = None  # What an answer waits for in its middle.

  def handle_error(self, request, client_address):
    pass  # The other side may hang up.


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def do_GET(self):
    s: Any = self.server
    s.requests.append(self.path)
    self.close_connection = True
    status = s.statuses.pop(0) if s.statuses else 200
    body = s.content if status < 300 else b""
    self.send_response(status)
    if not s.chunked:
      self.send_header("Content-Length", str(len(body)))
    self.send_header("Connection", "close")
    self.end_headers()
    body = body[: s.cuts.pop(0)] if s.cuts else body
    half = len(body) // 2
    self.wfile.write(body[:half])
    if s.stall and body:
      s.stall.wait(30)
    self.wfile.write(body[half:])

  def log_message(self, format, *args):
    pass


@pytest.fixture
def server(monkeypatch, content):
  monkeypatch.setenv("no_proxy", "*")
  monkeypatch.setattr(released, "_DELAY", 0)
  with Server(content) as s:
    threading.Thread(target=s.serve_forever, args=(0.01,)).start()
    address = f"http://127.0.0.1:{s.server_port}/"
    monkeypatch.setenv("MIXER_RELEASED_URL", address)
    yield s
    s.shutdown()


@pytest.fixture
def file(tmp_path, monkeypatch):
  """Where NAME is downloaded to."""
  monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache" / "released" / f"{NAME}.npz"


def fetch_whole(file, content):
  assert released.resolve(NAME) == file
  assert file.read_bytes() == content
  assert list(file.parent.iterdir()) == [file]


def test_a_name_is_downloaded_once(server, file, content, monkeypatch, capfd):
  assert_same(released.load(NAME), FLAT)
  fetch_whole(file, content)
  assert server.requests == [f"/{NAME}.npz"]
  assert f"{NAME}.npz to {file}" in capfd.readouterr().err
  # From here on there is nothing to download from.
  monkeypatch.setenv("MIXER_RELEASED_URL", "http://127.0.0.1:1")
  for prefix in ("gs://mixer_models/", f"{released._URL}/"):
    assert released.resolve(f"{prefix}{NAME}.npz") == file
  assert released.name_of(NAME) == released.name_of(file) == NAME


def test_what_is_busy_is_asked_again(server, file, content):
  server.statuses = [503, 429, 500]
  fetch_whole(file, content)
  assert len(server.requests) == 4


def test_a_connection_that_breaks_leaves_no_file(server, file, content):
  server.cuts = [1_000_000]
  with pytest.raises(UserError, match=r"d: .*Give the same command again"):
    released.resolve(NAME)
  assert not file.exists()
  fetch_whole(file, content)


@pytest.mark.parametrize(("status", "count"), [(503, 4), (404, 1)])
def test_what_refuses_says_so(server, file, status, count):
  server.statuses = [status] * 9
  with pytest.raises(UserError, match=f"d: .*{status}.*{file} yourself"):
    released.resolve(NAME)
  assert len(server.requests) == count and not file.exists()


def test_what_is_not_the_file_does_not_get_its_name(server, file, monkeypatch):
  good = server.content
  at = len(good) // 2
  for bad in b"<html>Please log in</html>", good[:at] + b"\1" + good[at + 1 :]:
    server.content = bad
    with pytest.raises(UserError, match="perhaps a proxy .*no .npz file"):
      released.load(NAME)
    assert not file.exists()
  monkeypatch.setattr(released, "_LARGEST", 1000)
  server.content = good
  for server.chunked in (False, True):
    with pytest.raises(UserError, match="it is too large"):
      released.load(NAME)
    assert not any(p.stat().st_size for p in file.parent.iterdir())


def test_https_does_not_lead_to_http(server, file, monkeypatch):
  base, send = os.environ["MIXER_RELEASED_URL"], adapters.HTTPAdapter.send

  def redirected(self, request, **more):  # A certificate would be needed.
    if not request.url.startswith("https:"):
      return send(self, request, **more)
    answer = requests.Response()
    answer.status_code, answer.raw, answer.request = 302, io.BytesIO(), request
    answer.url, answer.headers["Location"] = request.url, f"{base}{NAME}.npz"
    return answer

  monkeypatch.setattr(adapters.HTTPAdapter, "send", redirected)
  monkeypatch.setenv("MIXER_RELEASED_URL", "https://secure")
  with pytest.raises(UserError, match="can't be downloaded: No connection ada"):
    released.load(NAME)
  assert not server.requests and not file.exists()


def test_offline(file, monkeypatch):
  monkeypatch.setenv("no_proxy", "*")
  monkeypatch.setenv("MIXER_RELEASED_URL", "http://127.0.0.1:1")
  start = time.monotonic()
  with pytest.raises(UserError, match=f"put the file at {file} yourself"):
    released.load(NAME)
  assert time.monotonic() - start < 5


def test_of_two_one_downloads_and_the_other_survives_its_end(
  server, file, content
):
  server.stall = threading.Event()
  code = f"from mixer import released; print(released.resolve({NAME!r}))"
  start = functools.partial(
    subprocess.Popen, [sys.executable, "-c", code], stdout=subprocess.PIPE
  )
  first, part = start(), file.with_name(f"{file.name}.part")
  end = time.monotonic() + 60
  while not (part.exists() and part.stat().st_size > 10**7):
    assert time.monotonic() < end
    time.sleep(0.05)
  second = start()
  time.sleep(2)
  assert len(server.requests) == 1
  first.kill()
  first.communicate()
  server.stall.set()
  assert second.communicate(timeout=60)[0].decode() == f"{file}\n"
  assert len(server.requests) == 2
  fetch_whole(file, content)


def test_a_file_put_in_another_ones_place_is_refused(file, content):
  wrong = file.parent.parent / "imagenet21k" / "Mixer-B_16.npz"
  wrong.parent.mkdir(parents=True)
  wrong.write_bytes(content)
  with pytest.raises(UserError, match=f"{wrong} is not .*1,000 classes.*Remov"):
    trained.load("imagenet21k/Mixer-B_16")
  wrong.write_bytes(content[:-100])
  with pytest.raises(UserError, match=f"Remove {wrong}: it is then downloaded"):
    released.load("imagenet21k/Mixer-B_16")


def test_what_is_there_comes_before_a_name(tmp_path, monkeypatch, file):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "sam").mkdir()
  flat = trained_files.npz(tmp_path / "sam" / "Mixer-B_16.npz", 3)
  assert_same(released.load("sam/Mixer-B_16.npz"), flat)
  assert_same(released.load("~/sam/Mixer-B_16.npz"), flat)
  (tmp_path / "sam" / "Mixer-B_16").mkdir()
  assert released.resolve("sam/Mixer-B_16") is None
  with pytest.raises(UserError, match="is a folder where an .npz"):
    released.load("sam/Mixer-B_16")


def test_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = [f"{k}/{n}" for k, every in released.NAMES.items() for n in every]
  assert len(names) == 11
  for name in names:
    for prefix in ("", "gs://mixer_models/", f"{released._URL}/"):
      assert released.name_of(f"{prefix}{name}.npz") == name
  assert released.resolve("gs://bucket/runs/a") is None
  for path in (
    "imagenet21k/mixer-b_16",
    "imagenet21k/Mixer-B_16.npz.npz",
    "gs://vit_models/imagenet21k/Mixer-B_16.npz",
    "runs/b16/checkpoints/300",
    300 * "long",
  ):
    for function in (released.resolve, released.load):
      with pytest.raises(UserError) as e:
        function(path)
      message = str(e.value)
      assert message.startswith(f"there are no weights at {path}: expected")
      assert message.endswith(f"released file: {', '.join(names)}.")
