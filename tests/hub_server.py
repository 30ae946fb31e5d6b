"""A server that speaks the Hugging Face hub's interface, as far as it is asked.

Files of a folder OWNER/NAME/FILE are served as the hub serves them: by HEAD and
GET of /OWNER/NAME/resolve/REVISION/FILE, with the headers that huggingface_hub
asks for, and ranges. A repository in `gated` wants a token.
"""

import contextlib
import hashlib
import http.server
import pathlib
import threading
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def do_HEAD(self):
    self.answer(False)

  def do_GET(self):
    self.answer(True)

  def answer(self, with_body):
    server: Any = self.server
    server.requests.append(self.path)
    parts = self.path.strip("/").split("?")[0].split("/")
    owner, name, _, _, *file = [*parts, "", "", "", ""][: max(4, len(parts))]
    folder = server.folder / owner / name
    path = folder / "/".join(file)
    code, headers, body = 200, {}, b""
    if not folder.is_dir():
      code, headers = 404, {"X-Error-Code": "RepoNotFound"}
    elif f"{owner}/{name}" in server.gated and not self.headers.get(
      "authorization"
    ):
      code, headers = 401, {"X-Error-Code": "GatedRepo"}
    elif not path.is_file():
      code, headers = 404, {"X-Error-Code": "EntryNotFound"}
      headers["X-Repo-Commit"] = COMMIT
    else:
      body = path.read_bytes()
      etag = hashlib.sha256(body).hexdigest()
      headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
      if given := self.headers.get("range"):
        start = int(given.removeprefix("bytes=").split("-")[0])
        code, body = 206, body[start:]
    self.send_response(code)
    for key, value in headers.items():
      self.send_header(key, value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    if with_body:
      self.wfile.write(body)

  def log_message(self, format, *args):
    pass


@contextlib.contextmanager
def serving(folder, gated=()):
  """Serves a folder; the server has `requests` and `endpoint`."""
  server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.folder, server.gated = pathlib.Path(folder), gated
  server.requests = []
  server.endpoint = f"http://127.0.0.1:{server.server_port}"
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
