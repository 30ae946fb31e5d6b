r"""Predicts memory, communication, time and cost of a run before it is paid.

  python -m mixer plan --config=configs/mixer_b16_i21k.py --hardware=v5e-64
  python -m mixer plan --config=configs/mixer_b16_i21k.py --hardware=v5e-64 \
    --price=1.2
  python -m mixer plan --config=configs/mixer_b16_i21k.py --hardware=v5e-64 \
    --compile

Slices are named as Google's accelerator types are (v5e-64, v6e-8; v3, v4, v5p
count TensorCores), GPUs as in h100-8. Keys of the config are changed as for
train.py. --compile also asks the real compiler, without the device, for memory
and traffic: for TPUs (jax[tpu]) or an H100 (jax[cuda13]), in a minute or more.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from etils import epy

from mixer import flags
from mixer.errors import UserError

with epy.lazy_imports():
  import jax

  import input_pipeline
  from mixer import config as config_lib
  from mixer import hardware, planning, validation
  from mixer.datasets import catalog
  from mixer.datasets import split as split_lib

_MENDS = {
  "matmuls": "as it should be; more or faster chips shorten it",
  "memory": "larger patches, more images a device, a chip with more bandwidth "
  "or --config.model.remat=none shorten it",
  "links": "a larger batch, fewer devices, --config.sharding.reduce_dtype="
  "bfloat16, or on more than 16 TPU chips --config.sharding.zero1=False (which "
  "takes more memory) shorten it",
  "input": "more cores of the hosts (--cores says how many), more hosts, or "
  "`mixer prepare ... --resize=256` shorten it",
}
# What the compilers read when JAX starts, in a process that computes nothing.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",  # There is no such server to ask.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Nobody's devices are taken.
  "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # Of a driver that isn't there.
  "TF_CPP_MIN_LOG_LEVEL": "3",
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
  flags.add_config(parser, "--hardware=SLICE")


def main(args: argparse.Namespace) -> None:
  """Prints the table and what it comes to."""
  target = hardware.parse(args.hardware)
  if args.compile:
    planning.compiler_of(target)  # First: there may be none.
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
  config = args.config
  validation.validate(config, target.num_devices)
  examples, classes, source = data_size(config, args.examples, args.classes)
  size = examples, classes
  plan = planning.predict(config, target, *size, args.cores, args.core_rate)
  compiled = None
  if args.compile:
    compiled = planning.compile_step(config, target, *size)
  lines = table(plan, size, source, args.price)
  sentences = verdict(plan, config, size)
  if args.json:
    values = {
      "numbers": {name: value for name, value, *_ in lines},
      "fits": plan.fits,
      "bottleneck": plan.bottleneck,
      "verdict": sentences,
      "compiled": compiled,
    }
    print(json.dumps(values, indent=2))
    return
  for name, value, unit, note in lines:
    print(f"{name:<26}{number(value, unit):>18}  {note}".rstrip())
  print()
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
  p: planning.Plan, size: tuple[int, int], source: str, price: float | None
) -> list[tuple[str, float, str, str]]:
  """Name, value, unit and note of each line; `size` is from `source`."""
  target, rate = p.target, p.batch_size / p.step_seconds
  grid = "x".join(map(str, target.grid))
  chips = f"{target.num_chips} chips as {grid}" if grid else "GPUs"
  found = [
    ("devices", target.num_devices, "", chips),
    ("hosts", target.num_hosts, "", ""),
    ("batch", p.batch_size, "images", ""),
    ("training examples", size[0], "", source),
    ("classes", size[1], "", ""),
    ("updates", p.steps, "", ""),
    ("parameters", p.parameters, "", ""),
    ("operations an update", p.flop, "FLOP", ""),
    ("weights", p.weights, "B", "of memory of a device"),
    ("optimizer, average", p.optimizer, "B", ""),
    ("images", p.batch, "B", ""),
    ("activations", p.activations, "B", ""),
    ("gradients", p.gradients, "B", ""),
    ("memory", p.memory, "B", f"of {number(p.limit, 'B')}"),
    ("communication", p.reduced, "B", "a device sends in an update"),
    ("memory traffic", p.traffic, "B", "of a device in an update"),
    ("images to decode", p.host_images, "images/s", "by each host"),
    ("cores", p.host_cores, "", f"busy of {target.host_cores:g} of a host"),
    *((f"time of {name}", s, "s", "") for name, s in p.seconds.items()),
    ("time of an update", p.step_seconds, "s", f"{p.mfu:.0%} MFU"),
    ("images a second", rate, "", ""),
    ("time of the run", p.steps * p.step_seconds / 3600, "h", ""),
    ("chip-hours", p.chip_hours, "h", ""),
  ]
  if price is not None:
    note = f"at ${price:g} a chip and hour"
    found.append(("cost", p.chip_hours * price, "dollars", note))
  return found


def number(value: float, unit: str) -> str:
  """With as many digits as mean something, and a unit of a fitting size."""
  if unit == "FLOP":
    return f"{value:.2e} FLOP".replace("e+", "e")
  if unit == "s" and value < 1:
    value, unit = value * 1e3, "ms"
  if unit == "B":
    value, unit = value / 2**20, "MiB"
    if value >= 256:
      value, unit = value / 1024, "GiB"
  digits = 0 if value == int(value) or value >= 1000 else 2
  return f"{value:,.{digits}f} {unit}".strip()


def verdict(
  plan: planning.Plan, config: config_lib.Config, size: tuple[int, int]
) -> list[str]:
  """What it comes to: whether it fits, what holds it up, what mends that."""
  have = f"{plan.memory / 2**30:.2f} of {plan.limit / 2**30:.2f} GiB"
  fits = "to fit" if plan.fits else "not to fit"
  found = [f"Predicted {fits}: {have} of each device's memory."]
  if not plan.fits:
    found.append(_mend_memory(plan, config, size))
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


def _mend_memory(
  plan: planning.Plan, config: config_lib.Config, size: tuple[int, int]
) -> str:
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
    other = planning.predict(changed, plan.target, *size)
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


def compiled_text(compiled: dict[str, Any], plan: planning.Plan) -> str:
  """What a compiler says, beside what the formulas say."""
  end = "It fits." if compiled["fits"] else f"no fit: {compiled['reason']}."
  lines = [f"{compiled['compiler']}:"]
  for name, formula in (
    ("arguments", plan.arguments),
    ("temporaries", plan.activations + plan.gradients),
    ("peak", plan.memory),
    ("traffic", plan.traffic),
  ):
    if value := compiled.get(name):
      said = f"{number(value, 'B'):>18}  (formula / compiler"
      lines.append(f"  {name:<24}{said} {formula / value:.2f})")
  return "\n".join([*lines, f"  {end}", ""])
