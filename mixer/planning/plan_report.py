"""A plan in numbers with units, and in sentences."""

import dataclasses
from typing import Any

from mixer import config as config_lib
from mixer.planning import compiling, formulas

_MENDS = {
  "matmuls": "the matmuls, as it should be: more or faster chips shorten it",
  "memory": "the traffic between a device's memory and its cores: larger "
  "patches or a chip with more bandwidth shorten it; "
  "--config.model.remat=none, where it isn't so, and more images a device help "
  "a little",
  "links": "the links between devices: a larger batch, fewer devices, or "
  "--config.sharding.reduce_dtype=bfloat16 shorten it; on more than 16 TPU "
  "chips --config.sharding.zero1=False halves it and takes more memory",
  "input": "the hosts' cores, which decode images: more of them (--cores says "
  "how many), `mixer prepare ... --resize=256`, or more hosts shorten it",
}


@dataclasses.dataclass(frozen=True)
class Line:
  """One number.

  Attributes:
    key: of `formulas.FORMULAS` where it has one, else "".
    name: for a person.
    value: in the base unit.
    unit: B, s, h, d, $, "" and so on.
    note: what else is to be said.
  """

  key: str
  name: str
  value: float
  unit: str = ""
  note: str = ""


def sections(
  plan: formulas.Plan, source: str, price: float | None
) -> dict[str, list[Line]]:
  """All numbers of a plan, in the order in which they are printed.

  Args:
    plan: of `formulas.predict`.
    source: where the number of examples is from.
    price: of a chip and hour in dollars; None if it isn't known.
  """
  p, target = plan, plan.target
  chips = f"{target.num_chips} chips" if target.grid else "GPUs"
  grid = f" as {'x'.join(map(str, target.grid))}" if target.grid else ""
  cost = []
  if price is not None:
    note = f"at ${price:g} a chip and hour"
    cost = [Line("", "cost", p.chip_hours * price, "$", note)]
  images = p.batch_size // target.num_devices
  return {
    "run": [
      Line("", "devices", target.num_devices, "", f"{chips}{grid}"),
      Line("", "hosts", target.num_hosts),
      Line("", "batch", p.batch_size, "images", f"{images} a device"),
      Line("", "training examples", p.examples, "", source),
      Line("", "classes", p.num_classes),
      Line("", "updates", p.steps),
    ],
    "model": [
      Line("parameters", "parameters", p.parameters),
      Line("flop", "operations an update", p.flop, "FLOP"),
      Line("", "operations of the run", p.flop * p.steps, "FLOP"),
    ],
    "memory of a device": [
      Line("state", "weights", p.weights, "B"),
      Line("state", "optimizer, average", p.optimizer, "B"),
      Line("batch", "batch", p.batch, "B"),
      Line("activations", "activations", p.activations, "B"),
      Line("gradients", "gradients", p.gradients, "B"),
      Line("memory", "together", p.memory, "B"),
      Line("", "that a program can have", p.limit, "B"),
    ],
    "communication of an update": [
      Line("reduced", "gradients, weights", p.reduced, "B", "a device sends"),
      Line("permuted", "neighbours, for mixup", p.permuted, "B"),
    ],
    "input of a host": [
      Line("input", "images to decode", p.host_images, "images/s"),
      Line("", "shipped to devices", p.host_bytes, "B/s"),
      Line(
        "input",
        "cores busy",
        p.host_cores,
        "cores",
        f"of {target.host_cores:g} usual there",
      ),
    ],
    "time": [
      Line("matmuls", "matmuls", p.seconds["matmuls"], "s"),
      Line("traffic", "memory traffic", p.traffic, "B"),
      Line("memory_time", "memory", p.seconds["memory"], "s"),
      Line("links", "links", p.seconds["links"], "s"),
      Line("input", "input", p.seconds["input"], "s"),
      Line("step", "an update", p.step_seconds, "s", f"{p.mfu:.0%} MFU"),
      Line("", "images a second", p.batch_size / p.step_seconds, "images/s"),
      Line("", "the run", p.run_seconds / 86_400, "d"),
      Line("", "chip-hours", p.chip_hours, "h"),
      *cost,
    ],
  }


def number(value: float, unit: str) -> str:
  """With as many digits as mean something, and a unit of a fitting size."""
  if unit == "s":
    return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.2f} s"
  if unit == "FLOP":
    return f"{value:.2e} FLOP".replace("e+", "e")
  if unit == "B":
    if value >= 2**28:
      return f"{value / 2**30:,.2f} GiB"
    return f"{value / 2**20:,.2f} MiB"
  if unit == "B/s":
    return f"{value / 1e6:,.0f} MB/s"
  if unit == "$":
    return f"${value:,.0f}"
  if unit == "d":
    if value < 1 / 24:
      return f"{value * 1440:,.1f} minutes"
    return f"{value * 24:,.1f} h" if value < 2 else f"{value:,.1f} days"
  digits = 0 if value == int(value) or value >= 100 else 1
  return f"{value:,.{digits}f} {unit}".strip()


def text(found: dict[str, list[Line]], *, with_formulas: bool = False) -> str:
  """The table that is printed."""
  lines = []
  for title, rows in found.items():
    lines.append(title)
    for row in rows:
      key = f"[{row.key}]" if row.key else ""
      more = "  ".join(filter(None, [key, row.note]))
      lines.append(
        f"  {row.name:<26}{number(row.value, row.unit):>16}  {more}".rstrip()
      )
    lines.append("")
  if with_formulas:
    lines.append("formulas")
    lines += [f"  {k:<12} {v}" for k, v in formulas.FORMULAS.items()]
    lines.append("")
  return "\n".join(lines)


def verdict(plan: formulas.Plan, config: config_lib.Config) -> list[str]:
  """What it comes to: whether it fits, what holds it up, what mends that.

  Args:
    plan: of `formulas.predict`.
    config: that it is of.
  """
  have = f"{plan.memory / 2**30:.2f} of {plan.limit / 2**30:.2f} GiB"
  found = [f"Predicted to fit: {have} of each device's memory."]
  if not plan.fits:
    found = [f"Predicted not to fit: {have} of each device's memory."]
    found.append(_mend_memory(plan, config))
  found.append(
    f"The bottleneck is {plan.bottleneck}: {_MENDS[plan.bottleneck]}."
  )
  if plan.host_cores > plan.target.host_cores:
    found.append(
      f"Each host would have to have {plan.host_cores:.0f} cores to keep up, "
      f"and usually has {plan.target.host_cores:g}."
    )
  found.append(
    "All of this is predicted, without start, evaluation and saving; "
    "docs/scaling.md says how far off such predictions have been."
  )
  return found


def compiled_text(compiled: compiling.Compiled, plan: formulas.Plan) -> str:
  """What a compiler says, beside what the formulas say."""
  if not compiled.fits and not compiled.peak:
    return f"{compiled.compiler}: it doesn't fit: {compiled.reason}.\n"
  temporaries = plan.activations + plan.gradients
  rows = [
    ("arguments", compiled.arguments, plan.arguments),
    ("temporaries", compiled.temporaries, temporaries),
    ("peak", compiled.peak, plan.memory),
    ("memory traffic", compiled.traffic, plan.traffic),
  ]
  lines = [
    f"{compiled.compiler}, in {compiled.seconds:.0f} s",
    f"  {'':<26}{'compiler':>16}{'formula':>16}{'ratio':>8}",
  ]
  for name, value, formula in rows:
    said = "not said" if value is None else number(value, "B")
    ratio = f"{formula / value:.2f}" if value else ""
    lines.append(
      f"  {name:<26}{said:>16}{number(formula, 'B'):>16}{ratio:>8}".rstrip()
    )
  end = "fits" if compiled.fits else f"doesn't fit: {compiled.reason}"
  return "\n".join([*lines, f"  It {end}.", ""])


def _mend_memory(plan: formulas.Plan, config: config_lib.Config) -> str:
  """The first change, of those that leave the update what it is, that fits."""
  each = plan.batch_size // plan.target.num_devices
  tries: list[dict[str, Any]] = [{"model.remat": "block"}]
  tries += [{"optimizer.accumulate": a} for a in (2, 4, 8, 16) if each % a == 0]
  tries += [
    {"model.remat": "block", "optimizer.accumulate": a}
    for a in (4, 16, each)
    if each % a == 0
  ]
  for change in tries:
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
      for key, value in change.items():
        group, name = key.split(".")
        changed[group][name] = value
    other = formulas.predict(
      changed, plan.target, plan.examples, plan.num_classes
    )
    if other.fits:
      flags = " ".join(
        config_lib.override(key, value) for key, value in change.items()
      )
      return (
        f"{flags} would take {other.memory / 2**30:.2f} GiB and "
        f"{other.step_seconds / plan.step_seconds:.2f} times as long."
      )
  return (
    "Neither recomputation nor accumulation mends it: take more or larger "
    "chips, or split the weights by --config.sharding.fsdp=N."
  )
