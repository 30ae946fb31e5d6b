"""Exclusive ownership of a workdir, with a heartbeat.

The owner's record is in `WORKDIR/.owner.json`; the owner raises a counter in it
every few seconds. Whether a process of this machine is alive the kernel knows;
of one elsewhere the counter tells. Only this machine's monotonic clock counts.

The record changes only by compare and swap: of several processes that write at
the same time exactly one succeeds. On local disks that is done under flock, for
that moment alone; objects of Google Cloud Storage have generations.
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
from collections.abc import Iterator
from typing import Any

import psutil
from etils import epath

from mixer import distributed, errors, files
from mixer import workdir as workdir_lib
from mixer.errors import UserError

FILE = ".owner.json"
# Seconds between two raises of the counter; and for how long it has to stand
# still until its owner counts as gone.
BEAT, WATCH = 5.0, 30.0
# Seconds to wait for another process's flock, held for microseconds, or for an
# answer of the store.
_WAIT = 10.0
_SIZE = 4096  # Bytes of the record: one page, written at once.
_PROC = pathlib.Path("/proc")
# Goes on while the machine sleeps, and never jumps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LostError(UserError):
  """The workdir isn't ours any more: nothing may be written to it."""


class Lock:
  """Keeps other runs out of a workdir; the first process holds it.

  Attributes:
    sentence: whose left-over lock it has replaced, or "".
  """

  def __init__(self, workdir: epath.PathLike):
    self.sentence = ""
    self._workdir = workdir_lib.path(workdir)
    self._owner = _this_process()
    self._beats = 0
    self._held = b""  # The record as we wrote it last; empty: it isn't ours.
    self._mutex = threading.RLock()
    self._ended = threading.Event()
    self._lost = ""
    self._tried = 0.0
    self._failures = files.failures(self._workdir)

  def __enter__(self) -> "Lock":
    """Takes it; UserError if another run has it, or it can't be written."""
    try:
      self.sentence = distributed.on_first("lock", self._acquire)
    except BaseException:  # The others may have gone: then none has it.
      self.release()
      raise
    if self._held:
      threading.Thread(target=self._keep, name="lock", daemon=True).start()
    return self

  def __exit__(self, *unused: object) -> None:
    self.release()

  def release(self) -> None:
    """Gives the workdir free if it is ours; from any thread."""
    self._ended.set()
    # One that is stuck in the file system keeps nobody from ending.
    free = self._mutex.acquire(timeout=BEAT)
    record, self._held = self._held, b""
    with contextlib.suppress(*self._failures):
      if record:
        self._file.swap(record, b"")
    if free:
      self._mutex.release()

  def check(self) -> None:
    """Cheap; call between two updates, and before anything is written.

    Raises:
      LostError: another run has the workdir now, or it is gone; nothing may
        be saved.
    """
    # The thread hasn't come to it: this process was suspended.
    if self._held and _now() - self._tried > 2 * BEAT:
      self._beat()
    if self._lost:
      raise LostError(self._lost)

  @functools.cached_property
  def _file(self) -> "LocalFile | StoredFile":
    return open_file(self._workdir / FILE)

  def _acquire(self) -> str:
    workdir_lib.make(self._workdir)
    try:
      while True:
        found, sentence = self._file.read(), ""
        if found and not self._is_ours(found):
          sentence = self._refuse_if_alive(found)
        record = self._record()
        # Else another start was faster than this one: look who.
        if self._file.swap(found, record) or self._is_ours(self._file.read()):
          self._held = record
          self._tried = _now()
          return sentence
    except self._failures as e:
      if isinstance(e, UserError):
        raise
      raise workdir_lib.not_writable(self._workdir, e) from e

  def _refuse_if_alive(self, found: bytes) -> str:
    """A sentence about an owner that is gone."""
    owner = _parse(found)
    alive, why = _is_alive(owner), "no longer runs"
    if alive is None:
      alive = self._changes(found)
      why = f"showed no sign of life for {WATCH:g} s"
    if not alive:
      return f"{self._workdir}: {_name(owner)} {why}; its lock is taken over"
    raise UserError(
      f"--workdir={self._workdir} is in use: {_name(owner)} is training there; "
      "stop it or use another --workdir."
    )

  def _changes(self, found: bytes) -> bool:
    """Whether the owner's counter moves within the time that it has."""
    distributed.say(
      f"{self._workdir} is in use, it seems: watching for {WATCH:g} s whether "
      f"{_name(_parse(found))} is still there"
    )
    end = _now() + WATCH
    while _now() < end:
      time.sleep(min(BEAT, WATCH / 10))
      latest = self._file.read()
      if latest != found:
        return bool(latest)  # Else it has ended in good order.
    return False

  def _record(self) -> bytes:
    return json.dumps(self._owner | {"beats": self._beats}, indent=1).encode()

  def _is_ours(self, record: bytes) -> bool:
    return _parse(record).get("token") == self._owner["token"]

  def _keep(self) -> None:
    while not self._ended.wait(BEAT) and not self._lost:
      self._beat()

  def _beat(self) -> None:
    """Raises the counter, or finds out why it can't."""
    with self._mutex:
      if not self._held or self._lost:
        return
      self._tried = _now()
      self._beats += 1
      record = self._record()
      try:
        if not self._file.swap(self._held, record):
          record = self._file.read()
          # It may have been written, and the answer got lost.
          if not self._is_ours(record):
            self._lost = self._loss(record)
            return
      except self._failures:  # Out of reach: a save would say so.
        return
      self._held = record

  def _loss(self, found: bytes) -> str:
    if found:
      return (
        f"--workdir={self._workdir} was taken over by {_name(_parse(found))}, "
        "as this process did not answer for a while (was it suspended?). It "
        "stops without saving; the other one goes on from the newest "
        "checkpoint."
      )
    # A save under way makes the folder anew.
    if not (self._workdir / workdir_lib.CONFIG).exists():
      return workdir_lib.vanished(self._workdir)
    return (
      f"{self._workdir / FILE} was deleted, so nothing keeps a second run out "
      "and this one stops without saving. Start the same command again: it "
      "goes on from the newest checkpoint."
    )


def _now() -> float:
  return time.clock_gettime(_CLOCK)


def open_file(path: epath.Path) -> "LocalFile | StoredFile":
  """A small file with compare and swap."""
  return StoredFile(path) if files.is_remote(path) else LocalFile(path)


class LocalFile:
  """One on a disk; at most a page."""

  def __init__(self, path: epath.PathLike):
    self._path = os.fspath(path)

  def read(self) -> bytes:
    """What it holds; empty if it isn't there."""
    with self._locked(0) as file:
      return b"" if file is None else _data(file)

  def swap(self, before: bytes, after: bytes) -> bool:
    """Writes it (removes it, if empty) if it holds `before`."""
    with self._locked(0 if before else os.O_CREAT) as file:
      if file is None or _data(file) != before:
        return False
      if not after:
        os.unlink(self._path)
      # Over what is there, without a new block: a full disk does no harm.
      elif os.pwrite(file, after.ljust(_SIZE), 0) < _SIZE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return True

  @contextlib.contextmanager
  def _locked(self, flags: int) -> Iterator[int | None]:
    """The file, while no other process looks at it; None if there is none."""
    flags |= os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
    while True:
      try:
        file = os.open(self._path, flags, 0o666)
      except FileNotFoundError:
        if flags & os.O_CREAT:  # Then it is the folder that is missing.
          raise
        yield None
        return
      try:
        _flock(file)
        with contextlib.suppress(FileNotFoundError):
          # Unless it was removed, and perhaps made anew, meanwhile.
          if os.path.samestat(os.fstat(file), os.stat(self._path)):
            yield file
            return
      finally:
        os.close(file)


def _data(file: int) -> bytes:
  # A machine that went down can leave zeros where something was written.
  return os.pread(file, _SIZE, 0).strip(b" \n\0")


def _flock(file: int) -> None:
  end = time.monotonic() + _WAIT
  while True:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return
    except BlockingIOError:
      if time.monotonic() > end:
        raise TimeoutError(
          errno.ETIMEDOUT, "another process, suspended perhaps, holds it"
        ) from None
      time.sleep(0.005)
    except OSError as e:
      # Without flock, two starts in the same millisecond go unnoticed until
      # the first beat of the slower one.
      if e.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
        return
      raise


class StoredFile:
  """One in Google Cloud Storage; `swap` goes by the generation read last."""

  def __init__(self, path: epath.PathLike):
    # An extra; and slow to import.
    from google.api_core import exceptions
    from google.cloud import storage
    from google.cloud.storage.retry import DEFAULT_RETRY

    place = os.fspath(path).removeprefix("gs://")
    bucket, _, self._name = place.partition("/")
    self._bucket: Any = storage.Client().bucket(bucket)
    self._changed = (exceptions.NotFound, exceptions.PreconditionFailed)
    self._options = {"timeout": _WAIT, "retry": DEFAULT_RETRY.with_timeout(30)}
    self._known: tuple[bytes, int] = (b"", 0)  # Generation 0: there is none.

  def read(self) -> bytes:
    """What it holds; empty if it isn't there."""
    while True:
      blob = self._bucket.get_blob(self._name, **self._options)
      if blob is None:
        self._known = (b"", 0)
        return b""
      with contextlib.suppress(*self._changed):
        match = {"if_generation_match": blob.generation}
        data = blob.download_as_bytes(**match, **self._options)
        self._known = (data, blob.generation)
        return data

  def swap(self, before: bytes, after: bytes) -> bool:
    """Writes it (removes it, if empty) if it holds `before`, as known here."""
    return before == self._known[0] and self.write(after)

  def write(self, data: bytes) -> bool:
    """Writes it (removes it, if empty) if it is as we know it."""
    if data == self._known[0]:
      return True
    blob = self._bucket.blob(self._name)
    options = self._options | {"if_generation_match": self._known[1]}
    try:
      if data:
        blob.upload_from_string(data, "application/json", **options)
      else:
        blob.delete(**options)
    except self._changed as e:
      if data and e.code == 404:  # The bucket.
        raise
      return False
    self._known = (data, blob.generation if data else 0)
    return True


def _this_process() -> dict[str, Any]:
  """Who we are, as JSON."""
  try:
    user = getpass.getuser()
  except (KeyError, OSError, ImportError):  # A container's user has no name.
    user = str(os.getuid())
  stat = _stat(os.getpid())
  return {
    "name": f"process {os.getpid()} on {socket.gethostname()} (user {user}, "
    f"started {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC, "
    f"command `{shlex.join(['python', *sys.argv])[:1000]}`)",
    "pid": os.getpid(),
    "place": _place(),
    "started": stat and stat[1],
    "token": uuid.uuid4().hex,
  }


def _place() -> list[str]:
  """What has to agree for a process id to mean the same process, if known.

  Containers can share a host's name, and machines that were installed alike
  theirs.
  """
  try:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return [socket.gethostname(), boot, os.readlink(_PROC / "self/ns/pid")]
  except OSError:
    return []


def _parse(record: bytes) -> dict[str, Any]:
  try:
    found = json.loads(record)
  except (ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def _name(owner: dict[str, Any]) -> str:
  return errors.printable(
    owner.get("name") or "a process that can't be made out"
  )


def _is_alive(owner: dict[str, Any]) -> bool | None:
  """Whether the process runs; None where that can't be known from here."""
  pid, place = owner.get("pid"), _place()
  if not place or place != owner.get("place") or not isinstance(pid, int):
    return None
  stat = _stat(pid)
  if stat is None:
    return None if psutil.pid_exists(pid) else False  # Hidden from us, or gone.
  # Of one that has ended and wasn't waited for, an entry remains. Another
  # start time: the id has been given to a new process.
  return stat[0] not in "ZX" and stat[1] == owner.get("started")


def _stat(pid: int) -> tuple[str, int] | None:
  """State and start time (clock ticks since boot) of a process."""
  try:
    line = (_PROC / str(pid) / "stat").read_text(errors="replace")
  except OSError:
    return None
  # Its name, in parentheses, may hold anything; see proc(5) for the rest.
  fields = line.rpartition(")")[2].split()
  return fields[0], int(fields[19])
