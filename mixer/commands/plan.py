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

from etils import epy

from mixer import flags
from mixer.errors import UserError

with epy.lazy_imports():
  import jax

  import input_pipeline
  from mixer import config as config_lib
  from mixer import durations, hardware, planning, validation
  from mixer.datasets import catalog
  from mixer.datasets import split as split_lib

_SHORTEN = {
  "matmuls": "more or faster chips",
  "memory": "larger patches, more images a device or --config.model.remat=none",
  "links": "a larger batch, fewer devices, --config.sharding.reduce_dtype="
  "bfloat16, or on more than 16 TPU chips --config.sharding.zero1=False",
  "input": "more cores (--cores), or `mixer prepare ... --resize=256`",
}
# What the compilers read when JAX starts, in a process that computes nothing:
# no server of metadata to ask, no devices to take, no driver to check.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
  "TF_CPP_MIN_LOG_LEVEL": "3",
}
_UNITS = {
  **{"batch": "images", "images to decode": "images/s", "cost": "dollars"},
  **{"operations an update": "FLOP", "optimizer, average": "B"},
  **dict.fromkeys(("weights", "images", "activations", "gradients"), "B"),
  **dict.fromkeys(("memory", "communication", "memory traffic"), "B"),
  **dict.fromkeys(("time of the run", "chip-hours"), "h"),
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
  """Prints the numbers and the verdict."""
  config, target = args.config, hardware.parse(args.hardware)
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
  validation.validate(config, target.num_devices)
  examples, classes, source = data_size(config, args.examples, args.classes)
  more = args.cores, args.core_rate
  plan = planning.predict(config, target, examples, classes, *more)
  sentences = verdict(plan, config, target)
  if args.price is not None:
    plan["cost"] = plan["chip-hours"] * args.price
  steps, compiled = durations.plan(config, examples), None
  if args.compile:
    compiled = planning.compile_step(config, target, steps, classes)
  if args.json:
    values = {
      "numbers": plan,
      "fits": plan["memory"] <= target.program_memory,
      "bottleneck": planning.bottleneck(plan),
      "verdict": sentences,
      "compiled": compiled,
    }
    print(json.dumps(values, indent=2))
    return
  grid = "x".join(map(str, target.grid))
  could = plan["devices"] * target.chip.flops * plan["time of an update"]
  notes = {
    "devices": f"{target.num_chips} chips as {grid}" if grid else "GPUs",
    "training examples": source,
    "memory": f"of {number(target.program_memory, 'B')} of a device",
    "cores": f"busy of {target.host_cores:g} of a host",
    "time of an update": f"{plan['operations an update'] / could:.0%} MFU",
    "cost": f"at ${args.price or 0:g} a chip and hour (--price)",
  }
  for name, value in plan.items():
    unit = _UNITS.get(name, "s" if name.startswith("time of") else "")
    line = f"{name:<26}{number(value, unit):>18}  {notes.get(name, '')}"
    print(line.rstrip())
  print("", *sentences, sep="\n")
  if compiled:
    rest = plan["activations"] + plan["gradients"]
    formulas = {
      "arguments": plan["memory"] - rest,
      "temporaries": rest,
      "peak": plan["memory"],
      "traffic": plan["memory traffic"],
    }
    print(f"\n{compiled['compiler']}:")
    for name, formula in formulas.items():
      if value := compiled.get(name):
        ratio = f"(formula / compiler {formula / value:.2f})"
        print(f"  {name:<24}{number(value, 'B'):>18}  {ratio}")
    why = compiled["reason"]
    print("  It fits." if compiled["fits"] else f"  It does not fit: {why}.")


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
    known = {**catalog.ENTRIES, "jft_300m": catalog.JFT_300M}.get(name)
    if not known or not known.train:
      raise UserError(
        f"{e} Or say how large it is by --examples=N --classes=K."
      ) from e
    parts = split_lib.parts(name, d.train_split, {"train": [known.train]})
    total = sum(stop - start for _, start, stop in parts)
    few = d.examples_per_class * known.classes or total
    found, source = (min(total, few), known.classes), "as published"
  return examples or found[0], classes or found[1], source


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
  plan: dict[str, float], config: config_lib.Config, target: hardware.Slice
) -> list[str]:
  """Whether it fits, what the bottleneck is, and what mends either."""
  fits = plan["memory"] <= target.program_memory
  have, limit = number(plan["memory"], "B"), number(target.program_memory, "B")
  how = "to fit" if fits else "not to fit"
  slowest = planning.bottleneck(plan)
  return [
    f"Predicted {how}: {have} of each device's {limit}.",
    *([] if fits else [_mend_memory(plan, config, target)]),
    f"The bottleneck is {slowest}: {_SHORTEN[slowest]} shorten it.",
    "All of this is predicted, without start, evaluation and saving; "
    "docs/scaling.md says how far off such predictions have been.",
  ]


def _mend_memory(
  plan: dict[str, float], config: config_lib.Config, target: hardware.Slice
) -> str:
  """The first change, of those that leave the update what it is, that fits."""
  size = int(plan["training examples"]), int(plan["classes"])
  now = config.optimizer.accumulate
  for accumulate in (now, *(a for a in (2, 4, 8, 16) if a > now)):
    if plan["batch"] / plan["devices"] % accumulate:
      continue
    keys = {"model.remat": "block", "optimizer.accumulate": accumulate}
    other = planning.predict(config_lib.changed(config, keys), target, *size)
    if other["memory"] <= target.program_memory:
      words = " ".join(config_lib.override(*key) for key in keys.items())
      longer = other["time of an update"] / plan["time of an update"]
      return f"{words} would fit, and take {longer:.2f} times as long."
  return (
    "Take more or larger chips, or split weights: --config.sharding.fsdp=N."
  )
