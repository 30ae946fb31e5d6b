"""Downloads one file over HTTP: resumed, checked, whole or absent.

Until it is whole the file is called `NAME.part`; the server's ETag for it lies
beside it in `NAME.part.etag`. The process that holds a lock on the part writes
it; others wait for that one.
"""

import base64
import contextlib
import errno
import fcntl
import hashlib
import http.client
import io
import os
import pathlib
import queue
import re
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import tqdm

from mixer import files
from mixer import text as text_lib
from mixer.errors import UserError

_ATTEMPTS = 5
# Before the second attempt; twice as long before each further one.
_DELAY_SECONDS = 1.0
# To resolve the name, connect and get an answer; and for each read.
_TIMEOUT_SECONDS = 15.0
_BLOCK_BYTES = 1 << 18
# Of a file, the largest released one has 1.7e9; and of one call.
_LARGEST_BYTES = 8 << 30
_LONGEST_SECONDS = 86_400.0
_TOO_MUCH = (
  f"it has more than {_LARGEST_BYTES / 1e9:.1f} GB, or takes more than "
  f"{_LONGEST_SECONDS / 3600:.0f} hours"
)
# Those that may be gone a little later.
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class _Failed(Exception):
  """An attempt came to nothing.

  Attributes:
    retry: whether another may do better.
  """

  def __init__(self, reason: str, *, retry: bool):
    super().__init__(reason)
    self.retry = retry


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows redirections to where nobody on the way can change the file."""

  def redirect_request(
    self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
  ) -> Any:
    old, new = (urllib.parse.urlsplit(u).scheme for u in (req.full_url, newurl))
    if new not in ("https", old):
      fp.close()
      raise _Failed(f"it leads to {newurl}, which is no https", retry=False)
    return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(
  request: urllib.request.Request, timeout: float
) -> http.client.HTTPResponse:
  return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)


def fetch(
  url: str, path: pathlib.Path, check: Callable[[pathlib.Path], Any]
) -> None:
  """Downloads a file, unless it is there by the time it is our turn.

  Args:
    url: http or https.
    path: where to; folders are made.
    check: raises UserError if the file isn't what it should be; it then
      doesn't get its name.

  Raises:
    UserError: the server can't be reached or refuses, what it sends is not
      what it promised, or the disk refuses.
  """
  if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
    raise UserError(f"{url} can't be downloaded: expected https://... there.")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as part:
      if part is not None:
        _download(url, path, part, check)
  except OSError as e:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
      why = "the disk is full. Make room there"
    else:
      why = f"{e.strerror or e}. Mend that"
    raise UserError(
      f"{path} can't be written: {why}, or name another place with the "
      "environment variable MIXER_CACHE."
    ) from e


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[io.BufferedRandom | None]:
  """The part, for this process alone; None once `path` itself is there."""
  part = _part(path)
  while True:
    # Appending: an attempt goes on at the end, or truncates to zero first.
    with open(part, "a+b") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        _say(f"waiting for another process that downloads {path}")
        fcntl.flock(file, fcntl.LOCK_EX)
      try:
        current = os.path.samestat(os.fstat(file.fileno()), os.stat(part))
      except FileNotFoundError:
        current = False  # The other process has given it its name.
      if path.exists():
        if current:
          part.unlink()
        yield None
        return
      if current:
        try:
          yield file
        finally:
          with contextlib.suppress(FileNotFoundError):
            if not part.stat().st_size:
              part.unlink()
        return


def _download(
  url: str,
  path: pathlib.Path,
  part: io.BufferedRandom,
  check: Callable[[pathlib.Path], Any],
) -> None:
  until = time.monotonic() + _LONGEST_SECONDS
  for attempt in range(_ATTEMPTS):
    try:
      with _ask(url, path, part, attempt) as response:
        _receive(response, url, path, part, until)
      break
    except _Failed as e:
      if not e.retry or attempt + 1 == _ATTEMPTS:
        raise UserError(
          f"{url} can't be downloaded: {e}. With a connection, give the same "
          "command again: it goes on where this one ended. Without one, fetch "
          f"that address elsewhere and put the file at {path} yourself."
        ) from e
      _say(f"{url}: {e}; trying again")
      time.sleep(_DELAY_SECONDS * 2**attempt)
  part.flush()
  os.fsync(part.fileno())
  try:
    check(_part(path))
  except UserError as e:
    _discard(path, part)
    raise UserError(
      f"what {url} gave is not the file that was asked for; perhaps a proxy "
      f"or a log-in page answered. {e}"
    ) from e
  _part(path).rename(path)
  _etag(path).unlink(missing_ok=True)
  files.sync_folder(path.parent)


def _ask(
  url: str, path: pathlib.Path, part: io.BufferedRandom, attempt: int
) -> http.client.HTTPResponse:
  """Asks for the file, or for what the part lacks of it."""
  headers = {"User-Agent": "mixer"}
  part.flush()  # Before its size is taken.
  size = os.fstat(part.fileno()).st_size
  with contextlib.suppress(FileNotFoundError):
    if size:
      etag = _etag(path).read_text()
      headers |= {"Range": f"bytes={size}-", "If-Range": etag}
  request = urllib.request.Request(url, headers=headers)
  answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

  def ask() -> None:
    try:
      answers.put(_open(request, timeout=_TIMEOUT_SECONDS))
    except Exception as e:
      answers.put(e)

  # A thread, because a name server that is silent, or a host of which each of
  # many addresses is, would hold us for minutes: the timeout is for each.
  threading.Thread(target=ask, daemon=True).start()
  try:
    answer = answers.get(timeout=_TIMEOUT_SECONDS + 1)
  except queue.Empty:
    answer = TimeoutError("no answer")
  if isinstance(answer, urllib.error.HTTPError):
    answer.close()
    if answer.code == 416:
      _discard(path, part)
    raise _Failed(
      f"the server answers {answer.code} {_why(answer)}",
      retry=answer.code in (*_TRANSIENT, 416),
    )
  if isinstance(answer, (OSError, http.client.HTTPException)):
    # A machine without a connection should hear so at once; but there is one
    # if an earlier attempt got an answer.
    raise _Failed(_why(answer), retry=attempt > 0)
  if isinstance(answer, Exception):
    raise answer
  return answer


def _receive(
  response: http.client.HTTPResponse,
  url: str,
  path: pathlib.Path,
  part: io.BufferedRandom,
  until: float,
) -> None:
  """Writes to the part what the server sends, and checks size and MD5."""
  etag = response.headers.get("ETag", "")
  have = os.fstat(part.fileno()).st_size
  if response.status == 206:
    place = response.headers.get("Content-Range", "")
    if not re.match(rf"bytes {have}-", place) or etag != _saved_etag(path):
      _discard(path, part)
      raise _Failed("the server sends another part than asked for", retry=True)
  else:
    # The first attempt, another file than the part's, or no ranges there.
    _discard(path, part)
    have = 0
    # Only with a strong ETag the file is the same byte for byte.
    if etag.startswith('"'):
      _etag(path).write_text(etag)
  total = None if response.length is None else have + response.length
  if total is not None and total > _LARGEST_BYTES:
    _discard(path, part)
    raise _Failed(_TOO_MUCH, retry=False)
  size = "" if total is None else f" ({total / 1e6:.0f} MB)"
  _say(f"{'resuming' if have else 'downloading'} {url}{size} to {path}")
  with tqdm.tqdm(
    total=total,
    initial=have,
    desc=path.name,
    unit="B",
    unit_scale=True,
    disable=None,  # tqdm's word for "unless it is a terminal".
    leave=False,
  ) as bar:
    while block := _read(response):
      have += len(block)
      if have > _LARGEST_BYTES or time.monotonic() > until:
        _discard(path, part)
        raise _Failed(_TOO_MUCH, retry=False)
      part.write(block)
      bar.update(len(block))
  part.flush()
  if total is not None and have != total:
    raise _Failed(f"it ended after {have} of {total} bytes", retry=True)
  promised = _md5(response)
  if promised is not None:
    part.seek(0)
    found = hashlib.file_digest(
      part, lambda: hashlib.md5(usedforsecurity=False)
    )
    if base64.b64encode(found.digest()).decode() != promised:
      _discard(path, part)
      raise _Failed("it isn't what the server's MD5 says", retry=True)


def _read(response: http.client.HTTPResponse) -> bytes:
  try:
    # One that sends a byte at times is not waited for until a block is full.
    return response.read1(_BLOCK_BYTES)
  except (OSError, http.client.HTTPException) as e:
    raise _Failed(_why(e), retry=True) from e


def _md5(response: http.client.HTTPResponse) -> str | None:
  """The MD5 of the whole file that Google Cloud Storage states, in base64.

  Its header is `x-goog-hash: crc32c=...,md5=...`, in one line or two.
  """
  for line in response.headers.get_all("x-goog-hash", []):
    for item in line.split(","):
      kind, _, value = item.strip().partition("=")
      if kind == "md5":
        return value
  return None


def _discard(path: pathlib.Path, part: io.BufferedRandom) -> None:
  # In this order: an ETag without a part does no harm.
  part.truncate(0)
  _etag(path).unlink(missing_ok=True)


def _saved_etag(path: pathlib.Path) -> str | None:
  return _etag(path).read_text() if _etag(path).exists() else None


def _part(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + ".part")


def _etag(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + ".part.etag")


def _why(error: Exception) -> str:
  reason = getattr(error, "reason", error)
  text = getattr(reason, "strerror", None) or str(reason)
  return text.strip().split("\n")[0] or type(reason).__name__


def _say(text: str) -> None:
  print(text_lib.printable(text), file=sys.stderr, flush=True)
