"""What `benchmarks.peers` does with its contenders."""

import argparse
import pathlib
import statistics
from typing import Any

import numpy as np

from benchmarks.peer_field import Field
from benchmarks.peer_process import Setting
from mixer.errors import UserError

PASSES = ("forward", "train")
# (contender, pass) -> the place of its best setting.
Chosen = dict[tuple[str, str], int]
# Relative differences that are rounding alone, by dtype: of logits, and of
# gradients and losses.
_BOUNDS = {"float32": (1e-4, 1e-3), "bfloat16": (3e-2, 2e-1)}
# Of the largest gradient: below it one counts as zero.
_ZERO = 1e-3


def differences(
  ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> dict[str, float]:
  """The largest difference of each array over its largest value.

  Some gradients are zero but for rounding (what is added to all channels of a
  token, LayerNorm takes away): they are measured by the largest of all.

  Args:
    ours: of `peer_server.check`.
    theirs: the same arrays.

  Returns:
    `logits`; or `losses`, and `gradients`: the worst parameter's.

  Raises:
    UserError: the arrays aren't the same ones.
  """
  if {k: v.shape for k, v in ours.items()} != {
    k: v.shape for k, v in theirs.items()
  }:
    raise UserError(
      "the contenders have parameters of other names or shapes: "
      f"{sorted(ours.keys() ^ theirs.keys())[:4]}."
    )
  found: dict[str, float] = {}
  gradients = [v for k, v in ours.items() if k.startswith("gradient/")]
  largest = max((float(np.abs(v).max()) for v in gradients), default=0.0)
  for name, value in ours.items():
    kind = "gradients" if name.startswith("gradient/") else name
    scale = float(np.abs(value).max())
    if kind == "gradients":
      scale = max(scale, _ZERO * largest)
    off = float(np.abs(theirs[name] - value).max()) / scale
    # NaN is never within a bound.
    found[kind] = float(np.maximum(found.get(kind, 0.0), off))
  return found


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path) as file:
    return dict(file)


def _agree(
  field: Field,
  folder: pathlib.Path,
  work: dict[str, Any],
  name: str,
  settings: dict[str, Setting],
) -> dict[str, Any]:
  """How far a contender is from ours.

  Raises:
    UserError: too far for rounding.
  """
  off: dict[str, float] = {}
  for what in PASSES:
    ours, theirs = folder / f"ours_{what}.npz", folder / "theirs.npz"
    if not ours.exists():
      field.ours.check(what, "", ours)
    settings[what].peer.check(what, settings[what].variant, theirs)
    off |= differences(_read(ours), _read(theirs))
  logits, rest = _BOUNDS[work["dtype"]]
  bounds = {"logits": logits, "losses": rest, "gradients": rest}
  told = ", ".join(f"{k} within {v:.1e}" for k, v in off.items())
  print(f"  {name:<20} computes the same: {told} (relative)", flush=True)
  wrong = [k for k, v in off.items() if not v <= bounds[k]]
  if wrong:
    raise UserError(
      f"{name} doesn't compute what ours does: {wrong[0]} of "
      f"{work['variant']} differ by {off[wrong[0]]:.1e}, where rounding in "
      f"{work['dtype']} makes {bounds[wrong[0]]:.0e} at most."
    )
  return {"model": work["variant"], "peer": name, "relative": off}


def _try(
  field: Field, chosen: Chosen, work: dict[str, Any], seconds: float
) -> list[dict[str, Any]]:
  """Finds the fastest setting of each contender for each pass."""
  found = []
  for what in PASSES:
    for name in field.settings:
      settings = field.of(name, what)
      if len(settings) == 1:
        chosen[name, what] = 0
        continue
      # The better of two turns, as whatever disturbs a machine slows it down.
      turns = [
        [s.peer.rate(what, s.variant, seconds) for s in settings]
        for _ in range(2)
      ]
      rates = [max(both) for both in zip(*turns, strict=True)]
      chosen[name, what] = int(np.argmax(rates))
      for setting, rate in zip(settings, rates, strict=True):
        told = f"  {what:<8} {name:<14} {setting.name:<40} {rate:9,.1f}"
        print(told, flush=True)
        found.append(
          {
            "model": work["variant"],
            "pass": what,
            "peer": name,
            "variant": setting.name,
            "images_per_second": rate,
          }
        )
  return found


def compare(
  field: Field,
  folder: pathlib.Path,
  work: dict[str, Any],
  chosen: Chosen,
  record: dict[str, Any],
  args: argparse.Namespace,
) -> None:
  """Checks, tries and times one model.

  Args:
    field: its contenders.
    folder: for what they compute.
    work: see `peers.make_work`.
    chosen: the best settings; found and filled in where it is empty.
    record: gets its rows, trials and agreements.
    args: `rounds`, `seconds` and `trial`.

  Raises:
    UserError: a contender stops, or doesn't compute the same.
  """
  model = work["variant"]
  print(f"\n{model}, batch {work['batch']}, {work['dtype']}", flush=True)
  if not chosen:
    record["trials"] += _try(field, chosen, work, args.trial)
  settings = {
    name: {what: field.of(name, what)[chosen[name, what]] for what in PASSES}
    for name in field.settings
  }
  for name, by_pass in settings.items():
    found = _agree(field, folder, work, name, by_pass)
    record["agreement"].append(found)
  for what in PASSES:
    rates: dict[str, list[float]] = {"": [], **{n: [] for n in settings}}
    for i in range(args.rounds + 1):
      seconds = args.seconds if i else 0.0  # The first one warms all up.
      turn = {"": field.ours.rate(what, "", seconds)}
      for name, by_pass in settings.items():
        setting = by_pass[what]
        turn[name] = setting.peer.rate(what, setting.variant, seconds)
      for name, rate in turn.items():
        rates[name] += [rate] * bool(i)
    for name, by_pass in settings.items():
      row = _row(work, what, rates[""], rates[name])
      row |= {"peer": name, "variant": by_pass[what].name}
      record["rows"].append(row)
      print(line(row), flush=True)


def _row(
  work: dict[str, Any], what: str, ours: list[float], theirs: list[float]
) -> dict[str, Any]:
  """Medians of images/s; the spread is of ratios in the same round."""
  ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
  medians = statistics.median(ours), statistics.median(theirs)
  return {
    "model": work["variant"],
    "pass": what,
    "batch": work["batch"],
    "dtype": work["dtype"],
    "ours": medians[0],
    "peer": "",
    "theirs": medians[1],
    "ratio": medians[0] / medians[1],
    "spread": [min(ratios), max(ratios)],
    "rounds": {"ours": ours, "theirs": theirs},
  }


def line(row: dict[str, Any]) -> str:
  """A row as it is printed."""
  least, most = row["spread"]
  return (
    f"  {row['pass']:<8} ours {row['ours']:8,.1f}  {row['peer']:<18} "
    f"{row['theirs']:8,.1f}  {row['ratio']:5.2f}x "
    f"({least:.2f} to {most:.2f})  {row['variant']}"
  )
