"""Signals and exit codes: how a run stops in good order, on all processes.

`listen`, the first thing that train.py does, hears SIGTERM, Ctrl-C and SIGHUP;
before JAX starts, `listen_in_thread` makes that so even while it compiles.
Before there is anything to lose a signal ends the process at once; later a
`Watch` makes all processes stop after the same update. Imports nothing heavy.
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
from typing import Any, NoReturn, TextIO

from mixer import errors

# Exit codes, documented in docs/reliability.md. LOST: another process was lost,
# or training hung; nothing is wrong with the run itself.
DONE, FAILED, PREEMPTED, LOST = 0, 1, 42, 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Errors of an output that nobody reads any more.
CLOSED = (errno.EIO, errno.EPIPE, errno.EBADF)
_STDERR = 2  # The descriptor: `sys.stderr` may be anything.

_Call = Callable[[], None]
_began = [time.monotonic()]
_watch: "Watch | None" = None
_listening = False


class Preempted(Exception):
  """A signal asked for a stop; the message names it."""


def began() -> float:
  """Monotonic start time: of the process in the first call, then now."""
  return _began.pop() if _began else time.monotonic()


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


def _ignore(*unused: object) -> None:
  """Python's own handler, where a thread acts."""


def _hear(number: int, *unused: object) -> None:
  (_watch or Watch()).heard(number)


def listen() -> None:
  """Hears signals; call in the main thread of a command, first of all."""
  global _listening
  if _listening:
    return
  errors.occupy()
  for number in _wanted():
    signal.signal(number, _hear)
  _listening = True


def listen_in_thread() -> None:
  """Lets a thread hear what `listen` does; after `runtime.configure`.

  Python's handlers never run while the main thread is inside XLA; a descriptor
  is written to at once.
  """
  mine = [s for s in _SIGNALS if signal.getsignal(s) is _hear]
  if not mine:
    return
  reader, writer = os.pipe()
  os.set_blocking(writer, False)

  def hear() -> None:
    while True:
      (number,) = os.read(reader, 1)
      if number in _SIGNALS:
        _hear(number)

  threading.Thread(target=hear, daemon=True).start()
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for number in mine:
    signal.signal(number, _ignore)


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
  """Lets a signal raise KeyboardInterrupt, once, if nobody listens."""

  def stop(number: int, frame: object) -> None:
    for s in before:
      signal.signal(s, _ignore)
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    raise KeyboardInterrupt(signal.Signals(number).name)

  main = threading.current_thread() is threading.main_thread()
  wanted = _wanted() if main and not _listening else []
  before = {s: signal.signal(s, stop) for s in wanted}
  try:
    yield
  finally:
    for s, handler in before.items():
      signal.signal(s, handler)


class Watch:
  """Stops a run between two updates, the same ones on all processes.

  A context manager, for signals that `listen` hears. Every process makes the
  same sequence of `check` calls. One that hears a signal posts it on the board
  of `mixer.runtime`; then all exchange how many checks they have passed, and
  stop at the first that none has passed: within one update.
  """

  def __init__(self, board: Any = None, poll: float = 0.2):
    self.working = False  # Set it when there is something to lose.
    # What `check` calls, too; and what is called before a sudden end.
    self.checks, self.leaving = list[_Call](), list[_Call]()
    self._board, self._poll = board, poll
    self._name, self._interrupts = "", 0  # Of the first signal.
    self._passed = self._last = 0  # Checks; the one to stop at, if known.
    self._turn, self._ended = threading.Lock(), threading.Event()
    self._silent = self._limit = 0.0
    self._reader = threading.Thread(target=self._read_board, daemon=True)

  def __enter__(self) -> "Watch":
    global _watch
    _watch = self
    if self._board is not None:
      self._reader.start()
    return self

  def __exit__(self, *unused: object) -> None:
    global _watch
    _watch = None
    self._ended.set()
    # A thread that comes out of C++ while Python ends aborts the process. One
    # that waits for processes that are gone isn't waited for.
    if self._reader.is_alive():
      self._reader.join(10.0)

  def check(self) -> None:
    """Passes, or raises `Preempted`; call it between updates and batches."""
    self._silent = 0.0
    with self._turn:
      self._passed += 1
      due = self._name if self._board is None else self._passed == self._last
    if due:
      raise Preempted(
        f"{self._name}: stopped and saved; the same command goes on from here"
      )
    for check in self.checks:
      check()

  def heard(self, number: int) -> None:
    """A signal has come to this process."""
    name, several = signal.Signals(number).name, self._board is not None
    self._interrupts += number == signal.SIGINT
    if self._interrupts > 1:
      self._end(128 + number, "\nsecond Ctrl-C: exiting at once, not saved")
    if self._name:  # Schedulers repeat themselves.
      return
    self._name = f"{name} on {socket.gethostname()}" if several else name
    if not self.working and not several:
      self._end(PREEMPTED, f"{name}: stopped, nothing was under way")

  def _read_board(self) -> None:
    while not self._ended.wait(self._poll):
      posted = self._board.read()
      if self._name and "stop" not in posted:  # Again, if it didn't arrive.
        self._board.post("stop", self._name)
      if "failed" in posted:
        self._board.stay()
        self._end(FAILED, f"\n{posted['failed']}")
      if "stop" in posted and not self._last:
        self._name = posted["stop"]
        with self._turn:  # No check is passed meanwhile.
          self._last = self._board.next_after(self._passed)

  def limit_silence(self, seconds: float) -> None:
    """Ends the process if no `check` comes for so long; 0: never."""
    self._limit = seconds
    if seconds:
      threading.Thread(target=self._find_hang, daemon=True).start()

  def _find_hang(self) -> None:
    pause = min(1.0, self._limit / 4)
    # Counted, not measured: a suspension of this process is no hang.
    while not self._ended.wait(pause):
      self._silent += pause
      if self._silent > self._limit:
        say(
          f"\nno progress for {self._limit:g} s (hang_seconds); what each "
          "thread is doing:",
          sys.stderr,
        )
        faulthandler.dump_traceback(_STDERR)
        exit_at_once(LOST)

  def _end(self, code: int, text: str) -> NoReturn:
    say(text, sys.stderr)
    for release in self.leaving:
      release()
    exit_at_once(code)
