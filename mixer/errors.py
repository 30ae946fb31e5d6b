"""`UserError`; foreign text made safe to show on a terminal or in a log."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

# Control characters, invisible ones and those that turn the direction of
# writing, line separators, halves of surrogate pairs (bytes of a file's name
# that are no text), tags. The joiners of scripts and emojis are left.
_UNSAFE = re.compile(
  "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e"
  "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
# What a line of progress begins with, or moves to another bar: it may stay.
_PROGRESS = re.compile("(?:\x1b\\[A)+\\Z|(?:\r|\x1b\\[K)*")


class UserError(Exception):
  """Something that the user can mend: what is wrong, where, what mends it.

  Commands print it without a traceback and exit with 1; every other exception
  is a defect and keeps its traceback.
  """

  at_once = False  # Whether the process ends without waiting for its threads.

  def __init__(self, message: str = "", *, lines: bool = False):
    """Escapes the message; newlines stay in `lines`, which are safe already."""
    super().__init__(printable(message, keep="\n" if lines else ""))


def first_line(error: BaseException) -> str:
  """The first line of an error's message, for a sentence: no full stop."""
  lines = str(error).strip().splitlines() or [repr(error)]
  return printable(lines[0][:300].rstrip("."))


def is_memory(error: BaseException) -> bool:
  """Whether memory, of the host or of a device, was too small."""
  of_device = type(error).__name__ == "JaxRuntimeError"  # JAX isn't loaded.
  exhausted = of_device and "RESOURCE_EXHAUSTED" in str(error)
  return exhausted or isinstance(error, MemoryError)


def printable(text: object, keep: str = "") -> str:
  r"""Escapes all that moves a cursor: a newline is `\n`, unless in `keep`."""
  return _UNSAFE.sub(
    lambda m: m[0] if m[0] in keep else ascii(m[0])[1:-1], str(text)
  )


class Output:
  """stdout or stderr, with control characters escaped; wraps the stream.

  Newlines, tabs and the start of a line of progress stay. `error` is what
  writing has raised.
  """

  def __init__(self, stream: TextIO):
    self._stream = stream
    self.error: OSError | None = None

  def write(self, text: str) -> int:
    begin = _PROGRESS.match(text)
    end = begin.end() if begin else 0
    safe = text[:end] + printable(text[end:], keep="\n\t")
    encoding = self._stream.encoding or "utf-8"
    safe = safe.encode(encoding, "backslashreplace").decode(encoding)
    self._try(lambda: self._stream.write(safe))
    return len(text)

  def write_exactly(self, text: str) -> None:
    """Writes data: on a terminal as `write`, else the very bytes of names."""
    if self._stream.isatty():
      self.write(text)
    else:
      self.flush()
      data = text.encode("utf-8", "surrogateescape")
      self._try(lambda: self._stream.buffer.write(data))

  def flush(self) -> None:
    self._try(self._stream.flush)

  def give_up(self) -> None:
    """Sends what is left, and all that comes, to /dev/null."""
    with contextlib.suppress(OSError, ValueError):  # It may be no file.
      os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

  def _try(self, action: Callable[[], object]) -> None:
    try:
      action()
    except OSError as e:
      self.error = e
      raise

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


@contextlib.contextmanager
def safe_output() -> Iterator[Output]:
  """Sends stdout and stderr through `Output`; yields stdout."""
  if isinstance(sys.stdout, Output):
    yield sys.stdout
    return
  occupy()
  before = sys.stdout, sys.stderr
  out = Output(sys.stdout or open(1, "w", closefd=False))
  err = Output(sys.stderr or open(2, "w", closefd=False))
  sys.stdout, sys.stderr = out, err
  try:
    yield out
  finally:
    for stream in (out, err):
      try:
        stream.flush()
      except OSError:  # Else Python would complain of it at the end.
        stream.give_up()
    sys.stdout, sys.stderr = before


def occupy() -> None:
  """Opens closed descriptors 0 to 2, which the next file would get else."""
  while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
    pass
  os.close(number)
