"""The largest batch that fits, found by compiling."""

import sys
from collections.abc import Callable

from mixer import config as config_lib
from mixer import durations
from mixer.planning import compiling, formulas, hardware


def largest(
  fits: Callable[[int], bool], guess: int, most: int = 2**20
) -> tuple[int, int]:
  """The largest number that fits, in steps of about an eighth.

  The numbers tried are those with at most four leading bits, so few that the
  answer is there after a handful of compilations.

  Args:
    fits: false from some number on.
    guess: where to start.
    most: no more than that.

  Returns:
    The largest of those numbers that fits, and the next one, which doesn't;
    0 and 1 where none does, and twice `most` where none is found that doesn't.
  """
  steps = list(range(1, 16))
  while 2 * steps[-8] <= most:
    steps.append(2 * steps[-8])
  steps = [n for n in steps if n <= most]
  low, high = -1, len(steps)  # Indices: fits, doesn't.
  at = max((i for i, n in enumerate(steps) if n <= max(guess, 1)), default=0)
  reach = 1
  while high - low > 1:
    if fits(steps[at]):
      low = at
      at = at + reach if high == len(steps) else (low + high) // 2
    else:
      high = at
      at = at - reach if low == -1 else (low + high) // 2
    reach *= 2
    at = min(max(at, low + 1), high - 1)
  return (
    steps[low] if low >= 0 else 0,
    steps[high] if high < len(steps) else 2 * most,
  )


def largest_batch(
  config: config_lib.Config,
  predicted: formulas.Plan,
  plan: durations.Plan,
  target: hardware.Slice,
) -> tuple[int, int]:
  """Searches the largest batch that fits, by compiling.

  Args:
    config: that it is of; its batch size is where `predicted` starts from.
    predicted: by the formulas, where the search starts.
    plan: of the run.
    target: the slice.

  Returns:
    As `largest`, in images of the whole batch.
  """
  unit = target.num_devices * config.optimizer.accumulate
  fixed = predicted.weights + predicted.optimizer + predicted.gradients
  each = (predicted.batch + predicted.activations) / config.batch_size
  guess = (predicted.limit - fixed) / (each * unit)

  def fits(number: int) -> bool:
    changed = config.copy_and_resolve_references()
    changed.batch_size = number * unit
    compiled, _ = compiling.compile_step(
      changed, plan, predicted.num_classes, target
    )
    print(
      f"batch {changed.batch_size}: "
      + (f"fits, {compiled.peak / 2**30:.2f} GiB" if compiled.fits else "")
      + compiled.reason,
      file=sys.stderr,
      flush=True,
    )
    return compiled.fits

  low, high = largest(fits, max(int(guess), 1))
  return low * unit, high * unit
