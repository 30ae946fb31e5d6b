"""Progress of long work on stderr: a bar on a terminal, else rare lines."""

import contextlib
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any, Self, TypeVar

import tqdm

# In a log: the first line soon, to show that it works, then few enough for a
# day of work.
_FIRST_SECONDS = 10.0
_SECONDS = 60.0
_Item = TypeVar("_Item")


class Progress:
  """Shows how far some work is; use as a context manager."""

  def __init__(self, stream: Any = None):
    """Writes to `stream`, by default stderr."""
    self._stream = stream or sys.stderr
    self._terminal = self._stream.isatty()
    self._stage = ""
    self._bar: Any = None
    self._start = self._next = 0.0
    self._first_done = self._first_images = 0

  def show(
    self,
    stage: str,
    done: int,
    total: int | None,
    images: int | None = None,
    note: str = "",
  ) -> None:
    """Updates the bar, or prints a line if the last one is a minute old.

    `done` and `total` (0 or None if unknown) are in any unit; a new `stage`
    starts a new bar; `images` so far give a rate.
    """
    now = time.monotonic()
    if stage != self._stage:
      self.close()
      self._stage = stage
      self._start, self._next = now, now + _FIRST_SECONDS
      # Work that is resumed has not done this in no time.
      self._first_done, self._first_images = done, images or 0
    if not self._terminal and now < self._next:
      return
    seconds = now - self._start
    parts = []
    if images is not None:
      parts.append(f"{images:,} images")
      if seconds > 1:  # The rate of the first moments means nothing.
        rate = (images - self._first_images) / seconds
        parts.append(f"{rate:,.0f} images/s")
    if note:
      parts.append(note)
    if self._terminal:
      self._show_bar(done, total, ", ".join(parts))
      return
    self._next = now + _SECONDS
    share = [f"{done / total:.1%}"] if total else []
    moved = done - self._first_done
    if moved > 0 and total and total > done:
      left = (total - done) * seconds / moved
      parts.append(f"{tqdm.tqdm.format_interval(left)} left")
    self.say(f"{stage}: {', '.join([*share, *parts])}")

  def say(self, text: str) -> None:
    """Prints a line, above the bar."""
    if self._bar is not None:
      self._bar.clear()
    with contextlib.suppress(OSError):  # The work matters more.
      print(text, file=self._stream, flush=True)

  def _show_bar(self, done: int, total: int | None, text: str) -> None:
    if self._bar is None:
      self._bar = tqdm.tqdm(
        total=total,
        initial=done,
        desc=self._stage,
        file=self._stream,
        leave=False,
        dynamic_ncols=True,
        bar_format="{desc}: {percentage:3.0f}%|{bar:20}| {remaining} left"
        "{postfix}",
      )
    # A total may be an estimate.
    self._bar.total = max(total, done) if total else None
    self._bar.set_postfix_str(text, refresh=False)
    self._bar.update(done - self._bar.n)

  def close(self) -> None:
    """Removes the bar."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


def track(items: Collection[_Item], stage: str) -> Iterator[_Item]:
  """The items, with their progress."""
  with Progress() as progress:
    for done, item in enumerate(items):
      progress.show(stage, done, len(items))
      yield item
