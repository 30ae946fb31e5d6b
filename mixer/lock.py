"""Exclusive ownership of a workdir, with a heartbeat.

The owner's record is in `WORKDIR/.owner.json`; the owner raises a counter in it
every few seconds, and on a disk it holds the file's flock as long as it lives.
So an owner on this machine is known to be gone at once, one elsewhere when its
counter stands still. In Google Cloud Storage the counter alone tells, and
generations make sure that of several writers exactly one succeeds. Only this
machine's monotonic clock counts.
"""

import contextlib
import datetime
import errno
import fcntl
import functools
import getpass
import json
import os
import pathlib
import shlex
import socket
import sys
import threading
import time
import uuid
from typing import Any

from etils import epath

from mixer import distributed, errors, files
from mixer import workdir as workdir_lib
from mixer.errors import UserError

FILE = ".owner.json"
# Seconds between two raises of the counter; and for how long it has to stand
# still until its owner counts as gone.
BEAT, WATCH = 5.0, 30.0
_SIZE = 4096  # Bytes of the record: one page, written at once.
_ANSWER = 10.0  # Seconds to wait for an answer of the store.
# Goes on while the machine sleeps, and never jumps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LostError(UserError):
  """The workdir isn't ours any more: nothing may be written to it."""


class Lock:
  """Keeps other runs out of a workdir; the first process holds it.

  `sentence` says whose left-over lock it has replaced, or "".
  """

  def __init__(self, workdir: epath.PathLike):
    self.sentence = ""
    self._workdir = workdir_lib.path(workdir)
    self._token, self._beats = uuid.uuid4().hex, 0
    self._record = b""  # As we wrote it last; empty: the workdir isn't ours.
    self._mutex = threading.RLock()
    self._ended = threading.Event()
    self._lost, self._tried = "", 0.0
    self._failures = files.failures(self._workdir)

  def __enter__(self) -> "Lock":
    """Takes it; UserError if another run has it, or it can't be written."""
    try:
      self.sentence = distributed.on_first("lock", self._acquire)
    except BaseException:  # The others may have gone: then none has it.
      self.release()
      raise
    if self._record:
      threading.Thread(target=self._keep, name="lock", daemon=True).start()
    return self

  def release(self, *unused: object) -> None:
    """Gives the workdir free if it is ours; from any thread."""
    self._ended.set()
    # One that is stuck in the file system keeps nobody from ending.
    free = self._mutex.acquire(timeout=BEAT)
    record, self._record = self._record, b""
    with contextlib.suppress(*self._failures):
      if record:
        self._file.swap(record, b"")
    if free:
      self._mutex.release()

  __exit__ = release

  def check(self) -> None:
    """LostError if the workdir isn't ours; call it between two updates."""
    # The thread hasn't come to it: this process was suspended.
    if self._record and _now() - self._tried > 2 * BEAT:
      self._beat()
    if self._lost:
      raise LostError(self._lost)

  @functools.cached_property
  def _file(self) -> "_LocalFile | StoredFile":  # Fails like any access.
    path = self._workdir / FILE
    return StoredFile(path) if files.is_remote(path) else _LocalFile(path)

  def _acquire(self) -> str:
    workdir_lib.make(self._workdir)
    try:
      while True:
        found = self._file.read()
        sentence = self._refuse_if_alive(found) if found else ""
        record = self._raised()
        if self._file.swap(found, record) or self._is_ours(self._file.read()):
          self._record, self._tried = record, _now()
          return sentence
        time.sleep(0.01)  # Another start was faster than this one: look who.
    except self._failures as e:
      if isinstance(e, UserError):
        raise
      raise workdir_lib.not_writable(self._workdir, e) from e

  def _refuse_if_alive(self, found: bytes) -> str:
    """A sentence about an owner that is gone."""
    alive, here = self._file.is_locked(), _boot() and _boot().encode() in found
    if alive:  # It may just be writing: one can read half of that.
      time.sleep(0.05)
      found = self._file.read() or found
    name, why = _name(found), "no longer runs"
    if alive is None or not (alive or here):
      distributed.say(
        f"{self._workdir} is in use, it seems: watching for {WATCH:g} s "
        f"whether {name} is still there"
      )
      latest, end = found, _now() + WATCH
      while latest == found and _now() < end:
        time.sleep(min(BEAT, WATCH / 10))
        latest = self._file.read()
      # Empty: it has ended in good order.
      alive, why = latest not in (found, b""), "showed no sign of life"
    if alive:
      raise UserError(
        f"--workdir={self._workdir} is in use: {name} is training there; stop "
        "it or use another --workdir."
      )
    return f"{self._workdir}: {name} {why}; its lock is taken over"

  def _raised(self) -> bytes:
    self._beats += 1
    record = {"name": _own_name(), "boot": _boot()}
    record |= {"token": self._token, "beats": self._beats}
    return json.dumps(record, indent=1).encode()

  def _is_ours(self, record: bytes) -> bool:
    return self._token.encode() in record

  def _keep(self) -> None:
    while not self._ended.wait(BEAT) and not self._lost:
      self._beat()

  def _beat(self) -> None:
    """Raises the counter, or finds out why it can't."""
    with self._mutex:
      if not self._record or self._lost:
        return
      self._tried, record = _now(), self._raised()
      # Out of reach: a save would say so.
      with contextlib.suppress(*self._failures):
        if self._file.swap(self._record, record):
          self._record = record
          return
        found = self._file.read()
        # It may have been written, and the answer got lost.
        if self._is_ours(found):
          self._record = found
        else:
          self._lost = self._loss(found)

  def _loss(self, found: bytes) -> str:
    if found:
      return (
        f"--workdir={self._workdir} was taken over by {_name(found)}, as this "
        "process did not answer for a while (was it suspended?). It stops "
        "without saving; the other one goes on from the newest checkpoint."
      )
    # A save under way makes the folder anew.
    if not (self._workdir / workdir_lib.CONFIG).exists():
      return workdir_lib.vanished(self._workdir)
    return (
      f"{self._workdir / FILE} was deleted, so nothing keeps a second run out "
      "and this one stops without saving. Start the same command again: it "
      "goes on from the newest checkpoint."
    )


class _LocalFile:
  """The record on a disk; its flock is held from the first `swap` on.

  Where there is no flock, two starts in the same millisecond go unnoticed until
  the first beat of the slower one.
  """

  def __init__(self, path: epath.PathLike):
    self._path, self._file = pathlib.Path(path), -1

  def read(self) -> bytes:
    """What it holds; empty if it isn't there."""
    try:
      data = self._path.read_bytes()
    except FileNotFoundError:
      return b""
    # A machine that went down can leave zeros where something was written.
    return data.strip(b" \n\0")

  def is_locked(self) -> bool | None:
    """Whether another process has it; None: that can't be told."""
    try:
      with open(self._path, "rb+") as file:
        taken = _flock(file.fileno())
    except FileNotFoundError:
      return False
    return None if taken is None else not taken

  def swap(self, before: bytes, after: bytes) -> bool:
    """Writes it (removes it, if empty) if it is ours and holds `before`."""
    try:
      if self._file < 0:
        flags = os.O_RDWR | (0 if before else os.O_CREAT)
        self._file = os.open(self._path, flags, 0o666)
      there = os.path.samestat(os.fstat(self._file), os.stat(self._path))
    except FileNotFoundError:
      if not before:  # Then it is the folder that is missing.
        raise
      there = False
    taken = there and _flock(self._file) is not False
    if not taken or self.read() != before:
      self._close()
      return False
    if not after:
      self._path.unlink()
      self._close()
    # Over what is there, without a new block: a full disk does no harm.
    elif os.pwrite(self._file, after.ljust(_SIZE), 0) < _SIZE:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return True

  def _close(self) -> None:
    if self._file >= 0:
      os.close(self._file)
    self._file = -1


def _flock(file: int) -> bool | None:
  """Takes it, if nobody has it; None: there is no such thing here."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as e:
    return False if isinstance(e, BlockingIOError) else None
  return True


class StoredFile:
  """A file in Google Cloud Storage, with compare and swap by generations."""

  def __init__(self, path: epath.PathLike):
    # An extra; and slow to import.
    from google.api_core import exceptions
    from google.cloud import storage
    from google.cloud.storage.retry import DEFAULT_RETRY

    place = os.fspath(path).removeprefix("gs://")
    bucket, _, self._name = place.partition("/")
    self._bucket: Any = storage.Client().bucket(bucket)
    self._changed = (exceptions.NotFound, exceptions.PreconditionFailed)
    retry = DEFAULT_RETRY.with_timeout(3 * _ANSWER)
    self._options = {"timeout": _ANSWER, "retry": retry}
    # What it holds, and its generation; 0: there is none.
    self.known: tuple[bytes, int] = (b"", 0)

  def is_locked(self) -> None:
    """That can't be told."""

  def read(self) -> bytes:
    """What it holds; empty if it isn't there."""
    while blob := self._bucket.get_blob(self._name, **self._options):
      with contextlib.suppress(*self._changed):
        match = {"if_generation_match": blob.generation}
        data = blob.download_as_bytes(**match, **self._options)
        self.known = (data, blob.generation)
        return data
    self.known = (b"", 0)
    return b""

  def swap(self, before: bytes, after: bytes) -> bool:
    """Writes it (removes it, if empty) if it holds `before`, as known here."""
    return before == self.known[0] and self.write(after)

  def write(self, data: bytes) -> bool:
    """Writes it (removes it, if empty) if it is as we know it."""
    if data == self.known[0]:
      return True
    blob = self._bucket.blob(self._name)
    options = self._options | {"if_generation_match": self.known[1]}
    try:
      if data:
        blob.upload_from_string(data, "application/json", **options)
      else:
        blob.delete(**options)
    except self._changed as e:
      if data and e.code == 404:  # The bucket.
        raise
      return False
    self.known = (data, blob.generation if data else 0)
    return True


def _now() -> float:
  return time.clock_gettime(_CLOCK)


@functools.cache
def _boot() -> str:
  """What tells one start of one machine from all others; "" if unknown."""
  try:
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
  except OSError:
    return ""


@functools.cache
def _own_name() -> str:
  try:
    user = getpass.getuser()
  except (KeyError, OSError, ImportError):  # A container's user has no name.
    user = str(os.getuid())
  return (
    f"process {os.getpid()} on {socket.gethostname()} (user {user}, started "
    f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC, command "
    f"`{shlex.join(['python', *sys.argv])[:1000]}`)"
  )


def _name(record: bytes) -> str:
  """The process of a record, whatever that holds."""
  try:
    return errors.printable(json.loads(record)["name"])
  except (ValueError, LookupError, TypeError, RecursionError):
    return "a process that can't be made out"
