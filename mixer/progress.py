"""Progress of long work on stderr: a line that changes, or, in a log, few."""

import contextlib
import datetime
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any, Self, TypeVar

_ERASE = "\r\x1b[K"
_Item = TypeVar("_Item")


class Progress:
  """Shows how far some work is; use as a context manager."""

  def __init__(self, stream: Any = None):
    self._stream = stream or sys.stderr
    self._terminal = self._stream.isatty()
    # Seconds between changes, and before the first line of a log.
    self._every, self._wait = (0.1, 0) if self._terminal else (60.0, 10.0)
    self._stage, self._erase = "", ""
    self._start = self._next = 0.0
    self._first_done = self._first_images = 0

  def show(
    self,
    stage: str,
    done: int,
    total: int | None,
    images: int | None = None,
  ) -> None:
    """Shows `done` of `total` (0 or None if unknown), and images so far."""
    now = time.monotonic()
    if stage != self._stage:
      self._stage, self._start, self._next = stage, now, now + self._wait
      self._first_done, self._first_images = done, images or 0
    if now < self._next:
      return
    self._next = now + self._every
    seconds, moved = now - self._start, done - self._first_done
    parts = [f"{min(1, done / total):.1%}"] if total else []
    if images is not None:
      rate = (images - self._first_images) / max(seconds, 1)
      parts.append(f"{images:,} images, {rate:,.0f} images/s")
    if moved > 0 and total and total > done:
      left = round((total - done) * seconds / moved)
      parts.append(f"{datetime.timedelta(seconds=left)} left")
    text = f"{stage}: {', '.join(parts)}"
    if not self._terminal:
      return self.say(text)
    room = shutil.get_terminal_size().columns - 1
    self._write(f"{_ERASE}{text[:room]}")
    self._erase = _ERASE

  def say(self, text: str) -> None:
    """Prints a line, in place of what is shown."""
    self._write(f"{self._erase}{text}\n")
    self._erase = ""

  def _write(self, text: str) -> None:
    with contextlib.suppress(OSError):  # The work matters more.
      print(text, end="", file=self._stream, flush=True)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self._write(self._erase)


def track(items: Collection[_Item], stage: str) -> Iterator[_Item]:
  """The items, with their progress."""
  with Progress() as progress:
    for done, item in enumerate(items):
      progress.show(stage, done, len(items))
      yield item
