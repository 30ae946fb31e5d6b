r"""Predicts memory, communication, time and cost of a run before it is paid.

  python -m mixer plan --config=configs/mixer_b16_i21k.py --hardware=v5e-64
  python -m mixer plan --config=configs/mixer_b16_i21k.py --hardware=v5e-64 \
    --price=1.2 --formulas
  python -m mixer plan --config=configs/mixer_b16_i21k.py --hardware=v5e-64 \
    --compile

Slices are named as Google's accelerator types are (v5e-64, v6e-8, v5p-64, where
v3, v4 and v5p count TensorCores, two a chip), GPUs as in h100-8. Any key of the
config can be changed as for train.py.

--compile also asks the real compiler, for TPUs (jax[tpu]) or an H100
(jax[cuda13]), on any machine, without the device, for memory and traffic. That
takes a minute or more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from etils import epy

from mixer import flags
from mixer.errors import UserError

with epy.lazy_imports():
  import jax

  import input_pipeline
  from mixer import compiling, hardware, planning, validation
  from mixer import config as config_lib
  from mixer.datasets import catalog
  from mixer.datasets import split as split_lib

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


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  add = parser.add_argument
  add("--hardware", required=True, help="slice, such as v5e-64 or h100-8")
  add("--examples", type=flags.positive, help="of the training split")
  add("--classes", type=flags.positive, help="of the data set")
  real = flags.number(float, 0, 1e9)
  add("--price", type=real, help="dollars a chip and hour")
  add("--cores", type=real, help="of each host")
  add("--core_rate", type=real, help="images/s that one core decodes")
  add("--compile", action="store_true", help="ask the real compiler too")
  add("--json", action="store_true", help="for programs")
  add("--formulas", action="store_true", help="print the formulas too")
  flags.add_config(parser, "--hardware=SLICE")


def main(args: argparse.Namespace) -> None:
  """Prints the table and what it comes to."""
  target = hardware.parse(args.hardware)
  if args.compile:
    compiling.compiler_of(target)  # First: there may be none.
  compiling.prepare()
  jax.config.update("jax_platforms", "cpu")
  config = args.config
  validation.validate(config, target.num_devices)
  examples, classes, source = data_size(config, args.examples, args.classes)
  plan = planning.predict(
    config, target, examples, classes, args.cores, args.core_rate
  )
  compiled = None
  if args.compile:
    compiled = compiling.compile_step(config, target, examples, classes)
  sections = table(plan, source, args.price)
  sentences = verdict(plan, config)
  formulas = planning.FORMULAS if args.formulas else {}
  if args.json:
    values = {
      "sections": {
        title: {line[1]: line[2] for line in lines}
        for title, lines in sections.items()
      },
      "fits": plan.fits,
      "bottleneck": plan.bottleneck,
      "verdict": sentences,
      "compiled": compiled and dataclasses.asdict(compiled),
      "formulas": formulas,
    }
    print(json.dumps(values, indent=2))
    return
  for title, lines in sections.items():
    print(title)
    for key, name, value, unit, note in lines:
      more = "  ".join(filter(None, [key and f"[{key}]", note]))
      print(f"  {name:<26}{number(value, unit):>16}  {more}".rstrip())
    print()
  if formulas:
    print("formulas")
    print("".join(f"  {k:<12} {v}\n" for k, v in formulas.items()))
  if compiled:
    print(compiled_text(compiled, plan))
  print("\n".join(sentences))
  if args.price is None:
    print("For the cost, say what a chip and hour costs: --price=1.20.")


def data_size(
  config: config_lib.Config, examples: int | None, classes: int | None
) -> tuple[int, int, str]:
  """(examples, classes, where these numbers are from), as far as not given."""
  if examples and classes:
    return examples, classes, "as given"
  d = config.data
  name = catalog.base_name(d.name)
  try:
    if name in catalog.SHIPPED:  # Opening would prepare it.
      raise UserError("")
    split = input_pipeline.open_splits(config)[0]
    found, source = (len(split), len(split.class_names)), "as prepared"
  except UserError as e:
    if name not in catalog.SIZES:
      raise UserError(
        f"{e} Or say how large it is by --examples=N --classes=K."
      ) from e
    num, splits = catalog.SIZES[name]
    parts = split_lib.parts(
      name, d.train_split, {k: [n] for k, n in splits.items()}
    )
    found, source = (sum(b - a for _, a, b in parts), num), "as published"
    if d.examples_per_class:
      found = min(found[0], d.examples_per_class * found[1]), found[1]
  source += ", or as given" * bool(examples or classes)
  return examples or found[0], classes or found[1], source


def table(
  p: planning.Plan, source: str, price: float | None
) -> dict[str, list[tuple[str, str, float, str, str]]]:
  """All numbers of a plan, in the order in which they are printed.

  Args:
    p: the plan.
    source: where the number of examples is from.
    price: of a chip and hour in dollars; None if it isn't known.

  Returns:
    Lines by title: key of `planning.FORMULAS`, name, value, unit, note.
  """
  target, seconds = p.target, p.seconds
  grid = "x".join(map(str, target.grid))
  chips = f"{target.num_chips} chips as {grid}" if grid else "GPUs"
  each = f"{p.batch_size // target.num_devices} a device"
  cores = f"of {target.host_cores:g} usual there"
  days, rate = p.steps * p.step_seconds / 86_400, p.batch_size / p.step_seconds
  cost = []
  if price is not None:
    note = f"at ${price:g} a chip and hour"
    cost = [("", "cost", p.chip_hours * price, "$", note)]
  return {
    "run": [
      ("", "devices", target.num_devices, "", chips),
      ("", "hosts", target.num_hosts, "", ""),
      ("", "batch", p.batch_size, "images", each),
      ("", "training examples", p.examples, "", source),
      ("", "classes", p.num_classes, "", ""),
      ("", "updates", p.steps, "", ""),
    ],
    "model": [
      ("parameters", "parameters", p.parameters, "", ""),
      ("flop", "operations an update", p.flop, "FLOP", ""),
      ("", "operations of the run", p.flop * p.steps, "FLOP", ""),
    ],
    "memory of a device": [
      ("state", "weights", p.weights, "B", ""),
      ("state", "optimizer, average", p.optimizer, "B", ""),
      ("batch", "batch", p.batch, "B", ""),
      ("activations", "activations", p.activations, "B", ""),
      ("gradients", "gradients", p.gradients, "B", ""),
      ("memory", "together", p.memory, "B", ""),
      ("", "that a program can have", p.limit, "B", ""),
    ],
    "communication of an update": [
      ("reduced", "gradients, weights", p.reduced, "B", "a device sends"),
      ("permuted", "neighbours, for mixup", p.permuted, "B", ""),
    ],
    "input of a host": [
      ("input", "images to decode", p.host_images, "images/s", ""),
      ("", "shipped to devices", p.host_bytes, "B/s", ""),
      ("input", "cores busy", p.host_cores, "cores", cores),
    ],
    "time": [
      ("matmuls", "matmuls", seconds["matmuls"], "s", ""),
      ("traffic", "memory traffic", p.traffic, "B", ""),
      ("memory_time", "memory", seconds["memory"], "s", ""),
      ("links", "links", seconds["links"], "s", ""),
      ("input", "input", seconds["input"], "s", ""),
      ("step", "an update", p.step_seconds, "s", f"{p.mfu:.0%} MFU"),
      ("", "images a second", rate, "images/s", ""),
      ("", "the run", days, "d", ""),
      ("", "chip-hours", p.chip_hours, "h", ""),
      *cost,
    ],
  }


def number(value: float, unit: str) -> str:
  """With as many digits as mean something, and a unit of a fitting size."""
  match unit:
    case "s":
      return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.2f} s"
    case "FLOP":
      return f"{value:.2e} FLOP".replace("e+", "e")
    case "B" if value >= 2**28:
      return f"{value / 2**30:,.2f} GiB"
    case "B":
      return f"{value / 2**20:,.2f} MiB"
    case "B/s":
      return f"{value / 1e6:,.0f} MB/s"
    case "$":
      return f"${value:,.0f}"
    case "d" if value < 1 / 24:
      return f"{value * 1440:,.1f} minutes"
    case "d":
      return f"{value * 24:,.1f} h" if value < 2 else f"{value:,.1f} days"
  digits = 0 if value == int(value) or value >= 100 else 1
  return f"{value:,.{digits}f} {unit}".strip()


def verdict(plan: planning.Plan, config: config_lib.Config) -> list[str]:
  """What it comes to: whether it fits, what holds it up, what mends that."""
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


def _mend_memory(plan: planning.Plan, config: config_lib.Config) -> str:
  """The first change, of those that leave the update what it is, that fits."""
  each = plan.batch_size // plan.target.num_devices
  parts = [a for a in (2, 4, 8, 16) if each % a == 0]
  for remat, accumulate in (
    ("block", config.optimizer.accumulate),
    *((config.model.remat, a) for a in parts),
    *(("block", a) for a in (*parts, each)),
  ):
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
      changed.model.remat, changed.optimizer.accumulate = remat, accumulate
    other = planning.predict(
      changed, plan.target, plan.examples, plan.num_classes
    )
    if other.fits:
      flags = f"--config.model.remat={remat}" * (remat != config.model.remat)
      if accumulate != config.optimizer.accumulate:
        flags += f" --config.optimizer.accumulate={accumulate}"
      return (
        f"{flags.strip()} would take {other.memory / 2**30:.2f} GiB and "
        f"{other.step_seconds / plan.step_seconds:.2f} times as long."
      )
  return (
    "Neither recomputation nor accumulation mends it: take more or larger "
    "chips, or split the weights by --config.sharding.fsdp=N."
  )


def compiled_text(compiled: compiling.Compiled, plan: planning.Plan) -> str:
  """What a compiler says, beside what the formulas say."""
  if not compiled.fits and not compiled.peak:
    return f"{compiled.compiler}: it doesn't fit: {compiled.reason}.\n"
  lines = [
    f"{compiled.compiler}, in {compiled.seconds:.0f} s",
    f"  {'':<26}{'compiler':>16}{'formula':>16}{'ratio':>8}",
  ]
  for name, value, formula in (
    ("arguments", compiled.arguments, plan.arguments),
    ("temporaries", compiled.temporaries, plan.activations + plan.gradients),
    ("peak", compiled.peak, plan.memory),
    ("memory traffic", compiled.traffic, plan.traffic),
  ):
    said = "not said" if value is None else number(value, "B")
    ratio = f"{formula / value:.2f}" if value else ""
    lines.append(
      f"  {name:<26}{said:>16}{number(formula, 'B'):>16}{ratio:>8}".rstrip()
    )
  end = "fits" if compiled.fits else f"doesn't fit: {compiled.reason}"
  return "\n".join([*lines, f"  It {end}.", ""])
