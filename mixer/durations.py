"""Durations: "300 epochs", "10000 steps", "1e6 examples", "5%"; in steps."""

import dataclasses
import re
from fractions import Fraction

from mixer import config as config_lib
from mixer.errors import UserError

# Steps between two events, exact, so that halves of a run end with it; 0: never
Interval = int | Fraction
# Keys of intervals: "" and 0 mean never.
INTERVALS = ("log_every", "eval_every", "checkpoint_every", "keep_every")
_DURATION = re.compile(
  r"\s*([0-9]+(?:_[0-9]+)*\.?[0-9]*(?:e[0-9]{1,2})?)\s*"
  r"(?:(%|step|epoch|example)s?)?\s*"
)


@dataclasses.dataclass(frozen=True)
class Plan:
  """Every duration of a run, in steps."""

  total: int
  warmup: int
  log_every: Interval
  eval_every: Interval
  checkpoint_every: Interval
  keep_every: Interval = 0

  def to_json(self) -> dict[str, int | float]:
    """All of it; fractions as floats."""
    return {
      k: float(v) if isinstance(v, Fraction) and v % 1 else int(v)
      for k, v in vars(self).items()
    }


def _passed(every: Interval, step: int) -> int:
  """Number of events in the updates 1 to `step`.

  Event k is at the step nearest to k intervals, of two the later.
  """
  if not every:
    return 0
  return ((2 * step + 1) * every.denominator - 1) // (2 * every.numerator)


def is_due(every: Interval, step: int) -> bool:
  """Whether an event of that interval is after update `step`."""
  return step > 0 and _passed(every, step) > _passed(every, step - 1)


def at_once(plan: Plan, step: int, most: int) -> int:
  """Number of updates to dispatch together after `step`: `most`, or 1.

  It is `most` at its multiples, unless an event falls between them; so it
  depends on the step alone, and a resumed run repeats it.
  """
  last = step + most - 1
  every = (plan.total, plan.log_every, plan.eval_every, plan.checkpoint_every)
  due = any(_passed(e, last) > _passed(e, step) for e in every)
  return 1 if step % most or due else most


def _parse(key: str, text: str) -> tuple[Fraction, str]:
  """Reads a duration: "5 epochs" -> (5, "epoch"); or UserError."""
  match = _DURATION.fullmatch(text) if len(text) <= 40 else None
  if not match or (key == "total" and match[2] == "%"):
    raise UserError(
      f"{key}={config_lib.shown(text)} is not a duration: write a number and "
      f'its unit, as in --config.{key}="500 steps", "3 epochs", "1e6 examples" '
      "or, for all but `total`, 5%."
    )
  return Fraction(match[1].replace("_", "")), match[2] or "step"


def check(config: config_lib.Config) -> None:
  """Refuses what is no duration."""
  for key in ("total", "schedule.warmup", *filter(config.get, INTERVALS)):
    _parse(key, config[key])


def plan(config: config_lib.Config, num_examples: int) -> Plan:
  """Turns a valid config's durations into steps; UserError: it can't be."""
  example = Fraction(1, config.batch_size)
  units = {"step": 1, "example": example, "epoch": num_examples * example}

  def steps(key: str) -> Fraction:
    number, unit = _parse(key, config[key] or "0")
    return number * units[unit]

  total = round(steps("total"))
  if not 1 <= total < 2**31:  # Updates are counted in 32 bits.
    raise UserError(
      f"total={config.total!r} comes to {total:,} steps with {num_examples:,} "
      f"examples and batch_size={config.batch_size}; give another, as in "
      '--config.total="500 steps".'
    )
  units["%"] = Fraction(total, 100)
  warmup = round(steps("schedule.warmup"))
  if warmup >= total:
    raise UserError(
      f"schedule.warmup={config.schedule.warmup!r} is {warmup:,} of all "
      f'{total:,} steps; lower it, as in --config.schedule.warmup="5%".'
    )
  every = (steps(key) for key in INTERVALS)
  return Plan(total, warmup, *(n and max(n, Fraction(1)) for n in every))
