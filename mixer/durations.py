"""Durations: steps, epochs, examples, shares of the whole; all become steps."""

import dataclasses
import re

from mixer import config as config_lib
from mixer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
  """Every duration of a run, in steps."""

  total: int
  warmup: int
  log_every: int
  eval_every: int
  checkpoint_every: int
  keep_every: int = 0  # 0: never.


def at_once(plan: Plan, step: int, most: int) -> int:
  """How many updates after `step` are dispatched together: `most`, or 1.

  It is `most` from multiples of it on, unless something is due between them. So
  it depends on the step alone, and a run that was interrupted goes on as it
  would have.

  Args:
    plan: of the run.
    step: updates done.
    most: the config's `steps_per_dispatch`.
  """
  last = step + most - 1
  every = (plan.total, plan.log_every, plan.eval_every, plan.checkpoint_every)
  due = any(last // e > step // e for e in every)
  return 1 if step % most or due else most


_UNITS = ("steps", "epochs", "examples", "%")
_DURATION = re.compile(
  r"\s*([0-9]+(?:_[0-9]+)*\.?[0-9]*(?:e[0-9]{1,2})?)\s*(\S*)\s*"
)


def parse(key: str, text: str) -> tuple[float, str]:
  """Reads a duration: "5 epochs" -> (5.0, "epochs"); no unit means steps.

  Args:
    key: of the config, for the message.
    text: its value.

  Raises:
    UserError: not a number and a unit.
  """
  match = _DURATION.fullmatch(text)
  unit = match.group(2) if match else ""
  if match and unit != "%":
    unit = (unit or "steps").removesuffix("s") + "s"
  if not match or unit not in _UNITS:
    raise UserError(
      f"{key}={text!r} is not a duration: write a number and its unit, as in "
      f'--config.{key}="500 steps", "3 epochs", "1e6 examples" or "5%".'
    )
  return float(match.group(1)), unit


def plan(config: config_lib.Config, num_examples: int) -> Plan:
  """Turns the config's durations into steps.

  Args:
    config: a valid config.
    num_examples: of the training split.

  Raises:
    UserError: a run of no steps, or a warm-up as long as the whole.
  """

  def steps(key: str, total: int | None) -> int:
    node = config
    for part in key.split("."):
      node = node[part]
    value, unit = parse(key, node)
    if unit == "%":
      if total is None:
        raise UserError(
          f"{key}={node!r}: the whole run can't be a share of itself; give "
          f'steps, epochs or examples, as in --config.{key}="500 steps".'
        )
      return round(value / 100 * total)
    if unit == "epochs":
      value = value * num_examples / config.batch_size
    elif unit == "examples":
      value = value / config.batch_size
    return round(value)

  total = steps("total", None)
  if total < 1:
    raise UserError(
      f"total={config.total!r} comes to less than one step with "
      f"{num_examples} training examples and batch_size={config.batch_size}; "
      'make it longer, as in --config.total="500 steps".'
    )
  warmup = steps("schedule.warmup", total)
  if warmup >= total:
    raise UserError(
      f"schedule.warmup={config.schedule.warmup!r} ({warmup} steps) is not "
      f"shorter than total={config.total!r} ({total} steps); lower it, as in "
      '--config.schedule.warmup="5%".'
    )
  every = (
    max(1, steps(k, total))
    for k in ("log_every", "eval_every", "checkpoint_every")
  )
  kept = max(1, steps("keep_every", total)) if config.keep_every else 0
  return Plan(total, warmup, *every, keep_every=kept)
