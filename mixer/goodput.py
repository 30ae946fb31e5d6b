"""Where a run's wall time went, over all its starts.

Seconds by kind, by the monotonic clock, so that a clock that is set changes
nothing. Each record of metrics.jsonl has them as they stand (`goodput/...`), so
that a run which goes on knows what was spent before it, and what for nothing.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# What a run's time goes into. `step` is all that is not something else: that
# the loop waits for the devices.
KINDS = {
  "start": "start",
  "compile": "first update, with compilation",
  "data": "waiting for data",
  "step": "updates",
  "evaluation": "evaluation",
  "saving": "saving, as far as updates waited for it",
  "lost": "lost to restarts",
}
_PREFIX = "goodput/"


class Goodput:
  """A ledger of seconds."""

  def __init__(
    self,
    started: float,
    kept: Sequence[Mapping[str, Any]] = (),
    dropped: Sequence[Mapping[str, Any]] = (),
  ):
    """Goes on from what earlier starts have written.

    Args:
      started: when this start began, as `time.monotonic` says.
      kept: records up to the update that this start goes on from.
      dropped: those after it, made in vain.
    """
    before = _newest(kept)
    self._seconds = {kind: before.get(kind, 0.0) for kind in KINDS}
    spent = _newest([*kept, *dropped])
    lost = sum(spent.values()) - sum(before.values())
    self._seconds["lost"] += max(0.0, lost)
    self._open = ["start"]
    self._since = started

  def _settle(self) -> None:
    now = time.monotonic()
    self._seconds[self._open[-1]] += now - self._since
    self._since = now

  def begin(self) -> None:
    """The start is over; what is nothing else counts as updates from now."""
    self._settle()
    self._open[0] = "step"

  @contextlib.contextmanager
  def spend(self, kind: str) -> Iterator[None]:
    """What happens inside counts as of that kind, unless of another inside."""
    self._settle()
    self._open.append(kind)
    try:
      yield
    finally:
      self._settle()
      self._open.pop()

  def seconds(self) -> dict[str, float]:
    """By kind, up to now."""
    self._settle()
    return dict(self._seconds)

  def record(self) -> dict[str, float]:
    """The same, named as in metrics.jsonl."""
    return {_PREFIX + k: round(v, 3) for k, v in self.seconds().items()}

  def table(self) -> str:
    """For people: seconds and shares, the largest first."""
    seconds = self.seconds()
    total = sum(seconds.values())
    lines = [f"{'seconds':>12}  share  spent on"]
    for kind, value in sorted(seconds.items(), key=lambda item: -item[1]):
      if value:
        lines.append(f"{value:12.1f}  {value / total:5.1%}  {KINDS[kind]}")
    lines.append(f"{total:12.1f}         in all")
    return "\n".join(lines)


def _newest(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """The seconds by kind in the last record that has them."""
  for record in reversed(records):
    found = {
      k.removeprefix(_PREFIX): v
      for k, v in record.items()
      if k.startswith(_PREFIX)
    }
    if found:
      return found
  return {}
