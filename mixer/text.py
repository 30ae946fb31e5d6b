"""Foreign text, made safe to show: names of files, what others have said."""

import codecs
import contextlib
import errno
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


def printable(text: object, keep: str = "") -> str:
  r"""Escapes what would change more of a terminal or a log than its place.

  Args:
    text: anything; its `str` is taken.
    keep: characters that stay, as "\n" in a text of several lines.

  Returns:
    One line, unless "\n" is kept: a newline is a backslash and an n, an escape
    `\x1b`, a byte of a file's name that is no text `\udce9`. What is there
    already, as a backslash, stays: so `printable(printable(x))` changes
    nothing.
  """
  return _UNSAFE.sub(
    lambda m: m[0] if m[0] in keep else ascii(m[0])[1:-1], str(text)
  )


def _bytes_of_names(error: UnicodeError) -> tuple[bytes, int]:
  """What `surrogateescape` makes; "?" for surrogates that are no byte's."""
  assert isinstance(error, UnicodeEncodeError)
  code = ord(error.object[error.start])
  byte = bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else b"?"
  return byte, error.start + 1


# Names of files come out as the bytes that they are; for `str.encode`.
NAMES = "mixer.names"
codecs.register_error(NAMES, _bytes_of_names)


# What a line of progress begins with: at the start of a line it does no harm.
# And what comes alone, where tqdm goes from one of several bars to another.
_PROGRESS = re.compile("(?:\x1b\\[A)+\\Z|(?:\r|\x1b\\[K)*")


class Output:
  """stdout or stderr, where nothing that is printed moves the cursor.

  Control characters are escaped but for newlines, tabs and what a line of
  progress begins with; so are characters that the encoding lacks.

  Attributes:
    error: what writing has raised, None if nothing has.
  """

  def __init__(self, stream: TextIO, quiet: bool = False):
    """Takes a stream.

    Args:
      stream: to write to.
      quiet: what can't be written is lost, as there is nowhere to say so.
    """
    self._stream = stream
    self._quiet = quiet
    self.error: OSError | None = None

  def write(self, text: str) -> int:
    begin = _PROGRESS.match(text)
    end = begin.end() if begin else 0
    encoding = self._stream.encoding or "utf-8"
    safe = text[:end] + printable(text[end:], keep="\n\t")
    safe = safe.encode(encoding, "backslashreplace").decode(encoding)
    self._try(lambda: self._stream.write(safe))
    return len(text)

  def write_exactly(self, text: str) -> None:
    """Writes data: on a terminal as `write`, else names' very bytes."""
    data = text.encode("utf-8", NAMES)
    self.flush()
    if self._stream.isatty() or not hasattr(self._stream, "buffer"):
      self.write(text)
    else:
      self._try(lambda: self._stream.buffer.write(data))
    self.flush()

  def flush(self) -> None:
    self._try(self._stream.flush)

  def give_up(self) -> None:
    """Writes what is left, and all that comes, nowhere."""
    with contextlib.suppress(OSError, ValueError):  # It may be no file.
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, self._stream.fileno())
      os.close(nowhere)

  def _try(self, action: Callable[[], object]) -> None:
    try:
      action()
    except OSError as e:
      self.error = e
      if not self._quiet:
        raise

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


@contextlib.contextmanager
def safe_output() -> Iterator[Output]:
  """Has all that is printed go through `Output`.

  Yields:
    stdout. Where it is closed (`>&-`) its `error` says so.
  """
  before = sys.stdout, sys.stderr
  if isinstance(sys.stdout, Output):
    yield sys.stdout
    return
  occupy()
  with open(os.devnull, "w") as nowhere:
    out = Output(before[0] or nowhere)
    err = Output(before[1] or nowhere, quiet=True)
    if before[0] is None:
      out.error = OSError(errno.EBADF, "it is closed")
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
  """Takes descriptors 0 to 2 where they are closed.

  Else a file that is opened gets one, and what libraries print gets into it.
  """
  while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
    pass
  os.close(number)
