"""A small file that changes only as long as it is what we think it is.

Compare and swap, on local disks (under flock, for that moment alone) and on
Google Cloud Storage (whose objects have generations): of several processes
that write at the same time exactly one succeeds.
"""

import contextlib
import dataclasses
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Any, Protocol

from etils import epath

from mixer import workdir as workdir_lib

# Always written at once and whole: one page.
_SIZE = 4096
# Seconds; others hold the file for microseconds, unless they are suspended.
_WAIT = 10.0
# Where flock isn't there at all, two starts in the same millisecond go
# unnoticed until the first beat of the slower one.
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


@dataclasses.dataclass(frozen=True)
class Content:
  """What a file held.

  Attributes:
    data: its bytes.
    version: the store's name for exactly this.
  """

  data: bytes
  version: Any = None


class LockFile(Protocol):
  """The operations; all may raise `workdir.failures`."""

  def read(self) -> Content | None:
    """What it holds; None if it isn't there, or is empty."""
    ...

  def write(self, data: bytes, before: Content | None) -> Content | None:
    """Writes it if it is as `before` says; None if it isn't."""
    ...

  def remove(self, before: Content) -> None:
    """Removes it if it is as `before` says."""
    ...


def open_file(path: epath.Path) -> LockFile:
  """The file at a path that `workdir.path` has made."""
  return _Object(path) if workdir_lib.is_remote(path) else _Local(path)


class _Local:
  def __init__(self, path: epath.Path):
    self._path = os.fspath(path)

  def read(self) -> Content | None:
    with self._held(os.O_RDONLY, fcntl.LOCK_SH) as file:
      data = b"" if file is None else _data(file)
    return Content(data) if data else None

  def write(self, data: bytes, before: Content | None) -> Content | None:
    flags = os.O_RDWR | (0 if before else os.O_CREAT)
    with self._held(flags, fcntl.LOCK_EX) as file:
      if file is None or _data(file) != (before.data if before else b""):
        return None
      # Over what is there, without a new block: a full disk does no harm.
      if os.pwrite(file, data.ljust(_SIZE), 0) < _SIZE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return Content(data)

  def remove(self, before: Content) -> None:
    with self._held(os.O_RDWR, fcntl.LOCK_EX) as file:
      if file is not None and _data(file) == before.data:
        os.unlink(self._path)

  @contextlib.contextmanager
  def _held(self, flags: int, lock: int) -> Iterator[int | None]:
    """The file, while no other process looks at it; None if there is none."""
    end = time.monotonic() + _WAIT
    while True:
      try:
        file = os.open(self._path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
      except FileNotFoundError:
        if flags & os.O_CREAT:  # Then it is the folder that is missing.
          raise
        yield None
        return
      try:
        _flock(file, lock, end)
        if self._is_there(file):
          yield file
          return
      finally:
        os.close(file)

  def _is_there(self, file: int) -> bool:
    """Whether it is still the one with this name."""
    try:
      return os.path.samestat(os.fstat(file), os.stat(self._path))
    except FileNotFoundError:
      return False


def _data(file: int) -> bytes:
  # A machine that went down can leave zeros where something was written.
  return os.pread(file, _SIZE, 0).strip(b" \n\0")


def _flock(file: int, lock: int, end: float) -> None:
  while True:
    try:
      fcntl.flock(file, lock | fcntl.LOCK_NB)
      return
    except BlockingIOError:
      if time.monotonic() > end:
        raise TimeoutError(
          errno.ETIMEDOUT, "another process, suspended perhaps, holds it"
        ) from None
      time.sleep(0.005)
    except OSError as e:
      if e.errno in _NO_FLOCK:
        return
      raise


class _Object:
  def __init__(self, path: epath.Path):
    # An extra; and slow to import.
    from google.api_core import exceptions
    from google.cloud import storage
    from google.cloud.storage.retry import DEFAULT_RETRY

    bucket, _, self._name = str(path).removeprefix("gs://").partition("/")
    self._bucket: Any = storage.Client().bucket(bucket)
    self._changed = (exceptions.NotFound, exceptions.PreconditionFailed)
    self._options = {"timeout": _WAIT, "retry": DEFAULT_RETRY.with_timeout(30)}

  def read(self) -> Content | None:
    while True:
      blob = self._bucket.get_blob(self._name, **self._options)
      if blob is None:
        return None
      version = blob.generation
      with contextlib.suppress(*self._changed):
        data = blob.download_as_bytes(
          if_generation_match=version, **self._options
        )
        return Content(data, version)

  def write(self, data: bytes, before: Content | None) -> Content | None:
    blob = self._bucket.blob(self._name)
    version = before.version if before else 0  # 0: there must be none.
    try:
      blob.upload_from_string(
        data,
        content_type="application/json",
        if_generation_match=version,
        **self._options,
      )
    except self._changed as e:
      if e.code == 404:  # The bucket.
        raise
      return None
    return Content(data, blob.generation)

  def remove(self, before: Content) -> None:
    with contextlib.suppress(*self._changed):
      self._bucket.blob(self._name).delete(
        if_generation_match=before.version, **self._options
      )
