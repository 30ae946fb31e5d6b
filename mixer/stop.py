"""Signals and exit codes: how a run stops in good order, on all processes.

`listen` is the first thing that train.py does: a thread of its own then hears
SIGTERM, Ctrl-C and SIGHUP (a closed terminal), even while the program imports
or compiles. Before there is anything to lose a signal ends the process at
once; later a `Watch` makes all processes stop after the same update. Nothing
heavy is imported here.
"""

import contextlib
import errno
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, TextIO

from mixer import errors

# Exit codes, documented in README.md.
DONE, FAILED, PREEMPTED = 0, 1, 42
# Another process was lost, or training hung: nothing is wrong with the run.
LOST = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Errors of an output that nobody reads any more.
CLOSED = (errno.EIO, errno.EPIPE, errno.EBADF)
_PATIENCE = 10.0  # Seconds to wait for a thread that asks the service.
_STDERR = 2  # The descriptor: `sys.stderr` may be anything.

_began: float | None = time.monotonic()
_watch: "Watch | None" = None
_listening = False


class Preempted(Exception):
  """A signal asked for a stop; the message names it."""


def began() -> float:
  """Monotonic start time: of the process in the first call, then now."""
  global _began
  moment, _began = _began, None
  return time.monotonic() if moment is None else moment


def say(text: object, to: TextIO | None = None, end: str = "\n") -> None:
  """Prints to stdout or `to`; a closed terminal or pipe is no error."""
  stream = to or sys.stdout
  try:
    print(text, end=end, file=stream, flush=True)
  except OSError as e:
    if e.errno in CLOSED:
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def exit_at_once(code: int) -> NoReturn:
  """Ends the process without waiting for threads or other processes."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):
      stream.flush()
  os._exit(code)


def _wanted() -> list[signal.Signals]:
  """The signals to hear; under `nohup` SIGHUP stays ignored."""
  ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  return [s for s in _SIGNALS if s != signal.SIGHUP or not ignored]


def _ignore(number: int, frame: FrameType | None) -> None:
  """Python's own handler: runs when the thread has acted already."""


def listen() -> None:
  """Hears signals in a thread; call in the main thread of a command."""
  global _listening
  if _listening:
    return
  errors.occupy()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  # Python's handlers never run while the main thread is inside XLA; this
  # descriptor is written to at once.
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for number in _wanted():
    signal.signal(number, _ignore)

  def hear() -> None:
    while True:
      (number,), watch = os.read(reader, 1), _watch
      if number in _SIGNALS:
        if watch is None:
          _leave(signal.Signals(number).name)
        watch.heard(number)

  threading.Thread(target=hear, daemon=True).start()
  _listening = True


def _leave(name: str) -> NoReturn:
  say(f"{name}: stopped, nothing was under way", sys.stderr)
  exit_at_once(PREEMPTED)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator:
  """Python's handlers; none after `listen` and outside the main thread."""
  main = threading.current_thread() is threading.main_thread()
  wanted = _wanted() if main and not _listening else []
  before = {s: signal.signal(s, handler) for s in wanted}
  try:
    yield
  finally:
    for s, former in before.items():
      signal.signal(s, former)


def interrupting() -> contextlib.AbstractContextManager[None]:
  """Lets signals raise KeyboardInterrupt with their name, once.

  A second Ctrl-C ends the process at once. After `listen` nothing is changed.
  """

  def stop(number: int, frame: FrameType | None) -> None:
    for s in _wanted():
      signal.signal(s, _ignore)
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    raise KeyboardInterrupt(signal.Signals(number).name)

  return _handling(stop)


class Watch:
  """Stops a run between two updates, the same ones on all processes.

  A context manager. Every process makes the same sequence of `check` calls.
  One that hears a signal posts it to the coordination service; then all tell
  how many checks they have passed while their next one waits, and all stop at
  the first that none has passed: within one update. `name` is the signal's,
  and its host's, or ""; what is in `leaving` is called before the process ends
  at once.
  """

  def __init__(self, board: Any = None, poll: float = 0.2):
    """Takes the board of several processes, read every `poll` seconds."""
    self.name = ""
    self.leaving: list[Callable[[], None]] = []
    self._board, self._poll = board, poll
    self._working = False
    self._interrupts = self._passed = 0
    self._last: int | None = None
    self._turn = threading.Lock()
    self._ended = threading.Event()
    self._silent = self._limit = 0.0
    self._handlers = _handling(lambda number, _: self.heard(number))
    self._reader = threading.Thread(target=self._read_board, daemon=True)

  def __enter__(self) -> "Watch":
    global _watch
    _watch = self
    self._handlers.__enter__()
    if self._board is not None:
      self._reader.start()
    return self

  def __exit__(self, *unused: object) -> None:
    global _watch
    _watch = None
    self._ended.set()
    # A thread that comes out of C++ while Python ends aborts the process. One
    # that counts checks with processes that are gone isn't waited for.
    if self._reader.is_alive():
      self._reader.join(_PATIENCE)
    self._handlers.__exit__(None, None, None)

  def limit_silence(self, seconds: float) -> None:
    """Ends the process if no `check` comes for so long, from now; 0: never."""
    self._silent, self._limit = 0.0, seconds
    if seconds:
      threading.Thread(target=self._find_hang, daemon=True).start()

  def working(self) -> None:
    """From now on there is something to lose."""
    self._working = True

  def check(self) -> None:
    """Passes, or raises `Preempted`; call it between updates and batches."""
    self._silent = 0.0
    with self._turn:
      self._passed += 1
      due = self.name if self._board is None else self._passed == self._last
    if due:
      raise Preempted(
        f"{self.name}: stopped and saved; the same command goes on from here"
      )

  def heard(self, number: int) -> None:
    """A signal has come to this process."""
    name = signal.Signals(number).name
    self._interrupts += number == signal.SIGINT
    if self._interrupts > 1:
      say("\nsecond Ctrl-C: exiting at once, not saved", sys.stderr)
      self._end(128 + number)
    if self.name:  # Schedulers repeat themselves.
      return
    several = self._board is not None  # Then its reader posts the name.
    self.name = f"{name} on {socket.gethostname()}" if several else name
    if _listening and not self._working and not several:
      for call in self.leaving:
        call()
      _leave(name)

  def _read_board(self) -> None:
    while not self._ended.wait(self._poll):
      said = self._board.read()
      if self.name and "stop" not in said:  # Again, if it didn't arrive.
        self._board.post("stop", self.name)
      if "failed" in said:
        say(f"\n{said['failed']}", sys.stderr)
        self._board.stay()
        self._end(FAILED)
      if "stop" in said and self._last is None:
        self.name = said["stop"]
        with self._turn:  # Nobody passes a check while all count.
          self._last = self._board.next_after(self._passed)

  def _find_hang(self) -> None:
    pause = min(1.0, self._limit / 4)
    # Counted, not measured: time in which this process was suspended is none.
    while not self._ended.wait(pause) and self._limit:
      self._silent += pause
      if self._silent > self._limit:
        say(
          f"\nno progress for {self._limit:g} s (hang_seconds); what each "
          "thread is doing:",
          sys.stderr,
        )
        faulthandler.dump_traceback(_STDERR)
        exit_at_once(LOST)

  def _end(self, code: int) -> NoReturn:
    for call in self.leaving:
      call()
    exit_at_once(code)
