"""What may differ between two starts of a run, and what follows from it."""

from collections.abc import Iterable, Mapping
from typing import Any

from mixer import config as config_lib
from mixer import durations, text
from mixer.errors import UserError

# What --allow_change calls the data set's identity: no key of the config.
DATA_SET = "data_set"
# Keys that decide which arrays an optimizer's state has.
_STATE = (
  "optimizer.name",
  "optimizer.train",
  "optimizer.lr_factors",
  "optimizer.ema_decay",
  "optimizer.clip_norm",
)

Start = Mapping[str, Any]  # As config.json has it.


def check(
  workdir: str, old: Start, new: Start, allow: Iterable[str], step: int
) -> list[str]:
  """Compares a start of a run with the one before.

  Args:
    workdir: of the run, for messages.
    old: `config` and `resolved` of the earlier start.
    new: of this one.
    allow: keys, besides `config.FREE_KEYS`, that may differ.
    step: updates done.

  Returns:
    Sentences about what follows from the differences.

  Raises:
    UserError: names what differs and isn't allowed, or can't be gone on with.
  """
  # A key that came later had its default until then.
  defaults = config_lib.to_json(config_lib.default())
  old = {**old, "config": _completed(old["config"], defaults)}
  _check_keys(old, new, allow)
  changed = {
    key: line
    for key, line in config_lib.differences(
      old["config"], new["config"]
    ).items()
    if key not in config_lib.FREE_KEYS
  }
  sets = data_set(old, new)
  if not changed and not sets:  # Then what follows from it can still differ.
    changed = {
      f"resolved.{key}": f"resolved.{line}"
      for key, line in config_lib.differences(
        _plain(old["resolved"]), _plain(new["resolved"])
      ).items()
      if key not in config_lib.FREE_KEYS
    }
  refused = [line for key, line in changed.items() if key not in allow]
  what, those = ("config", "values") if refused else ("data set", "one")
  refused += [] if DATA_SET in allow else sets
  if refused:
    names = [*changed, DATA_SET] if sets else [*changed]
    raise UserError(
      f"--workdir={workdir} was made with another {what}:\n  "
      + "\n  ".join(map(text.printable, refused))
      + f"\nUse the old {those}, or another --workdir; to "
      "go on with the new values all the same, add "
      f"--allow_change={','.join(names)}.",
      lines=True,
    )
  _check_state(workdir, old, new)
  _check_total(workdir, new, step)
  return [
    *_unknown_set(old, new),
    *_rate(old, new, step),
    *_epochs(old, new, step),
  ]


def _completed(
  config: dict[str, Any], defaults: dict[str, Any]
) -> dict[str, Any]:
  """A config, and what it has no key for."""
  groups = {
    key: _completed(config.get(key, {}), value)
    for key, value in defaults.items()
    if isinstance(value, dict) and isinstance(config.get(key, {}), dict)
  }
  return defaults | config | groups


def _check_keys(old: Start, new: Start, allow: Iterable[str]) -> None:
  known = {DATA_SET}
  for start in (old, new):  # A key may be gone since.
    known |= {*config_lib.flatten(start["config"])}
    known |= {f"resolved.{k}" for k in start["resolved"]}
  for key in allow:
    if key not in known:
      near = config_lib.near(key)
      meant = f"; did you mean --allow_change={near}?" if near else "."
      raise UserError(
        f"--allow_change={key}: that is no key of the config{meant}"
      )


def _plain(resolved: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in resolved.items() if k != DATA_SET}


def data_set(old: Start, new: Start) -> list[str]:
  """A line for each part of the identity that is known and differs."""
  a, b = (start["resolved"].get(DATA_SET) for start in (old, new))
  if not a or not b:
    return []
  # Groups that one lacks follow from the config, as few-shot evaluation does.
  a, b = ({k: v for k, v in x.items() if k in y} for x, y in ((a, b), (b, a)))
  a, b = config_lib.flatten(a), config_lib.flatten(b)
  unknown = {k for k, v in (*a.items(), *b.items()) if v == ""}
  lines = config_lib.differences(a, b)
  return [f"{DATA_SET}.{v}" for k, v in lines.items() if k not in unknown]


def _unknown_set(old: Start, new: Start) -> list[str]:
  if old["resolved"].get(DATA_SET) or not new["resolved"].get(DATA_SET):
    return []
  return [
    "this run was begun by a version that did not write down which data set "
    "it read; that of now is taken for it, and is compared from now on."
  ]


def _check_state(workdir: str, old: Start, new: Start) -> None:
  """Refuses an optimizer that the checkpoints have no state of.

  Raises:
    UserError: names the keys.
  """
  a, b = (_state(start) for start in (old, new))
  keys = [key for key in _STATE if a[key] != b[key]]
  if keys:
    raise UserError(
      f"{' and '.join(keys)} can't change in --workdir={workdir}: the state "
      "that its checkpoints hold is of another optimizer. Use the old "
      f"{'value' if len(keys) == 1 else 'values'}, or start in another "
      f"--workdir from the weights: --config.init_from={workdir} "
      "--config.init_head=keep."
    )


def _state(start: Start) -> dict[str, Any]:
  """By key of `_STATE`, that of its value which decides."""
  flat = config_lib.flatten(start["config"])
  values = {key: flat.get(key) for key in _STATE}
  for key in ("optimizer.ema_decay", "optimizer.clip_norm"):
    values[key] = bool(values[key])
  # Of a pattern that leaves no parameter as it is, there is nothing to see.
  factors = values["optimizer.lr_factors"] or []
  if all(bool(factor) for _, factor in factors):
    factors = []
  values["optimizer.lr_factors"] = [(k, bool(v)) for k, v in factors]
  return values


def _check_total(workdir: str, new: Start, step: int) -> None:
  """Refuses an end that lies behind.

  Raises:
    UserError: says how far the run is.
  """
  total = new["resolved"].get("total", step)
  if total < step:
    raise UserError(
      f"total={new['config']['total']!r} comes to {total:,} steps, and the run "
      f"in --workdir={workdir} has done {step:,}. Make it longer, or start "
      "another --workdir."
    )


def _rate(old: Start, new: Start, step: int) -> list[str]:
  """About a learning rate that is another from one update to the next."""
  if not step or _schedule(old) == _schedule(new):
    return []
  before, after = (_rate_at(start, step) for start in (old, new))
  if before is None or after is None or before == after:
    return []
  return [
    f"the learning rate after step {step:,} is {after:.3g}, and would be "
    f"{before:.3g} with the values of before."
  ]


def _schedule(start: Start) -> tuple[Any, ...]:
  """All that the learning rate depends on."""
  flat = config_lib.flatten(start["config"])
  keys = ("optimizer.learning_rate", "schedule.decay")
  times = (start["resolved"].get(key) for key in ("total", "warmup"))
  return (*times, *(flat.get(key) for key in keys))


def _rate_at(start: Start, step: int) -> float | None:
  """The learning rate after `step` updates; None where it isn't known."""
  from mixer import optim  # Slow to import, and seldom needed.

  total, warmup, *_ = _schedule(start)
  plan = durations.Plan(total, warmup, 1, 1, 1)
  try:
    config = config_lib.from_json(start["config"], start["resolved"])
    # A schedule goes on for ever with its last value.
    rate: Any = optim.schedule(config, plan)(step)
    return float(rate)
  except (TypeError, ValueError, KeyError):  # Of a start of another version.
    return None


def _epochs(old: Start, new: Start, step: int) -> list[str]:
  """About a place in the order of examples that is another."""
  before, after = (start["config"].get("batch_size") for start in (old, new))
  size = new["resolved"].get("train_examples")
  if not step or not size or before == after or not isinstance(before, int):
    return []
  return [
    f"batch_size: {before} -> {after}: batches are counted as if all had had "
    f"the new size, so the run goes on at epoch {step * after / size:.2f} of "
    f"the examples' order; it was at {step * before / size:.2f}."
  ]
