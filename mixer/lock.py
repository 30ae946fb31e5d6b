"""Exclusive ownership of a workdir: its owner's record is in `.owner.json`.

On a disk, NFS included, the owner holds the file's flock as long as it lives.
In Google Cloud Storage it writes the record anew every few seconds, and is
gone when the object's generation stands still; of several writers that know
one generation exactly one succeeds.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from typing import Any

from etils import epath

from mixer import distributed, errors, files
from mixer import workdir as workdir_lib
from mixer.errors import UserError

FILE = ".owner.json"
# Seconds between two writes of the record in a bucket; and for how long it has
# to stay as it is until its owner counts as gone.
BEAT, WATCH = 5.0, 30.0
_SIZE = 4096  # Bytes of the record on a disk: one page, written at once.
_ANSWER = 10.0  # Seconds to wait for an answer of the store.


class LostError(UserError):
  """The workdir isn't ours any more: nothing may be written to it."""


class Lock:
  """Keeps other runs out of a workdir; the first process holds it."""

  def __init__(self, workdir: epath.PathLike):
    self._workdir = workdir_lib.path(workdir)
    self._held: _OnDisk | _InStore | None = None

  def __enter__(self) -> "Lock":
    """Takes it; UserError if another run has it, or it can't be written."""
    kind = _InStore if files.is_remote(self._workdir) else _OnDisk

    def acquire() -> None:
      workdir_lib.make(self._workdir)
      with workdir_lib.writing(self._workdir):
        self._held = kind(self._workdir / FILE)

    try:
      distributed.on_first("lock", acquire)
    except BaseException:  # The others may have gone: then none has it.
      self.release()
      raise
    return self

  def release(self, *unused: object) -> None:
    """Gives the workdir free if it is ours; from any thread."""
    held, self._held = self._held, None
    with contextlib.suppress(*files.failures(self._workdir)):
      if held:
        held.release()

  __exit__ = release

  def check(self) -> None:
    """LostError if the workdir isn't ours; call it between two updates."""
    if self._held and not self._held.is_ours():
      # A save under way makes the folder anew.
      if not (self._workdir / workdir_lib.CONFIG).exists():
        raise LostError(workdir_lib.vanished(self._workdir))
      raise LostError(
        f"--workdir={self._workdir} was taken over by another run, or its "
        f"{FILE} was deleted. This run stops without saving; the same command "
        "goes on from the newest checkpoint."
      )


class _OnDisk:
  """A record whose flock is held."""

  def __init__(self, path: epath.Path):
    self._path, self._file = path, -1
    while not self.is_ours():
      if self._file >= 0:  # Its owner has removed it meanwhile.
        os.close(self._file)
      self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        time.sleep(0.05)  # It may just be writing.
        found = os.pread(self._file, _SIZE, 0)
        os.close(self._file)
        raise _in_use(path, found) from None
      except OSError as e:
        distributed.say(
          f"{path} can't be locked ({files.reason(e)}), so nothing keeps a "
          "second run out of this workdir."
        )
    _tell_taken(os.pread(self._file, _SIZE, 0))
    if os.pwrite(self._file, _record().ljust(_SIZE), 0) < _SIZE:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def is_ours(self) -> bool:
    """Whether the file in the workdir is the one that was opened here."""
    with contextlib.suppress(OSError):
      there = os.stat(self._path)
      return self._file >= 0 and os.path.samestat(os.fstat(self._file), there)
    return False

  def release(self) -> None:
    if self.is_ours():
      self._path.unlink()
    os.close(self._file)


class _InStore:
  """A record in a bucket, written anew by a thread."""

  def __init__(self, path: epath.Path):
    self._file, self._record = StoredFile(path), _record()
    self._lost, self._tried = False, time.monotonic()
    self._mutex, self._ended = threading.Lock(), threading.Event()
    if found := self._file.read():
      distributed.say(
        f"{path.parent} is in use, it seems: watching for {WATCH:g} s whether "
        f"{_name(found)} is still there"
      )
    seen, end = self._file.generation, time.monotonic() + WATCH
    while found and seen == self._file.generation and time.monotonic() < end:
      time.sleep(min(BEAT, WATCH / 10))
      found = self._file.read()  # Empty: its owner has ended.
    if found and seen != self._file.generation:
      raise _in_use(path, found)
    if not self._file.write(self._record):
      raise _in_use(path, self._file.read())
    _tell_taken(found)
    threading.Thread(target=self._keep, daemon=True).start()

  def _keep(self) -> None:
    while not self._ended.wait(BEAT):
      self._beat()

  def _beat(self) -> None:
    # Out of reach: a save would say so.
    with self._mutex, contextlib.suppress(Exception):
      self._tried = time.monotonic()
      if not (self._lost or self._ended.is_set()):
        self._lost = not self._file.write(self._record)

  def is_ours(self) -> bool:
    if time.monotonic() - self._tried > 2 * BEAT:  # We were suspended.
      self._beat()
    return not self._lost

  def release(self) -> None:
    self._ended.set()
    # A beat that is stuck keeps nobody from ending.
    free = self._mutex.acquire(timeout=BEAT)
    if not self._lost:
      self._file.write(b"")
    if free:
      self._mutex.release()


class StoredFile:
  """An object in Google Cloud Storage, written only if it is as we know it."""

  def __init__(self, path: epath.PathLike):
    # An extra; and slow to import.
    from google.api_core import exceptions
    from google.cloud import storage
    from google.cloud.storage.retry import DEFAULT_RETRY

    bucket, _, self._name = os.fspath(path)[len("gs://") :].partition("/")
    self._bucket: Any = storage.Client().bucket(bucket)
    self._changed = (exceptions.NotFound, exceptions.PreconditionFailed)
    retry = DEFAULT_RETRY.with_timeout(3 * _ANSWER)
    self._options = {"timeout": _ANSWER, "retry": retry}
    self.generation = 0  # Of what we know of; 0: there is none.

  def read(self) -> bytes:
    """What it holds; empty if it isn't there."""
    while blob := self._bucket.get_blob(self._name, **self._options):
      with contextlib.suppress(*self._changed):  # It was just written anew.
        data = blob.download_as_bytes(**self._options)
        self.generation = blob.generation
        return data
    self.generation = 0
    return b""

  def write(self, data: bytes) -> bool:
    """Writes it (removes it, if empty) if it is as we know it."""
    blob, known = self._bucket.blob(self._name), self.generation
    options = self._options | {"if_generation_match": known}
    try:
      if data:
        blob.upload_from_string(data, "application/json", **options)
      elif known:
        blob.delete(**options)
    except self._changed as e:
      if data and e.code == 404:  # The bucket.
        raise
      # It may have been written, and the answer got lost.
      if self.read() != data:
        self.generation = known  # So it stays the other's.
        return False
      return True
    self.generation = blob.generation if data else 0
    return True


def _record() -> bytes:
  user, command = os.environ.get("USER", os.getuid()), shlex.join(sys.argv)
  name = f"process {os.getpid()} on {socket.gethostname()} (user {user}, "
  name += f"command `python {command[:1000]}`)"
  return json.dumps({"name": name, "token": secrets.token_hex(8)}).encode()


def _name(record: bytes) -> str:
  """The process of a record, whatever that holds."""
  try:
    return errors.printable(json.loads(record.strip(b" \n\0"))["name"])
  except (ValueError, LookupError, TypeError, RecursionError):
    return "an unknown process"


def _in_use(path: epath.Path, record: bytes) -> UserError:
  return UserError(
    f"--workdir={path.parent} is in use: {_name(record)} is training there; "
    "stop it or use another --workdir."
  )


def _tell_taken(record: bytes) -> None:
  if record.strip(b" \n\0"):
    distributed.say(
      f"{_name(record)} no longer runs; its lock of this workdir is taken over"
    )
