import base64
import contextlib
import errno
import hashlib
import http.server
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from mixer import download
from mixer.errors import UserError

CONTENT = np.random.default_rng(0).bytes(700_000)
OTHER = np.random.default_rng(1).bytes(600_000)


class Server(http.server.ThreadingHTTPServer):
  """Serves one file, well or badly.

  Attributes:
    content: of the file.
    etag: its ETag; "" for none.
    md5: the header's; None for none, "" for the right one.
    ranges: whether they are heeded.
    heeds_if_range: whether If-Range is.
    statuses: with which to answer first instead.
    cuts: after how many bytes to hang up, an answer each.
    chunked: whether the length is left out.
    stall: where given, an answer waits for it in its middle.
    requests: (path, Range header) of each.
    sent: bytes of content in all.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.content, self.etag, self.md5 = CONTENT, '"one"', None
    self.ranges = self.heeds_if_range = True
    self.statuses, self.cuts = [], []
    self.chunked, self.stall = False, None
    self.requests, self.sent = [], 0
    self.reason = None
    self.url = f"http://127.0.0.1:{self.server_port}/file"

  def handle_error(self, request, client_address):
    # The other side may hang up.
    if not isinstance(sys.exc_info()[1], ConnectionError):
      super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def do_GET(self):
    s: Any = self.server
    wanted = self.headers.get("Range")
    s.requests.append((self.path, wanted))
    self.close_connection = True
    if self.path == "/moved":
      return self._refuse(302, Location="/file")
    if self.path.startswith("/to/"):
      return self._refuse(302, Location=self.path.removeprefix("/to/"))
    if s.statuses:
      return self._refuse(s.statuses.pop(0))
    start = 0
    same = self.headers.get("If-Range") == s.etag or not s.heeds_if_range
    if wanted and s.ranges and same:
      start = int(wanted.removeprefix("bytes=").removesuffix("-"))
      if start >= len(s.content):
        return self._refuse(416)
    body = s.content[start:]
    self.send_response(206 if start else 200)
    if start:
      end = len(s.content) - 1
      self.send_header("Content-Range", f"bytes {start}-{end}/{end + 1}")
    if s.etag:
      self.send_header("ETag", s.etag)
    if s.md5 is not None:
      right = base64.b64encode(hashlib.md5(s.content).digest()).decode()
      self.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={s.md5 or right}")
    if s.chunked:
      self.send_header("Transfer-Encoding", "chunked")
    else:
      self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    if s.cuts:
      body = body[: s.cuts.pop(0)]
    if s.chunked:
      body = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    if s.stall:
      self.wfile.write(body[: len(body) // 2])
      s.stall.wait(30)
      body = body[len(body) // 2 :]
    self.wfile.write(body)
    s.sent += len(body)

  def _refuse(self, status, **headers):
    self.send_response(status, self.server.reason)
    for key, value in headers.items():
      self.send_header(key, value)
    self.send_header("Content-Length", "0")
    self.end_headers()

  def log_message(self, format, *args):
    del format, args


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setenv("no_proxy", "*")
  monkeypatch.setattr(download, "_DELAY_SECONDS", 0)
  with Server() as s:
    thread = threading.Thread(target=s.serve_forever, args=(0.01,))
    thread.start()
    yield s
    s.shutdown()
    thread.join()


@pytest.fixture
def path(tmp_path):
  return tmp_path / "folder" / "file.npz"


def fetch(server, path):
  download.fetch(server.url, path, lambda part: part)


def fetch_part(server, path, size=300_000):
  """Leaves what a download that failed after that many bytes leaves."""
  server.cuts = [size] + 10 * [0]
  with pytest.raises(UserError, match=r"of [0-9]+ bytes\. With a connection"):
    fetch(server, path)
  server.cuts.clear()
  server.requests.clear()
  server.sent = 0


def part_of(path):
  return path.with_name("file.npz.part")


def assert_whole(path, content=CONTENT):
  assert path.read_bytes() == content
  # Nothing else is left.
  assert list(path.parent.iterdir()) == [path]


def test_a_file_is_fetched(server, path, capfd):
  server.md5 = ""
  fetch(server, path)
  assert_whole(path)
  assert capfd.readouterr().err.splitlines() == [
    f"downloading {server.url} (1 MB) to {path}"
  ]


def test_a_file_that_is_there_is_not_fetched(server, path):
  path.parent.mkdir()
  path.write_bytes(b"mine")
  fetch(server, path)
  assert_whole(path, b"mine")
  assert not server.requests


def test_redirections_are_followed(server, path):
  server.url = server.url.replace("/file", "/moved")
  fetch_part(server, path)
  fetch(server, path)
  assert_whole(path)
  assert server.requests == [
    ("/moved", "bytes=300000-"),
    ("/file", "bytes=300000-"),
  ]


def test_a_connection_that_breaks_is_taken_up(server, path):
  server.cuts, server.md5 = [300_000, 100_000], ""
  fetch(server, path)
  assert_whole(path)
  ranges = [wanted for _, wanted in server.requests]
  assert ranges == [None, "bytes=300000-", "bytes=400000-"]


def test_another_call_goes_on(server, path, capfd):
  fetch_part(server, path)
  assert part_of(path).read_bytes() == CONTENT[:300_000]
  capfd.readouterr()
  fetch(server, path)
  assert_whole(path)
  assert server.sent == 400_000
  assert capfd.readouterr().err.startswith("resuming ")


def test_a_part_of_another_file_is_discarded(server, path):
  fetch_part(server, path)
  server.content, server.etag = OTHER, '"two"'
  fetch(server, path)
  assert_whole(path, OTHER)
  assert len(server.requests) == 1


def test_a_part_is_discarded_if_the_server_forgets_to_compare(server, path):
  fetch_part(server, path)
  server.content, server.etag, server.heeds_if_range = OTHER, '"two"', False
  fetch(server, path)
  assert_whole(path, OTHER)


def test_a_server_without_ranges_sends_all_again(server, path):
  server.ranges = False
  fetch_part(server, path)
  fetch(server, path)
  assert_whole(path)
  assert server.sent == len(CONTENT)


@pytest.mark.parametrize("etag", ["", 'W/"one"'])
def test_without_a_strong_etag_nothing_is_resumed(server, path, etag):
  server.etag = etag
  fetch_part(server, path)
  fetch(server, path)
  assert_whole(path)
  assert server.requests == [("/file", None)]


def test_a_part_longer_than_the_file_is_discarded(server, path):
  fetch_part(server, path, len(CONTENT) - 1)
  part_of(path).write_bytes(CONTENT + b"x")
  fetch(server, path)
  assert_whole(path)


def test_a_damaged_part_is_noticed_by_its_md5(server, path):
  server.md5 = ""
  fetch_part(server, path)
  part_of(path).write_bytes(bytes(300_000))
  fetch(server, path)
  assert_whole(path)


def test_a_wrong_md5_is_refused(server, path):
  server.md5 = base64.b64encode(bytes(16)).decode()
  with pytest.raises(UserError, match="isn't what the server's MD5 says"):
    fetch(server, path)
  assert not list(path.parent.iterdir())


def test_a_file_of_unknown_length(server, path):
  server.chunked, server.md5 = True, ""
  fetch(server, path)
  assert_whole(path)


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_final(server, path, status):
  server.statuses = [status]
  with pytest.raises(UserError, match=f"/file can't be .*answers {status} "):
    fetch(server, path)
  assert len(server.requests) == 1


def test_a_server_that_is_busy_is_asked_again(server, path):
  server.statuses = [503, 429, 500]
  fetch(server, path)
  assert_whole(path)


def test_a_server_that_stays_busy_is_given_up(server, path):
  server.statuses = [503] * 99
  with pytest.raises(UserError, match="answers 503 Service Unavailable"):
    fetch(server, path)
  assert 1 < len(server.requests) < 10


def test_what_is_not_the_file_does_not_get_its_name(server, path):
  def check(part):
    assert part.read_bytes() == CONTENT
    raise UserError("this is a web page.")

  with pytest.raises(UserError, match=r"log-in page answered. this is a web"):
    download.fetch(server.url, path, check)
  assert not list(path.parent.iterdir())


def test_offline(server, path, monkeypatch):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{s.getsockname()[1]}/file.npz"
  monkeypatch.setattr(time, "sleep", lambda s: pytest.fail("it tries again"))
  with pytest.raises(UserError) as e:
    download.fetch(url, path, lambda part: part)
  assert str(e.value) == (
    f"{url} can't be downloaded: Connection refused. With a connection, give "
    "the same command again: it goes on where this one ended. Without one, "
    f"fetch that address elsewhere and put the file at {path} yourself."
  )
  assert not list(path.parent.iterdir())


def test_a_server_that_goes_away_is_asked_again(server, path):
  # The second attempt finds nobody, and is not the last.
  asked = []

  def ask(url, timeout):
    asked.append(url)
    if len(asked) == 2:
      raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    return urlopen(url, timeout=timeout)

  urlopen = download._open
  server.cuts = [100_000]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(download, "_open", ask)
    fetch(server, path)
  assert_whole(path)
  assert len(asked) == 3


def test_a_redirection_to_another_scheme_is_not_followed(server, path):
  to = f"{server.url.removesuffix('file')}to/"
  for place in ("ftp://example.org/a", "file:///etc/passwd"):
    with pytest.raises(UserError, match=r"leads to ftp|302.*not allowed"):
      download.fetch(to + place, path, lambda part: part)
  assert len(server.requests) == 2  # Nor asked again.
  request = download.urllib.request.Request("https://example.org/")
  with pytest.raises(download._Failed, match="is no https"):
    download._Redirects().redirect_request(
      request, io.BytesIO(), 302, "", {}, "http://example.org/"
    )


def test_what_a_server_says_is_one_line(server, path, capsys):
  server.statuses = [503, 404]
  server.reason = "\x1b[2Jgone\x9b\x0b"
  with pytest.raises(UserError, match=r"404 \\x1b\[2Jgone\\x9b\."):
    fetch(server, path)
  assert r"503 \x1b[2Jgone" in capsys.readouterr().err


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_without_end_is_left(server, path, monkeypatch, chunked):
  monkeypatch.setattr(download, "_LARGEST_BYTES", 300_000)
  server.chunked = chunked
  with pytest.raises(UserError, match="it has more than .* GB, or takes"):
    fetch(server, path)
  assert len(server.requests) == 1
  assert not list(path.parent.iterdir())


def test_a_server_that_trickles_is_left(path, monkeypatch):
  monkeypatch.setenv("no_proxy", "*")
  monkeypatch.setattr(download, "_LONGEST_SECONDS", 0.3)
  done = threading.Event()

  def trickle(listening):
    with listening.accept()[0] as connection:
      connection.recv(10_000)
      connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
      with contextlib.suppress(OSError):
        while not done.wait(0.05):
          connection.sendall(b"x")

  with socket.create_server(("127.0.0.1", 0)) as s:
    thread = threading.Thread(target=trickle, args=(s,))
    thread.start()
    url = f"http://127.0.0.1:{s.getsockname()[1]}/"
    with pytest.raises(UserError, match="or takes more than"):
      download.fetch(url, path, lambda part: part)
    done.set()
    thread.join()


def test_silence_ends(path, monkeypatch):
  monkeypatch.setenv("no_proxy", "*")
  monkeypatch.setattr(download, "_TIMEOUT_SECONDS", 0.2)
  with socket.create_server(("127.0.0.1", 0)) as s:
    url = f"http://127.0.0.1:{s.getsockname()[1]}/"
    with pytest.raises(UserError, match=r"can't be downloaded: timed out\."):
      download.fetch(url, path, lambda part: part)


def test_an_endless_search_for_the_host_ends(path, monkeypatch):
  # As with a name server that is silent, which no timeout reaches.
  monkeypatch.setattr(download, "_TIMEOUT_SECONDS", -0.9)
  over = threading.Event()
  monkeypatch.setattr(download, "_open", lambda *a, **k: over.wait(30))
  with pytest.raises(UserError, match=r"can't be downloaded: no answer\."):
    download.fetch("http://example.org/", path, lambda part: part)
  over.set()


def test_other_addresses_are_refused(path):
  with pytest.raises(UserError, match="file:///etc/passwd can't be .*https:"):
    download.fetch("file:///etc/passwd", path, lambda part: part)


def test_a_full_disk(server, path, monkeypatch):
  class Full:
    def __init__(self, file):
      self.file = file

    def __getattr__(self, name):
      return getattr(self.file, name)

    def __enter__(self):
      return self

    def __exit__(self, *error):
      self.file.close()

    def write(self, data):
      if self.file.tell() + len(data) > 500_000:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      return self.file.write(data)

  with monkeypatch.context() as patch:
    patch.setattr(
      download, "open", lambda *args: Full(open(*args)), raising=False
    )
    with pytest.raises(UserError, match="disk is full.*MIXER_CACHE"):
      fetch(server, path)
  assert not path.exists()
  fetch(server, path)
  assert_whole(path)
  assert server.requests[1][1] is not None


def test_a_place_that_cannot_be_written(server, path):
  path.parent.write_bytes(b"")
  with pytest.raises(UserError, match="can't be written: File exists.*CACHE"):
    fetch(server, path)


def test_of_many_at_once_one_downloads(server, path):
  server.stall = threading.Event()
  failures = []

  def run():
    try:
      fetch(server, path)
    except BaseException as e:
      failures.append(e)

  threads = [threading.Thread(target=run) for _ in range(6)]
  for thread in threads:
    thread.start()
  while not server.requests:
    time.sleep(0.01)
  assert not path.exists()
  server.stall.set()
  for thread in threads:
    thread.join()
  assert not failures
  assert_whole(path)
  assert len(server.requests) == 1


def test_of_many_at_once_another_goes_on_where_one_fails(server, path):
  # Each has one attempt, and each answer is cut.
  server.cuts = [200_000] * 3
  failures = []

  def run():
    try:
      fetch(server, path)
    except UserError as e:
      failures.append(e)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(download, "_ATTEMPTS", 1)
    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert len(failures) == 3
  assert_whole(path)
  assert server.sent == len(CONTENT)


def test_a_killed_process_leaves_what_the_next_goes_on_with(server, path):
  server.stall = threading.Event()
  code = (
    "import pathlib, sys; from mixer import download; "
    "download.fetch(sys.argv[1], pathlib.Path(sys.argv[2]), lambda p: p)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code, server.url, str(path)],
    stderr=subprocess.DEVNULL,
  )
  try:
    # A block of 262,144 bytes is written, half the file sent.
    while not part_of(path).exists() or part_of(path).stat().st_size < 200_000:
      assert process.poll() is None
      time.sleep(0.01)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  server.stall.set()
  server.requests.clear()
  fetch(server, path)
  assert_whole(path)
  assert re.fullmatch("bytes=[23].....-", server.requests[0][1])
