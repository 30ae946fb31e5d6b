"""An object store that runs in a thread: as much of Google's as we speak to.

The JSON API's bucket and objects, with generations and their preconditions, for
gcsfs, google-cloud-storage and TensorStore alike, all of it in memory.
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
_DATE = "2026-01-01T00:00:00.000Z"


class Failure(Exception):
  """An answer that is not 200: code, message."""


class Store:
  """The objects, and what the tests may do to them.

  Attributes:
    objects: the bytes of each, by name.
    log: method and object of every request.
    fail: called with a request's method and object's name (which is empty
      where it is about a bucket); may raise `Failure`.
  """

  def __init__(self):
    self.objects: dict[str, bytes] = {}
    self.log: list[tuple[str, str]] = []
    self.fail: Callable[[str, str], None] = lambda method, name: None
    self.lock = threading.RLock()
    self.sessions: dict[str, tuple[str, dict, bytes]] = {}
    self.numbers = itertools.count(2)
    self._generations: dict[str, int] = {}

  def generation(self, name: str) -> str:
    """What changes with an object; 0 for one that isn't there."""
    here = name in self.objects
    return str(self._generations.get(name, 1) if here else 0)

  def describe(self, name: str, query: dict[str, str]) -> dict[str, Any]:
    """The resource of an object, if it meets the preconditions."""
    now = self.generation(name)
    if query.get("ifGenerationMatch", now) != now:
      raise Failure(412, "conditionNotMet")
    if query.get("ifGenerationNotMatch") == now:
      raise Failure(304, "")
    if name not in self.objects or query.get("generation", now) != now:
      raise Failure(404, f"No such object: {BUCKET}/{name}")
    found = dict.fromkeys(("updated", "timeCreated"), _DATE)
    found |= dict.fromkeys(("generation", "etag"), now)
    size = str(len(self.objects[name]))
    found |= {"kind": "storage#object", "name": name, "bucket": BUCKET}
    return found | {"size": size, "metageneration": "1"}

  def put(self, name: str, data: bytes, query: dict[str, str]) -> dict:
    """Writes an object."""
    if query.get("ifGenerationMatch", "0") != "0" or name in self.objects:
      self.describe(name, query)
    self.objects[name] = data
    self._generations[name] = next(self.numbers)
    return self.describe(name, {})

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
        items.append(self.describe(name, {}))
    size, after = int(query.get("maxResults", 1000)), query.get("pageToken")
    first = int(after or 0)
    page: dict[str, Any] = {"items": items[first : first + size]}
    if first + size < len(items):
      page["nextPageToken"] = str(first + size)
    return page | ({"prefixes": sorted(prefixes)} if not first else {})

  def upload(
    self, kind: str, name: str, query: dict[str, str], data: bytes, range_: str
  ) -> dict | int:
    """Writes an object, at once or by a session; the length of a part."""
    if kind != "resumable":
      return self.put(name, data, query)
    name, query, before = self.sessions.pop(query["upload_id"])
    key, data = str(next(self.numbers)), before + data
    if range_.rpartition("/")[2] == "*":
      self.sessions[key] = (name, query, data)
      return len(data)
    return self.put(name, data, query)


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  server: "_Server"

  def log_message(self, format: str, *args: object) -> None:
    pass

  def _answer(self, code: int, body: Any = b"", **headers: str) -> None:
    self.send_response(code)
    if not isinstance(body, bytes):
      body = json.dumps(body).encode()
      headers["Content_Type"] = "application/json; charset=UTF-8"
    for key, value in headers.items():
      self.send_header(key.replace("_", "-"), value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(body)

  def _body(self) -> bytes:
    if self.headers.get("Transfer-Encoding") != "chunked":
      body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    else:
      body = b""
      while size := int(self.rfile.readline(), 16):
        body += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
    gzip = self.headers.get("Content-Encoding") == "gzip"
    return zlib.decompress(body, 31) if gzip else body

  def _parts(self, body: bytes) -> list[bytes]:
    """Of a multipart body; the first is about the second."""
    boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
    assert boundary
    parts = body.split(b"--" + boundary[1].encode())[1:-1]
    end = b"\r\n" if parts[0].startswith(b"\r\n") else b"\n"
    bodies = (part.split(end + end, maxsplit=1)[1] for part in parts)
    return [body.removesuffix(end) for body in bodies]

  def _do(self) -> None:
    body, url = self._body(), urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    try:
      with self.server.store.lock:
        self._route(url.path, query, body)
    except Failure as e:
      code, message = e.args
      error = {"error": {"code": code, "message": message}}
      self._answer(code, b"" if code == 304 else error)

  do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _do

  def _route(self, path: str, query: dict[str, str], body: bytes) -> None:
    store, match = self.server.store, _OBJECT.fullmatch(path)
    if not match:
      raise Failure(404, f"nothing at {path}")
    name = urllib.parse.unquote(match["name"] or query.get("name", ""))
    uploads, kind = path.startswith("/upload"), query.get("uploadType", "")
    if uploads and kind == "multipart":
      about, body = self._parts(body)
      name = json.loads(about)["name"]
    begins = kind == "resumable" and "upload_id" not in query
    if begins and not name:
      name = json.loads(body)["name"]
    store.log.append((self.command, name))
    store.fail(self.command, name)
    if urllib.parse.unquote(match["bucket"]) != BUCKET:
      raise Failure(404, "The specified bucket does not exist.")
    if begins:
      key = str(next(store.numbers))
      store.sessions[key] = (name, query, b"")
      where = f"{path}?uploadType=resumable&upload_id={key}"
      self._answer(200, Location=f"http://{self.headers['Host']}{where}")
    elif uploads:
      range_ = self.headers.get("Content-Range", "")
      found = store.upload(kind, name, query, body, range_)
      assert not isinstance(found, int), "an object is sent in one part"
      self._answer(200, found)
    elif not match["name"]:
      listed = path.endswith("/o")
      self._answer(200, store.list(query) if listed else {"name": BUCKET})
    elif match["target"]:
      target = urllib.parse.unquote(match["target"].rpartition("/o/")[2])
      store.describe(name, {})
      resource = store.put(target, store.objects[name], query)
      self._answer(200, {"done": True, "resource": resource})
    elif self.command == "DELETE":
      store.describe(name, query)
      del store.objects[name]
      self._answer(204)
    else:
      self._get(name, query, path)

  def _get(self, name: str, query: dict[str, str], path: str) -> None:
    resource = self.server.store.describe(name, query)
    if query.get("alt") != "media" and not path.startswith("/download"):
      self._answer(200, resource)
      return
    data, asked = self.server.store.objects[name], self.headers.get("Range")
    headers = {
      "X_Goog_Generation": resource["generation"],
      "X_Goog_Stored_Content_Encoding": "identity",
      "X_Goog_Stored_Content_Length": resource["size"],
    }
    if not asked:
      self._answer(200, data, **headers)
      return
    first, last = asked.removeprefix("bytes=").split("-")
    begin = int(first) if first else max(len(data) - int(last), 0)
    if begin >= len(data):
      raise Failure(416, "range not satisfiable")
    end = min(int(last) + 1, len(data)) if first and last else len(data)
    headers["Content_Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
    self._answer(206, data[begin:end], **headers)


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128
  store: Store

  def handle_error(self, request: Any, client_address: Any) -> None:
    # Clients hang up on answers that they no longer need.
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


class Server:
  """The store behind a port of this machine, and how libraries find it."""

  def __init__(self, port: int = 0):
    self._server = _Server(("127.0.0.1", port), _Handler)
    self.store = self._server.store = Store()
    self._thread = threading.Thread(target=self._server.serve_forever)
    url = f"http://127.0.0.1:{self._server.server_address[1]}"
    self.environment = {
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
