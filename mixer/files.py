"""Local and gs:// files: written whole or not at all, read with care."""

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import stat
import tempfile
import traceback
from collections.abc import Collection, Iterator
from typing import IO, Any, TypeAlias

from mixer.errors import UserError, first_line

Path: TypeAlias = str | os.PathLike[str]

_LARGEST = 256 << 20  # Bytes of a JSON file; a report's pictures are in one.
_CHECK = "sha256"  # The field of a file that `sealed` has made.
# The libraries through which an object store is reached.
_STORES = ("gcsfs.", "fsspec.", "google.auth.", "google.cloud.")
_SURROGATE = re.compile("[\ud800-\udfff]")


def is_remote(path: Path) -> bool:
  """Whether it is in an object store."""
  return os.fspath(path).startswith("gs://")


def _remote(path: Path) -> Any:
  from etils import epath  # Slow to import.

  return epath.Path(path)


def failures(path: Path) -> tuple[type[Exception], ...]:
  """Exceptions of reading and writing there that are no defects."""
  # Those of an object store's libraries have no common base.
  return (Exception,) if is_remote(path) else (OSError,)


def of_store(error: BaseException) -> bool:
  """Whether an error was raised by the libraries of an object store."""
  frames = traceback.walk_tb(error.__traceback__)
  names = (frame.f_globals.get("__name__", "") for frame, _ in frames)
  return any(f"{name}.".startswith(_STORES) for name in names)


def reason(error: BaseException) -> str:
  """An error in a few words, without a full stop."""
  return getattr(error, "strerror", None) or first_line(error)


@contextlib.contextmanager
def writing(path: Path, advice: str = "") -> Iterator[None]:
  """Turns errors of writing `path` into a UserError that ends in `advice`."""
  try:
    yield
  except UserError:
    raise
  except failures(path) as e:
    text = f"{os.fspath(path)} can't be written: {reason(e)}. {advice}"
    raise UserError(text.rstrip()) from e


def make_parent(path: Path) -> None:
  """Makes the folder of a file to be written; UserError if it can't be."""
  if not is_remote(path):
    with writing(path):
      folder = os.path.dirname(os.path.realpath(path))
      os.makedirs(folder, exist_ok=True)
      if os.path.isdir(path):
        raise OSError("it is a folder")
      if not in_place(path):
        tempfile.TemporaryFile(dir=folder).close()


def in_place(path: Path) -> bool:
  """Whether it can't be replaced: a device, a pipe or an open descriptor."""
  if _descriptor(path) is not None:
    return True
  return os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode)


def _descriptor(path: Path) -> int | None:
  """1 for /dev/stdout, 2 for /dev/stderr, N for /dev/fd/N."""
  names = {"/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}
  name = names.get(os.fspath(path), os.fspath(path))
  match = re.fullmatch(r"/dev/fd/(\d+)", name)
  return int(match[1]) if match else None


def _open_in_place(path: Path) -> IO[bytes]:
  number = _descriptor(path)
  # Opened anew, what /dev/stdout leads to would begin at its start.
  return open(path if number is None else os.dup(number), "wb")


@contextlib.contextmanager
def atomic_write(
  path: Path, mode: str = "wb", advice: str = "", partial: bool = False
) -> Iterator[IO[Any]]:
  """Yields a file that is there whole or not at all: the one writer.

  A regular file is written beside its place, synced, and put there when the
  block ends without an exception; until then an older one stays. Of a link the
  target is replaced; modes are kept. A device, a pipe or /dev/stdout is written
  in place, an object in a store at once. `mode` is "wb", or "w" for UTF-8, in
  which names of files keep their bytes; `advice` ends the UserError that it
  can't be written. If `partial`, what was written before an exception stays, as
  PATH.partial.
  """
  place: Any
  with contextlib.ExitStack() as stack:
    if is_remote(path):
      place = io.BytesIO()
    else:
      stack.enter_context(writing(path, advice))
      place = stack.enter_context(
        _open_in_place(path) if in_place(path) else _replacing(path, partial)
      )
    text = {"errors": "surrogateescape", "newline": "", "write_through": True}
    file = io.TextIOWrapper(place, "utf-8", **text) if mode == "w" else place
    yield file
    if is_remote(path):
      with writing(path, advice):
        _remote(path).write_bytes(place.getvalue())


@contextlib.contextmanager
def _replacing(path: Path, partial: bool) -> Iterator[IO[bytes]]:
  folder, name = os.path.split(target := os.path.realpath(path))
  part = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(4)}.part")
  if partial:
    part = f"{target}.partial"
  try:
    with open(part, "wb") as f:
      if os.path.exists(target):
        os.fchmod(f.fileno(), stat.S_IMODE(os.stat(target).st_mode))
      yield f
      f.flush()
      os.fsync(f.fileno())
    os.replace(part, target)
  finally:
    with contextlib.suppress(OSError):
      if not (partial and os.path.getsize(part)):
        os.unlink(part)
  sync_folder(folder)


def sync_folder(folder: Path) -> None:
  """Waits until a folder's names are on the disk, where that is possible."""
  with contextlib.suppress(OSError):
    handle = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)


def open_regular(path: Path) -> IO[bytes]:
  """Opens for reading what is neither a pipe, which may hang, nor a device."""
  file = open(path, "rb", opener=lambda p, f: os.open(p, f | os.O_NONBLOCK))
  if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    return file
  file.close()
  raise OSError("it is no regular file")


def read_bytes(path: Path, what: str, limit: int = _LARGEST) -> bytes:
  """Reads a regular file, `what` for people, of at most `limit` bytes."""
  try:
    if is_remote(path):
      data = _remote(path).read_bytes()
    else:
      with open_regular(path) as f:
        data = f.read(min(os.fstat(f.fileno()).st_size, limit + 1))
    if len(data) > limit:
      raise OSError(f"it has more than {limit:,} bytes")
    return data
  except FileNotFoundError as e:
    raise UserError(f"there is no file {path}; expected {what}.") from e
  except failures(path) as e:
    why = f"{path} can't be read: {reason(e)}"
    raise UserError(f"{why}; expected {what}.") from e


def json_text(value: Any, indent: int | None = None) -> str:
  """JSON for people: only bytes of names that are no text are escaped."""
  text = json.dumps(value, ensure_ascii=False, indent=indent)
  return _SURROGATE.sub(lambda m: ascii(m[0])[1:-1], text)


def read_json(path: Path, what: str, limit: int = _LARGEST) -> dict[str, Any]:
  """The JSON object in a file; arguments and errors as of `read_bytes`."""
  data = read_bytes(path, what, limit)
  try:
    found = json.loads(data.decode("utf-8-sig"))
    if isinstance(found, dict):
      return found
    why = "it is no JSON object"
  except (ValueError, RecursionError) as e:
    why = first_line(e)
  raise UserError(f"{path} is no JSON of {what} ({why}).")


def json_sha256(content: Any) -> str:
  """SHA-256 of a JSON value, independent of its layout."""
  # As it comes back from a file: lists for tuples, strings for keys.
  content = json.loads(json.dumps(content))
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def sealed(content: dict[str, Any]) -> dict[str, Any]:
  """A JSON object with its own SHA-256, for `read_sealed`."""
  return content | {_CHECK: json_sha256(content)}


def read_sealed(path: Path, what: str, keys: Collection[str]) -> dict[str, Any]:
  """As `read_json`, of what `sealed` made, with exactly these keys."""
  found = read_json(path, what)
  check = found.pop(_CHECK, None)
  if check not in (None, json_sha256(found)) or found.keys() != {*keys}:
    raise UserError(f"{path} is damaged: it is not {what} as it was written.")
  return found
