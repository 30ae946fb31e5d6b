"""An object store that runs in a thread: as much of Google's as we speak to.

The JSON API's buckets and objects, with generations and their preconditions,
for gcsfs, google-cloud-storage and TensorStore alike. It keeps everything in
memory, one request after the other.
"""

import http.server
import itertools
import json
import re
import sys
import threading
import urllib.parse
import zlib
from collections.abc import Callable
from typing import Any

BUCKET = "bucket"
_OBJECT = re.compile(
  r"(?:/upload|/download)?/storage/v1/b/(?P<bucket>[^/]+)"
  r"(?:/o(?:/(?P<name>[^/]+)(?P<target>/(?:rewriteTo/b/[^/]+|moveTo)/o/.*)?)?)?"
)


class Failure(Exception):
  """An answer that is not 200."""

  def __init__(self, code: int, message: str = ""):
    super().__init__(code, message)
    self.code, self.message = code, message


class Store:
  """The objects, and what the tests may do to them.

  Attributes:
    objects: the bytes of each, by name.
    log: method and path of every request.
    fail: called with a request's method and object's name (which is empty
      where it is about a bucket); may raise `Failure`.
  """

  def __init__(self):
    self.objects: dict[str, bytes] = {}
    self.log: list[tuple[str, str]] = []
    self.fail: Callable[[str, str], None] = lambda method, name: None
    self.lock = threading.RLock()
    self._generations: dict[str, int] = {}
    self._next = itertools.count(2)
    self._sessions: dict[str, tuple[str, dict, bytes]] = {}

  def generation(self, name: str) -> int:
    """What changes with an object; 0 for one that isn't there."""
    return self._generations.get(name, 1) if name in self.objects else 0

  def describe(self, name: str) -> dict[str, Any]:
    """The resource of an object."""
    if name not in self.objects:
      raise Failure(404, f"No such object: {BUCKET}/{name}")
    data = self.objects[name]
    return {
      "kind": "storage#object",
      "name": name,
      "bucket": BUCKET,
      "size": str(len(data)),
      "generation": str(self.generation(name)),
      "metageneration": "1",
      "contentType": "application/octet-stream",
      "updated": "2026-01-01T00:00:00.000Z",
      "timeCreated": "2026-01-01T00:00:00.000Z",
      "etag": str(self.generation(name)),
    }

  def check(self, name: str, query: dict[str, str]) -> None:
    """The preconditions of a request."""
    wanted = query.get("ifGenerationMatch")
    if wanted is not None and int(wanted) != self.generation(name):
      raise Failure(412, "conditionNotMet")
    unwanted = query.get("ifGenerationNotMatch")
    if unwanted is not None and int(unwanted) == self.generation(name):
      raise Failure(304)

  def put(self, name: str, data: bytes, query: dict[str, str]) -> dict:
    """Writes an object."""
    self.check(name, query)
    self.objects[name] = data
    self._generations[name] = next(self._next)
    return self.describe(name)

  def delete(self, name: str, query: dict[str, str]) -> None:
    """Removes an object."""
    self.describe(name)
    self.check(name, query)
    del self.objects[name]

  def start_upload(self, name: str, query: dict[str, str]) -> str:
    """Begins an upload in pieces; returns its id."""
    key = str(next(self._next))
    self._sessions[key] = (name, query, b"")
    return key

  def continue_upload(self, key: str, data: bytes, range_: str) -> dict | int:
    """Takes a piece; returns the object, or how much there is so far."""
    name, query, before = self._sessions[key]
    data = before + data
    if range_ and range_.rpartition("/")[2] in ("*", ""):
      self._sessions[key] = (name, query, data)
      return len(data)
    del self._sessions[key]
    return self.put(name, data, query)

  def list(self, query: dict[str, str]) -> dict[str, Any]:
    """Names below a prefix, up to the next delimiter; one page of them."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    start, end = query.get("startOffset", ""), query.get("endOffset")
    items, prefixes = [], set()
    for name in sorted(self.objects):
      if not name.startswith(prefix) or name < start or (end and name >= end):
        continue
      head, found, rest = name[len(prefix) :].partition(delimiter or "\0")
      trailing = query.get("includeTrailingDelimiter") == "true"
      if delimiter and found:
        prefixes.add(prefix + head + delimiter)
      if not (delimiter and found) or (trailing and not rest):
        items.append(self.describe(name))
    size = int(query.get("maxResults", 1000))
    after = int(query.get("pageToken", 0))
    page: dict[str, Any] = {"kind": "storage#objects"}
    if after == 0 and prefixes:
      page["prefixes"] = sorted(prefixes)
    page["items"] = items[after : after + size]
    if after + size < len(items):
      page["nextPageToken"] = str(after + size)
    return page


def _handler(store: Store) -> type[http.server.BaseHTTPRequestHandler]:
  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
      pass

    def _answer(
      self, code: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
      self.send_response(code)
      for key, value in (headers or {}).items():
        self.send_header(key, value)
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      if self.command != "HEAD":
        self.wfile.write(body)

    def _json(self, content: Any) -> None:
      self._answer(
        200,
        json.dumps(content).encode(),
        {"Content-Type": "application/json; charset=UTF-8"},
      )

    def _body(self) -> bytes:
      if self.headers.get("Transfer-Encoding") != "chunked":
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))
      body = b""
      while size := int(self.rfile.readline(), 16):
        body += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
      return body

    def _parts(self, body: bytes) -> list[bytes]:
      """Of a multipart body; the first is about the second."""
      boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
      assert boundary
      parts = body.split(b"--" + boundary[1].encode())[1:-1]
      end = b"\r\n" if parts[0].startswith(b"\r\n") else b"\n"
      bodies = (part.split(end + end, maxsplit=1)[1] for part in parts)
      return [body.removesuffix(end) for body in bodies]

    def _do(self) -> None:
      body = self._body()
      if self.headers.get("Content-Encoding") == "gzip":
        body = zlib.decompress(body, 31)
      url = urllib.parse.urlsplit(self.path)
      query = dict(urllib.parse.parse_qsl(url.query))
      try:
        with store.lock:
          self._route(url.path, query, body)
      except Failure as e:
        error = {"error": {"code": e.code, "message": e.message}}
        body = b"" if e.code == 304 else json.dumps(error).encode()
        self._answer(e.code, body, {"Content-Type": "application/json"})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _do

    def _route(self, path: str, query: dict[str, str], body: bytes) -> None:
      match = _OBJECT.fullmatch(path)
      if not match:
        raise Failure(404, f"nothing at {path}")
      name = urllib.parse.unquote(match["name"] or "")
      uploads = path.startswith("/upload")
      kind = query.get("uploadType")
      if uploads and kind == "multipart":
        about, body = self._parts(body)
        name = json.loads(about)["name"]
      elif uploads:
        name = query.get("name", name)
        if not name and "upload_id" not in query:
          name = json.loads(body)["name"]
      store.log.append((self.command, name))
      store.fail(self.command, name)
      if urllib.parse.unquote(match["bucket"]) != BUCKET:
        raise Failure(404, "The specified bucket does not exist.")
      if uploads and kind == "resumable" and "upload_id" not in query:
        key = store.start_upload(name, query)
        host = self.headers["Host"]
        where = f"http://{host}{path}?uploadType=resumable&upload_id={key}"
        self._answer(200, b"", {"Location": where})
      elif uploads and kind == "resumable":
        range_ = self.headers.get("Content-Range", "")
        got = store.continue_upload(query["upload_id"], body, range_)
        if isinstance(got, int):
          self._answer(308, b"", {"Range": f"bytes=0-{got - 1}"})
        else:
          self._json(got)
      elif uploads:
        self._json(store.put(name, body, query))
      elif not match["name"]:
        if path.endswith("/o"):
          self._json(store.list(query))
        else:
          self._json({"kind": "storage#bucket", "name": BUCKET})
      elif match["target"]:
        target = urllib.parse.unquote(match["target"].rpartition("/o/")[2])
        store.describe(name)
        resource = store.put(target, store.objects[name], query)
        if match["target"].startswith("/moveTo"):
          store.delete(name, {})
          self._json(resource)
        else:
          self._json({"done": True, "resource": resource})
      elif self.command == "DELETE":
        store.delete(name, query)
        self._answer(204)
      else:
        self._get(name, query, path)

    def _get(self, name: str, query: dict[str, str], path: str) -> None:
      resource = store.describe(name)
      store.check(name, query)
      wanted = query.get("generation")
      if wanted is not None and wanted != resource["generation"]:
        raise Failure(404, "No such generation")
      if query.get("alt") != "media" and not path.startswith("/download"):
        self._json(resource)
        return
      data = store.objects[name]
      headers = {
        "Content-Type": "application/octet-stream",
        "X-Goog-Generation": resource["generation"],
        "X-Goog-Stored-Content-Encoding": "identity",
        "X-Goog-Stored-Content-Length": resource["size"],
      }
      asked = self.headers.get("Range")
      if not asked:
        self._answer(200, data, headers)
        return
      first, last = asked.removeprefix("bytes=").split("-")
      if not first:
        first, last = max(len(data) - int(last), 0), ""
      begin = int(first)
      end = min(int(last) + 1, len(data)) if last else len(data)
      if begin >= len(data):
        raise Failure(416, "range not satisfiable")
      headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
      self._answer(206, data[begin:end], headers)

  return Handler


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128

  def handle_error(self, request: Any, client_address: Any) -> None:
    # Clients hang up on answers that they no longer need.
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


class Server:
  """The store behind a port of this machine; use as a context manager.

  Attributes:
    store: what it keeps.
  """

  def __init__(self, port: int = 0):
    self.store = Store()
    self._server = _Server(("127.0.0.1", port), _handler(self.store))
    self._thread = threading.Thread(target=self._server.serve_forever)

  @property
  def environment(self) -> dict[str, str]:
    """What tells the libraries to come here, without credentials."""
    url = f"http://127.0.0.1:{self._server.server_address[1]}"
    return {
      "STORAGE_EMULATOR_HOST": url,
      "TENSORSTORE_GCS_HTTP_URL": url,
      # gcsfs asks another service, by another protocol, what kind of bucket
      # it is.
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
      # No search for credentials.
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
      "NO_GCE_CHECK": "true",
      "GCE_METADATA_ROOT": "127.0.0.1:1",
      "GCE_METADATA_HOST": "127.0.0.1:1",
    }

  def __enter__(self) -> "Server":
    self._thread.start()
    return self

  def __exit__(self, *unused: object) -> None:
    self._server.shutdown()
    self._server.server_close()
    self._thread.join()
