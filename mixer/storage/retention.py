"""Which checkpoints stay when a new one has been committed."""

import math
from collections.abc import Mapping, Sequence

from mixer import durations


def kept(
  steps: Sequence[int],
  keep: int,
  keep_every: durations.Interval,
  metrics: Mapping[int, float],
) -> set[int]:
  """The steps whose checkpoints stay.

  Args:
    steps: that have one, in order.
    keep: the newest so many stay,
    keep_every: those at multiples of it (0: none),
    metrics: and the one with the highest of these by step; of several with the
      same the newest. What is not finite doesn't count.
  """
  stay = {*steps[-keep:]}
  stay |= {s for s in steps if durations.is_due(keep_every, s)}
  found = best({s: metrics[s] for s in steps if s in metrics})
  return stay if found is None else stay | {found}


def best(metrics: Mapping[int, float]) -> int | None:
  """The step with the highest finite metric; of several the newest."""
  known = [(v, s) for s, v in metrics.items() if math.isfinite(v)]
  return max(known)[1] if known else None
