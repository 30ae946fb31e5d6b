"""Files that are written whole or not at all, and read with mistrust."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
import traceback
from collections.abc import Collection, Iterator
from typing import IO, Any

from mixer import text as text_lib
from mixer.errors import UserError, first_line

# Bytes of the JSON files that are read here; a report's pictures are in one.
_LARGEST = 256 << 20
_CHECK = "sha256"  # The field of a file that `sealed` has made.
# The libraries through which an object store is reached.
_STORES = ("gcsfs.", "fsspec.", "google.auth.", "google.cloud.")
_SURROGATE = re.compile("[\ud800-\udfff]")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]+)")
_STREAMS = {
  "/dev/stdin": "/dev/fd/0",
  "/dev/stdout": "/dev/fd/1",
  "/dev/stderr": "/dev/fd/2",
}


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether it lies in an object store."""
  return os.fspath(path).startswith("gs://")


def failures(path: str | os.PathLike[str]) -> tuple[type[Exception], ...]:
  """What reading and writing there may raise, through no fault of ours."""
  # What an object store's libraries raise has no common base.
  return (Exception,) if is_remote(path) else (OSError,)


def reason(error: BaseException) -> str:
  """An error in some words, without a full stop."""
  return getattr(error, "strerror", None) or first_line(error)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], advice: str = "") -> Iterator[None]:
  """Makes a sentence of what the disk says.

  Args:
    path: what is written.
    advice: sentences for the end, as what to do once the disk is mended.

  Raises:
    UserError: it refuses.
  """
  expected = failures(path)
  try:
    yield
  except UserError:
    raise
  except expected as e:
    number, folder = getattr(e, "errno", None), os.path.dirname(path) or "."
    why = reason(e)
    if number in _FULL:
      why += "; make room there, or write elsewhere"
    elif isinstance(e, IsADirectoryError):
      why = "it is a folder; name a file in it"
    elif number == errno.ENOENT and not os.path.isdir(folder):
      why = f"there is no folder {folder}; make it first"
    text = f"{os.fspath(path)} can't be written: {why}. {advice}"
    raise UserError(text.rstrip()) from e


def make_parent(path: str | os.PathLike[str]) -> None:
  """Makes the folder that a command's output goes to, if there is none.

  Raises:
    UserError: it can't be made.
  """
  if not is_remote(path):
    with writing(path):
      os.makedirs(os.path.dirname(os.path.realpath(path)), exist_ok=True)


def in_place(path: str | os.PathLike[str]) -> bool:
  """Whether it can't be replaced: a device, a pipe, an open descriptor."""
  if _descriptor(path) is not None:
    return True
  try:
    return not stat.S_ISREG(os.stat(path).st_mode)
  except OSError:
    return False


def _descriptor(path: str | os.PathLike[str]) -> int | None:
  text = os.fspath(path)
  found = _DESCRIPTOR.fullmatch(_STREAMS.get(text, text))
  return int(found[1]) if found else None


@contextlib.contextmanager
def atomic_write(
  path: str | os.PathLike[str], mode: str = "wb", advice: str = ""
) -> Iterator[IO[Any]]:
  """Opens a file that is there whole or not at all: the one writer.

  A regular file is written beside its place, brought to the disk, and put
  there when the block ends without an exception; until then an older one
  stays. Of a link it is the target that is replaced, and it keeps the mode that
  it had. A device, a pipe, and what is open already (/dev/stdout) are written
  in place. An object in a store is written at once.

  Args:
    path: local or gs://.
    mode: "wb", or "w" for UTF-8, in which bytes of file names that are no text
      come out as they are.
    advice: sentences for the end of what is raised.

  Yields:
    The file.

  Raises:
    UserError: it can't be written; also for an OSError within the block.
  """
  if mode not in ("w", "wb"):
    raise ValueError(f"mode {mode!r}: expected w or wb")
  if is_remote(path):
    from etils import epath  # Slow to import, and only needed here.

    content = io.BytesIO()
    out = content if mode == "wb" else _as_text(content)
    yield out
    with writing(path, advice):
      epath.Path(path).write_bytes(content.getvalue())
    return
  with writing(path, advice):
    if in_place(path):
      with open_in_place(path) as f:
        out = f if mode == "wb" else _as_text(f)
        yield out
    else:
      yield from _replaced(os.path.realpath(path), mode)


def _as_text(file: IO[bytes]) -> IO[str]:
  # It closes the file with its last reference: hold one.
  return io.TextIOWrapper(
    file, "utf-8", text_lib.NAMES, newline="", write_through=True
  )


def open_in_place(path: str | os.PathLike[str]) -> IO[bytes]:
  """Opens what is there; a descriptor that is open goes on where it is."""
  number = _descriptor(path)
  # Opened anew, what /dev/stdout leads to would begin at its start.
  return open(path if number is None else os.dup(number), "wb")


def _replaced(path: str, mode: str) -> Iterator[IO[Any]]:
  folder, name = os.path.split(path)
  part = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(4)}.part")
  try:
    with open(part, "xb") as f:
      with contextlib.suppress(OSError):
        os.fchmod(f.fileno(), stat.S_IMODE(os.stat(path).st_mode))
      out = f if mode == "wb" else _as_text(f)
      yield out
      f.flush()
      os.fsync(f.fileno())
    os.replace(part, path)
  finally:
    with contextlib.suppress(OSError):
      os.unlink(part)
  sync_folder(folder)


def sync_folder(folder: str | os.PathLike[str]) -> None:
  """Waits until a folder's names are on the disk, if that can be waited for."""
  with contextlib.suppress(OSError):
    handle = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)


def read_bytes(
  path: str | os.PathLike[str], what: str, limit: int = _LARGEST
) -> bytes:
  """Reads a regular file that has at most `limit` bytes.

  Args:
    path: local or gs://.
    what: it should be, for a sentence: "the config of a run".
    limit: bytes.

  Raises:
    UserError: it isn't there, isn't such a file, or can't be read.
  """
  expected = failures(path)
  try:
    if is_remote(path):
      from etils import epath

      where = epath.Path(path)
      _check_size(path, what, where.stat().length, limit)
      return where.read_bytes()
    # A pipe that nobody writes to would be waited for.
    with open(path, "rb", opener=_without_waiting) as f:
      status = os.fstat(f.fileno())
      if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no regular file; expected {what}.")
      _check_size(path, what, status.st_size, limit)
      # Memory is taken for what is asked for, whatever comes.
      return f.read(status.st_size)
  except UserError:
    raise
  except FileNotFoundError as e:
    raise UserError(f"there is no file {path}; expected {what}.") from e
  except IsADirectoryError as e:
    raise UserError(f"{path} is a folder; expected {what}.") from e
  except expected as e:
    why = reason(e)
    raise UserError(f"{path} can't be read: {why}.") from e


def _without_waiting(path: str, flags: int) -> int:
  return os.open(path, flags | os.O_NONBLOCK)


def _check_size(
  path: str | os.PathLike[str], what: str, size: int, limit: int
) -> None:
  if size > limit:
    raise UserError(
      f"{path} has {size:,} bytes, where {what} has {limit:,} at most."
    )


def json_text(value: Any, indent: int | None = None) -> str:
  """JSON for people: only what is no text (bytes of names) is escaped."""
  text = json.dumps(value, ensure_ascii=False, indent=indent)
  return _SURROGATE.sub(lambda m: ascii(m[0])[1:-1], text)


def read_json(
  path: str | os.PathLike[str], what: str, limit: int = _LARGEST
) -> dict[str, Any]:
  """The JSON object in a file.

  Args:
    path: local or gs://.
    what: it should be, for a sentence: "the config of a run".
    limit: bytes that it may have.

  Raises:
    UserError: as for `read_bytes`; or it is no UTF-8, no JSON, no object.
  """
  data = read_bytes(path, what, limit)
  try:
    found = json.loads(data.decode("utf-8-sig"))
  except UnicodeDecodeError as e:
    raise UserError(f"{path} is no UTF-8 text; expected {what}.") from e
  except (ValueError, RecursionError) as e:
    raise UserError(
      f"{path} is no JSON ({first_line(e)}); expected {what}."
    ) from e
  if not isinstance(found, dict):
    raise UserError(f"{path} holds no JSON object; expected {what}.")
  return found


def json_sha256(content: Any) -> str:
  """Of a JSON value, however it is laid out."""
  # As it comes back from a file: lists for tuples, strings for keys.
  content = json.loads(json.dumps(content))
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def sealed(content: dict[str, Any]) -> dict[str, Any]:
  """A JSON object with a check of its own, for `read_sealed`."""
  return content | {_CHECK: json_sha256(content)}


def read_sealed(
  path: str | os.PathLike[str], what: str, keys: Collection[str]
) -> dict[str, Any]:
  """As `read_json`, of what `sealed` has made; older files have no check.

  Args:
    path: local or gs://.
    what: it should be, for a sentence: "the config of a run".
    keys: that it has, these and no others.

  Raises:
    UserError: as for `read_json`; or it isn't as it was written.
  """
  found = read_json(path, what)
  check = found.pop(_CHECK, None)
  if check is not None and check != json_sha256(found):
    raise UserError(f"{path} is damaged: it is not {what} as it was written.")
  if found.keys() != {*keys}:
    raise UserError(f"{path} is not {what}.")
  return found


def of_store(error: BaseException) -> bool:
  """Whether it comes of an object store: its network, its rights, its rules."""
  frames = traceback.walk_tb(error.__traceback__)
  names = (frame.f_globals.get("__name__", "") for frame, _ in frames)
  return any(f"{name}.".startswith(_STORES) for name in names)
