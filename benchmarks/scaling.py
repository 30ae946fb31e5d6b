"""What runs on many devices take: formulas beside XLA's compilers.

  python -m benchmarks.scaling compile [--only=REGEX] [--slice=REGEX]
  python -m benchmarks.scaling weak
  python -m benchmarks.scaling tables

`compile` compiles the training step of every recipe for the slices that its
docstring names, and of two recipes for slices of several sizes, with and
without ZeRO-1: without any such device, but with the compiler for it
(requirements-tpu.txt or requirements-gpu.txt; what this environment lacks is
left out). A row takes a minute or two, so they are written one by one to
benchmarks/results/scaling.json and not made again: --again does that. `weak`
runs a small model on 1 to 8 virtual CPU devices of 1 and 2 processes and
compares what they send with the formula. `tables` writes both, and the
predictions beside published runs, into docs/scaling.md.
"""

import argparse
import dataclasses
import datetime
import importlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
from typing import Any

import jax

from mixer import config as config_lib
from mixer import durations, validation
from mixer.datasets import sizes
from mixer.planning import compiling, formulas, hardware

DOCS = pathlib.Path(__file__).parent.parent / "docs" / "scaling.md"
RESULTS = pathlib.Path(__file__).parent / "results" / "scaling.json"
# Recipe -> what its docstring names.
RECIPES = {
  "mixer_s32_i21k": ("h100-1", "v5e-64"),
  "mixer_s16_i21k": ("h100-4", "v5e-64"),
  "mixer_b32_i21k": ("h100-4", "v5e-64"),
  "mixer_b16_i21k": ("h100-8", "v5e-64"),
  "mixer_l16_i21k": ("h100-8", "v5e-64"),
  "mixer_b16_i1k": ("h100-8", "v5e-64"),
  "mixer_l16_i1k": ("h100-8", "v5e-64"),
  "mixer_b16_i1k_sam": ("h100-8", "v5e-64"),
  "mixer_jft:S/32": ("h100-1",),
  "mixer_jft:S/16": ("h100-4",),
  "mixer_jft:B/32": ("h100-4",),
  "mixer_jft:B/16": ("h100-8",),
  "mixer_jft:L/32": ("h100-8",),
  "mixer_jft:L/16": ("h100-8",),
  "mixer_jft:H/14": ("h100-8",),
  "experiment_permutation_b16": ("h100-8",),
  "experiment_token_mixing_s32": ("h100-1",),
  "finetune": ("h100-1", "v5e-8"),
}
# Those that don't fit there as they are; their docstrings say so.
TOO_LARGE = (
  ("mixer_l16_i21k", "h100-8"),
  ("mixer_l16_i1k", "h100-8"),
  ("mixer_jft:L/16", "h100-8"),
  ("mixer_jft:H/14", "h100-8"),
)
# What changes with the slice: (recipe, slices, changes of the config).
SWEEPS = (
  ("mixer_b16_i21k", ("v5e-8", "v5e-256"), {}),
  ("mixer_b16_i21k", ("v5e-8", "v5e-64", "v5e-256"), {"sharding.zero1": False}),
  (
    "mixer_b16_i21k",
    ("v5e-64",),
    {"sharding.reduce_dtype": "bfloat16"},
  ),
  ("mixer_l16_i21k", ("h100-8",), {"model.remat": "block"}),
  ("mixer_l16_i21k", ("h100-8",), {"optimizer.accumulate": 4}),
  ("mixer_jft:H/14", ("h100-8",), {"optimizer.accumulate": 4}),
)
# Published: (what, recipe, slice, seconds of the run). The paper's table 3 has
# TPU v3 core-days, here as if on 128 cores; big_vision 2 h 11 min on a v3-128.
# All of them kept activations in float32.
PUBLISHED = (
  ("big_vision, ImageNet-1k", "mixer_b16_i1k", "v3-128", 2.1833 * 3600),
  ("paper, S/32", "mixer_jft:S/32", "v3-128", 10 * 86_400 / 128),
  ("paper, S/16", "mixer_jft:S/16", "v3-128", 30 * 86_400 / 128),
  ("paper, B/32", "mixer_jft:B/32", "v3-128", 50 * 86_400 / 128),
  ("paper, B/16", "mixer_jft:B/16", "v3-128", 80 * 86_400 / 128),
  ("paper, L/32", "mixer_jft:L/32", "v3-128", 120 * 86_400 / 128),
  ("paper, L/16", "mixer_jft:L/16", "v3-128", 450 * 86_400 / 128),
  ("paper, H/14", "mixer_jft:H/14", "v3-128", 1010 * 86_400 / 128),
)


def recipe(name: str, changes: dict[str, Any]) -> config_lib.Config:
  """A recipe's config, changed."""
  file, _, argument = name.partition(":")
  module = importlib.import_module(f"configs.{file}")
  config = module.get_config(*([argument] if argument else []))
  for key, value in changes.items():
    *groups, last = key.split(".")
    node = config
    for group in groups:
      node = node[group]
    node[last] = value
  return config


def rows() -> list[tuple[str, str, dict[str, Any]]]:
  """All (recipe, slice, changes) that are compiled."""
  found = [
    (name, target, {}) for name, slices in RECIPES.items() for target in slices
  ]
  for name, slices, changes in SWEEPS:
    found += [(name, target, changes) for target in slices]
  return found


def row_key(name: str, where: str, changes: dict[str, Any]) -> str:
  """A row's key in the results."""
  return " ".join([name, where, *(f"{k}={v}" for k, v in changes.items())])


def size(config: config_lib.Config) -> tuple[int, int]:
  """(examples, classes) of what it trains on."""
  found = sizes.find(config.data.name, config.data.train_split)
  if found is None:
    raise ValueError(f"no known size of {config.data.name}")
  return found


def predict(
  config: config_lib.Config, target: hardware.Slice
) -> dict[str, Any]:
  """The formulas' numbers, as JSON values."""
  plan = formulas.predict(config, target, *size(config))
  found = dataclasses.asdict(plan) | {
    name: getattr(plan, name)
    for name in ("arguments", "memory", "fits", "bottleneck", "step_seconds")
  }
  return {k: v for k, v in found.items() if k != "target"}


def compile_row(
  name: str, target: hardware.Slice, changes: dict[str, Any]
) -> dict[str, Any]:
  """What a compiler says of a recipe, as JSON values."""
  config = recipe(name, changes)
  validation.validate(config, target.num_devices)
  examples, classes = size(config)
  plan = durations.plan(config, examples)
  compiled, _ = compiling.compile_step(config, plan, classes, target)
  return dataclasses.asdict(compiled)


def compile_all(only: str, on: str, again: bool) -> None:
  """Makes the rows that are missing and can be made here."""
  compiling.prepare()
  jax.config.update("jax_platforms", "cpu")
  for name, where, changes in rows():
    target = hardware.parse(where)
    key = row_key(name, where, changes)
    known = _load().get("compiled", {})
    if not re.search(only, key) or not re.search(on, where):
      continue
    if (key in known and not again) or compiling.missing(target):
      continue
    row = compile_row(name, target, changes) | {
      "recipe": name,
      "slice": where,
      "changes": changes,
      "date": datetime.date.today().isoformat(),
    }
    # Another process may have written rows meanwhile.
    _save("compiled", _load().get("compiled", {}) | {key: row})
    fits = "fits" if row["fits"] else row["reason"]
    print(f"{key}: {fits}, {row['seconds']:.0f} s", flush=True)


def _load() -> dict[str, Any]:
  return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def _save(part: str, value: Any) -> None:
  RESULTS.parent.mkdir(exist_ok=True)
  RESULTS.write_text(
    json.dumps(_load() | {part: value}, indent=1) + "\n", "utf-8"
  )


def weak() -> None:
  """One image count a device, on 1 to 8 devices of 1 and 2 processes."""
  found = []
  for processes, devices in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 4)):
    for changes in (
      {"sharding.zero1": False},
      {"sharding.zero1": True},
      {"sharding.zero1": False, "optimizer.accumulate": 2},
      {"sharding.zero1": True, "sharding.fsdp": processes * devices},
    ):
      if processes * devices == 1 and changes != {"sharding.zero1": False}:
        continue
      found.append(_run_weak(processes, devices, changes))
      print(json.dumps(found[-1]), flush=True)
  _save("weak", found)


def _run_weak(
  processes: int, devices: int, changes: dict[str, Any]
) -> dict[str, Any]:
  """Starts the processes of one row; the first one tells the result."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  flags = f"--xla_force_host_platform_device_count={devices}"
  started = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "benchmarks.scaling_worker"),
        *(str(port), str(processes), str(i), json.dumps(changes)),
      ],
      env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(processes)
  ]
  outputs = [process.communicate()[0] for process in started]
  if any(process.returncode for process in started):
    raise RuntimeError("a process of the benchmark failed; see above")
  return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="What runs on many devices take."
  )
  parser.add_argument("what", choices=("compile", "weak", "tables"))
  parser.add_argument("--only", default="", help="of the recipes")
  parser.add_argument("--slice", default="", help="of the slices")
  parser.add_argument("--again", action="store_true")
  args = parser.parse_args()
  if args.what == "compile":
    compile_all(args.only, args.slice, args.again)
  elif args.what == "weak":
    weak()
  else:
    from benchmarks import scaling_tables

    scaling_tables.write(_load())


if __name__ == "__main__":
  main()
