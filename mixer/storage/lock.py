"""One run at a time in a workdir: who trains there, and whether he still does.

The owner's record lies in `WORKDIR/.owner.json`; the owner raises a counter in
it every few seconds. A process of this machine can be asked for directly; of
one elsewhere the counter tells. Only this machine's monotonic clock is looked
at, so clocks that differ or jump don't matter.
"""

import contextlib
import functools
import json
import threading
import time

import jax
from etils import epath

from mixer import workdir as workdir_lib
from mixer.cluster import hosts
from mixer.errors import UserError
from mixer.storage import lock_file
from mixer.storage import owner as owner_lib

FILE = ".owner.json"
# Seconds between two raises of the counter; for how long it has to stand still
# until its owner counts as gone; and how long a workdir may be out of reach.
BEAT, WATCH, PATIENCE = 5.0, 30.0, 120.0


class LostError(UserError):
  """The workdir isn't ours any more: nothing may be written to it."""


class Lock:
  """Keeps other runs out of a workdir; use as a context manager.

  The first process holds it for all of a run.

  Attributes:
    sentence: whose left-over lock it has replaced, or "".
  """

  def __init__(self, workdir: epath.PathLike):
    """Makes one; nothing is looked at yet.

    Args:
      workdir: made if missing.
    """
    self.sentence = ""
    self._workdir = workdir_lib.path(workdir)
    self._owner = owner_lib.this_process()
    self._beats = 0
    self._mutex = threading.RLock()
    self._ended = threading.Event()
    self._content: lock_file.Content | None = None
    self._lost = self._trouble = ""
    self._tried = self._reached = 0.0
    self._failures = workdir_lib.failures(self._workdir)

  def __enter__(self) -> "Lock":
    """Takes the lock.

    Raises:
      UserError: another run has it; or the workdir can't be written to.
      hosts.HostsError: the processes don't get to hear about it.
    """
    try:
      self.sentence = hosts.on_first("lock", self._acquire)
    except BaseException:  # The others may have gone: then none has it.
      self.release()
      raise
    if self._content:
      threading.Thread(target=self._keep, name="lock", daemon=True).start()
    return self

  def __exit__(self, *unused: object) -> None:
    self.release()

  def release(self) -> None:
    """Gives the workdir free, if it is ours; from any thread."""
    self._ended.set()
    # One that is stuck in the file system keeps nobody from ending.
    held = self._mutex.acquire(timeout=BEAT)
    content, self._content = self._content, None
    with contextlib.suppress(*self._failures):
      if content:
        self._file.remove(content)
    if held:
      self._mutex.release()

  def check(self) -> None:
    """Call before anything is written, and between two updates: it is cheap.

    Raises:
      LostError: another run has the workdir now, or it is gone or out of
        reach; nothing may be saved.
    """
    if self._ended.is_set() or jax.process_index():
      return
    # The thread has not come to it: the process was stopped, or has just been
    # continued.
    if _now() - self._tried > 2 * BEAT:
      self._beat()
    if not self._lost and _now() - self._reached > PATIENCE:
      self._lost = (
        f"--workdir={self._workdir} has been out of reach for "
        f"{_now() - self._reached:.0f} s ({self._trouble or 'no answer'}), so "
        "this run stops without saving. Mend the cause and start the same "
        "command again: it goes on from the newest checkpoint."
      )
    if self._lost:
      raise LostError(self._lost)

  @functools.cached_property
  def _file(self) -> lock_file.LockFile:
    return lock_file.open_file(self._workdir / FILE)

  def _acquire(self) -> str:
    """Takes the lock; returns `sentence`."""
    workdir_lib.make(self._workdir)
    try:
      for _ in range(100):
        found, sentence = self._file.read(), ""
        if found and self._is_ours(found):
          self._content = found  # The answer to our writing got lost.
        else:
          if found:
            sentence = self._look(found)
          self._content = self._file.write(self._record(), found)
        if self._content:
          self._tried = self._reached = _now()
          return sentence
        # Another start was faster than this one: look who.
      raise OSError("other starts come in between all the time")
    except self._failures as e:
      raise workdir_lib.not_writable(self._workdir, e) from e

  def _look(self, found: lock_file.Content) -> str:
    """Says that an owner is gone, or raises `UserError` because he is not."""
    owner = owner_lib.parse(found.data)
    who = owner_lib.describe(owner)
    alive, why = owner_lib.is_alive(owner), "no longer runs"
    if alive is None:
      alive = self._changes(found)
      why = f"showed no sign of life for {WATCH:g} s"
    if not alive:
      return f"{self._workdir}: {who} {why}; its lock is taken over"
    hint = ""
    if owner_lib.is_suspended(owner):
      hint = (
        f" It is suspended: kill -CONT {owner['pid']} lets it go on, kill -9 "
        f"{owner['pid']} ends it."
      )
    raise UserError(
      f"--workdir={self._workdir} is in use: {who} is training there; stop it "
      f"or use another --workdir.{hint}"
    )

  def _changes(self, found: lock_file.Content) -> bool:
    """Whether the owner's counter moves within the time that it has."""
    who = owner_lib.describe(owner_lib.parse(found.data))
    print(
      f"{self._workdir} is in use, it seems: watching for {WATCH:g} s whether "
      f"{who} is still there",
      flush=True,
    )
    end = _now() + WATCH
    while _now() < end:
      time.sleep(min(BEAT, WATCH / 10))
      latest = self._file.read()
      if latest is None:  # It has ended in good order.
        return False
      if latest.data != found.data:
        return True
    return False

  def _record(self) -> bytes:
    return json.dumps(self._owner | {"beats": self._beats}, indent=1).encode()

  def _is_ours(self, content: lock_file.Content) -> bool:
    return owner_lib.parse(content.data).get("token") == self._owner["token"]

  def _keep(self) -> None:
    while not self._ended.wait(BEAT) and not self._lost:
      self._beat()

  def _beat(self) -> None:
    """Raises the counter, or finds out why it can't."""
    with self._mutex:
      if not self._content or self._lost:
        return
      self._tried = _now()
      self._beats += 1
      try:
        written = self._file.write(self._record(), self._content)
        if not written:
          found = self._file.read()
          if found and self._is_ours(found):
            written = found  # It was written, but the answer got lost.
          else:
            self._lost = self._loss(found)
            return
      except self._failures as e:
        self._trouble = workdir_lib.reason(e)
        return
      self._content, self._reached = written, _now()

  def _loss(self, found: lock_file.Content | None) -> str:
    if found:
      return (
        f"--workdir={self._workdir} was taken over by "
        f"{owner_lib.describe(owner_lib.parse(found.data))}, as this process "
        "did not answer for a while (was it suspended?). It stops without "
        "saving; the other one goes on from the newest checkpoint."
      )
    # A save under way makes the folder anew.
    if not (self._workdir / workdir_lib.CONFIG).exists():
      return workdir_lib.vanished(self._workdir)
    return (
      f"{self._workdir / FILE} was deleted, so nothing keeps a second run out "
      "and this one stops without saving. Start the same command again: it "
      "goes on from the newest checkpoint."
    )


# Goes on while the machine sleeps, and never jumps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _now() -> float:
  """Seconds, of which only differences mean something."""
  return time.clock_gettime(_CLOCK)
