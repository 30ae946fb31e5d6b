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
  known = [
    (metrics[s], s) for s in steps if math.isfinite(metrics.get(s, math.nan))
  ]
  return stay | {max(known)[1]} if known else stay
