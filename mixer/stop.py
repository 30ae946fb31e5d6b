"""Stopping in good order: signals, on one process and on many.

`listen` is the first thing that train.py does: from then on SIGTERM, Ctrl-C and
SIGHUP (a terminal that is closed) are heard by a thread of their own, even
while the program imports, compiles or waits. Before there is anything to lose
they end the process at once. Once there is, a `Watch` makes all processes stop
at the same point.

Nothing heavy is imported here, so that little time passes unheard.
"""

import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, TextIO

from mixer import text as text_lib

# Exit codes, documented in README.md.
DONE, FAILED, PREEMPTED = 0, 1, 42
# Another process was lost, or nothing went on: nothing is wrong with the run.
LOST = 75
# When the process began, as far as we know, on the monotonic clock.
_began: float | None = time.monotonic()

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Nobody reads it any more, and nobody will.
CLOSED = (errno.EIO, errno.EPIPE, errno.EBADF)
_watch: "Watch | None" = None
_listening = False


def began() -> float:
  """When what runs now began: the process, at first, and now, after that."""
  global _began
  moment, _began = _began, None
  return time.monotonic() if moment is None else moment


class Preempted(Exception):
  """A signal asked for a stop; says which."""


def _wanted() -> list[signal.Signals]:
  """The signals to hear: `nohup` has SIGHUP ignored, and so it stays."""
  ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  return [s for s in _SIGNALS if s != signal.SIGHUP or not ignored]


def say(text: object, to: TextIO | None = None, end: str = "\n") -> None:
  """Prints; of a terminal or pipe that is closed it takes no notice.

  Args:
    text: to print.
    to: None for stdout.
    end: printed after it.
  """
  stream = to or sys.stdout
  try:
    print(text, end=end, file=stream, flush=True)
  except OSError as e:  # What is computed is worth more than what is said.
    if e.errno in CLOSED:
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
  """Lets signals raise KeyboardInterrupt with their name, once.

  A second Ctrl-C ends the process at once. After `listen` nothing is changed.
  """

  def stop(number: int, frame: FrameType | None) -> None:
    for s in before:
      signal.signal(s, _ignore)
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    # What no library takes for an error of its own.
    raise KeyboardInterrupt(signal.Signals(number).name)

  before: dict[int, Any] = {}
  main = threading.current_thread() is threading.main_thread()
  if main and not _listening:
    before = {s: signal.signal(s, stop) for s in _wanted()}
  try:
    yield
  finally:
    for s, handler in before.items():
      signal.signal(s, handler)


def listen() -> None:
  """Hears signals in a thread; for the main thread of a command."""
  global _listening
  if _listening:
    return
  text_lib.occupy()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  # Python's own handlers run between two of the main thread's instructions,
  # so never while it is inside XLA. The descriptor is written to at once.
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for number in _wanted():
    signal.signal(number, _ignore)
  threading.Thread(target=_hear, args=(reader,), daemon=True).start()
  _listening = True


def _ignore(number: int, frame: FrameType | None) -> None:
  """What Python calls later, when the thread has long acted."""


def _hear(reader: int) -> None:
  while True:
    for number in os.read(reader, 1):
      if number in _SIGNALS:
        _heard(number)


def _heard(number: int) -> None:
  if _watch is None:
    leave(signal.Signals(number).name)
  else:
    _watch.heard(number)


def leave(name: str) -> NoReturn:
  """Ends the process where nothing is lost by it."""
  say(f"{name}: stopped, nothing was under way", sys.stderr)
  exit_at_once(PREEMPTED)


def exit_at_once(code: int) -> NoReturn:
  """Ends the process without waiting for its threads, or for other processes.

  Threads of a save that has failed can wait for each other for ever, and a
  process that has failed must not wait for the others, which wait for it.
  """
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:  # Nobody reads it any more.
      pass
  os._exit(code)


class Watch:
  """Makes a stop happen between two updates, the same ones on all processes.

  Use as a context manager around a run. On several processes, each passes the
  same sequence of `check` calls. A process that hears a signal says so through
  the coordination service; then all tell how many checks they have passed,
  while their next one waits, and all stop at the first that none has passed:
  so within one update.

  Attributes:
    name: of the signal that came, and where, or "".
    leaving: called before the process ends at once.
  """

  def __init__(self, board: Any = None, poll: float = 0.2):
    """Makes one.

    Args:
      board: of `mixer.cluster.hosts.Board`, for a run of several processes.
      poll: how often a process looks at it, seconds.
    """
    self._poll = poll
    self.name = ""
    self.leaving: list[Callable[[], None]] = []
    self._board = board
    self._working = False
    self._interrupts = 0
    self._passed = 0
    self._last: int | None = None
    self._turn = threading.Lock()
    self._ended = threading.Event()
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> "Watch":
    global _watch
    _watch = self
    main = threading.current_thread() is threading.main_thread()
    if not _listening and main:
      for number in _wanted():
        self._previous[number] = signal.signal(number, self._handle)
    if self._board is not None:
      threading.Thread(target=self._look, daemon=True).start()
    return self

  def __exit__(self, *unused: object) -> None:
    global _watch
    _watch = None
    self._ended.set()
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def working(self) -> None:
    """From now on there is something to lose."""
    self._working = True

  def check(self) -> None:
    """Passes, or raises `Preempted`; call it between updates and batches."""
    with self._turn:
      self._passed += 1
      due = self.name if self._board is None else self._passed == self._last
    if due:
      raise Preempted(
        f"{self.name}: stopped and saved; the same command goes on from here"
      )

  def _handle(self, number: int, frame: FrameType | None) -> None:
    self.heard(number)

  def heard(self, number: int) -> None:
    """A signal has come to this process."""
    name = signal.Signals(number).name
    self._interrupts += number == signal.SIGINT
    if self._interrupts > 1:
      say("\nsecond Ctrl-C: exiting at once, not saved", sys.stderr)
      self._end(128 + number)
    # Where all are told by their scheduler, they are also told by each other;
    # and some schedulers repeat themselves.
    if self.name:
      return
    if self._board is not None:
      self.name = f"{name} on {socket.gethostname()}"
      self._board.post("stop", self.name)
      return
    self.name = name
    if _listening and not self._working:
      for call in self.leaving:
        call()
      leave(name)

  def _look(self) -> None:
    """Waits for what other processes say."""
    while not self._ended.wait(self._poll):
      said = self._board.read()
      if "failed" in said:
        say(f"\n{said['failed']}", sys.stderr)
        self._board.stay()
        self._end(FAILED)
      if "stop" in said and self._last is None:
        self.name = said["stop"]
        # Nobody passes a check while all count.
        with self._turn:
          self._last = self._board.next_after(self._passed)

  def _end(self, code: int) -> None:
    for call in self.leaving:
      call()
    exit_at_once(code)
