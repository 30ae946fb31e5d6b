"""Shows how far a preparation is: a bar on a terminal, else a line at times."""

import sys
import time
from types import TracebackType
from typing import Any

import tqdm

from mixer import metrics, stop

# Without a terminal: the first line soon, so that one sees it works, then
# few enough for a log of a day.
_FIRST_SECONDS = 10.0
_SECONDS = 60.0


class Meter:
  """Use as a context manager; call `show` as often as you like."""

  def __init__(self, stream: Any = None):
    """Writes to stderr, or to `stream`."""
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
    total: int,
    images: int | None = None,
    note: str = "",
  ) -> None:
    """Tells how far it is.

    Args:
      stage: what is being done; a new one starts a new bar.
      done: of the stage's work, in any unit.
      total: of it.
      images: so far, if the stage counts them.
      note: what else to say.
    """
    now = time.monotonic()
    if stage != self._stage:
      self.__exit__(None, None, None)
      self._stage = stage
      self._start, self._next = now, now + _FIRST_SECONDS
      # A preparation that goes on has not done this in no time.
      self._first_done, self._first_images = done, images or 0
    if not self._terminal and now < self._next:
      return
    seconds = now - self._start
    parts = []
    if images is not None:
      parts.append(f"{images:,} images")
      if seconds > 1:  # The first moments say nothing.
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
    if moved > 0 and total > done:
      parts.append(f"{metrics.duration((total - done) * seconds / moved)} left")
    self.say(f"{stage}: {', '.join([*share, *parts])}")

  def say(self, text: str) -> None:
    """Prints a line, above the bar."""
    if self._bar is not None:
      self._bar.clear()
    stop.say(text, self._stream)

  def _show_bar(self, done: int, total: int, text: str) -> None:
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
    # Sources may only estimate their size.
    self._bar.total = max(total, done)
    self._bar.set_postfix_str(text, refresh=False)
    self._bar.update(done - self._bar.n)

  def __enter__(self) -> "Meter":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None
