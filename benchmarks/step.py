"""Speed and memory of the model's passes, by size and by setting.

  python -m benchmarks.step [--variants S/32,S/16] [--batches 32]
    [--dtype float32] [--rounds 5] [--seconds 3]
    [--set KEY=VALUE ...] [--compare "KEY=VALUE ..." ...]

Times what `train.py` runs (AdamW, clipping, donated state; a uint8 batch that
lies on the device; 1,000 classes, 224 px): the training step, the forward
pass, the evaluation step, and of the training step the optimizer's update
alone. In turn with them, matmuls of large squares in the same dtype: what the
device can do, whatever its data sheet says. Each size has a process of its
own, without the compilation cache.

`--set` changes keys of the config for all rows. Each `--compare` is a setting
of its own ("" is the default one), and all of them are timed in turn in the
same process, so that their ratios to the first don't depend on the machine's
mood:

  python -m benchmarks.step --compare model.layout=batch_major
    --compare model.layout=token_major

Prints the medians of the rounds, and writes
benchmarks/results/step_cpu.json, or step_gpu.json, step_tpu.json:
  seconds                     of one pass, the median
  images_per_second, spread   the median, and the least and most of the rounds;
                              null for the optimizer
  set                         the keys that were changed
  ratio, ratio_spread         of speed, to the first setting's
  flops                       FLOP/s, by the matmuls that the model needs
  of_matmul                   that over the best matmul's
  of_stated                   over the data sheet's peak (bfloat16), or null
  of_step                     seconds, over those of the training step
  memory                      bytes of arguments, outputs and temporaries, as
                              compiled; what of the outputs reuses arguments
  device_peak                 bytes, on devices that count them, or null
  compile_seconds             tracing and compiling
  first_step_seconds          from nothing to the end of a first update; only
                              of the first setting, as others find JAX warm
"""

import argparse
import concurrent.futures
import multiprocessing
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import passes, peer_server, records, settings, step_table
from mixer import command_line, flops, runtime, validation
from mixer import config as config_lib
from mixer.errors import UserError

CLASSES = 1_000
Changes = Mapping[str, Any]


def recipe(variant: str, batch: int, dtype: str) -> config_lib.Config:
  """What is measured: as the recipes train, without what is random."""
  config = config_lib.default()
  config.model.variant = variant
  config.model.dtype = dtype
  config.batch_size = batch
  config.data.eval_short_side = 0  # Any image size will do.
  config.total = "1000000 steps"
  config.optimizer.weight_decay = 0.1
  return config


def make_batch(
  config: config_lib.Config, num_classes: int
) -> dict[str, np.ndarray]:
  """Random `image` uint8 `[B, H, W, 3]`, `label` int32 `[B]`, `mask`."""
  rng = np.random.default_rng(0)
  shape = (config.batch_size, *config_lib.image_size(config), 3)
  return {
    "image": rng.integers(0, 256, shape, np.uint8),
    "label": rng.integers(num_classes, size=shape[0]).astype(np.int32),
    "mask": np.ones(shape[0], bool),
  }


def changed(
  variant: str, batch: int, dtype: str, changes: Changes
) -> config_lib.Config:
  """`recipe`, with values by key of the config.

  Raises:
    UserError: a key that the config hasn't, a value of another type.
  """
  config = recipe(variant, batch, dtype)
  settings.apply(config, changes)
  return config


def _memory(compiled: Any) -> dict[str, int] | None:
  found = compiled.memory_analysis()
  if found is None:
    return None
  return {
    "arguments": found.argument_size_in_bytes,
    "outputs": found.output_size_in_bytes,
    "reused": found.alias_size_in_bytes,
    "temporaries": found.temp_size_in_bytes,
  }


def measure(
  variant: str,
  batch: int,
  dtype: str,
  rounds: int,
  seconds: float,
  groups: Sequence[Changes] = ({},),
) -> dict[str, Any]:
  """The rows of a size in all settings; in a process of its own.

  Raises:
    UserError: the device's memory is too small.
  """
  runtime.start()
  jax.config.update("jax_enable_compilation_cache", False)
  device = jax.devices()[0]
  try:
    configs = [changed(variant, batch, dtype, c) for c in groups]
    held = [passes.Passes(c, make_batch(c, CLASSES), CLASSES) for c in configs]
    times = _times(held, configs[0].model.dtype, rounds, seconds)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    raise UserError(
      f"{variant} at batch {batch} doesn't fit into {device.device_kind}; "
      "ask for a smaller one, as in --batches=8, or for fewer --compare."
    ) from e
  best = times[0]["matmul"] * jax.device_count()
  peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
  rows = []
  for i, (config, one) in enumerate(zip(configs, held, strict=True)):
    stated = None
    if config.model.dtype == "bfloat16":
      stated = flops.peak(device.device_kind)
    for name in passes.NAMES:
      # A key may change the batch.
      rates = [config.batch_size / t for t in times[i][name]]
      first = [configs[0].batch_size / t for t in times[0][name]]
      ratios = [a / b for a, b in zip(rates, first, strict=True)]
      rate, took = statistics.median(rates), statistics.median(times[i][name])
      images = name in one.flop  # The optimizer sees none.
      achieved = one.flop[name] / took if images else None
      rows.append(
        {
          "model": variant,
          "batch": config.batch_size,
          "pass": name,
          "dtype": config.model.dtype,
          "set": dict(groups[i]),
          "seconds": took,
          "images_per_second": rate if images else None,
          "spread": [min(rates), max(rates)] if images else None,
          "ratio": rate / statistics.median(first),
          "ratio_spread": [min(ratios), max(ratios)],
          "flops": achieved,
          "matmul_flops": best,
          "of_matmul": achieved and achieved / best,
          "of_stated": achieved
          and stated
          and achieved / stated / jax.device_count(),
          "of_step": took / statistics.median(times[i]["train"]),
          "memory": _memory(one.compiled[name]),
          "device_peak": peak,
          "compile_seconds": one.compile_seconds[name],
          "first_step_seconds": None if i else one.first_step_seconds,
        }
      )
  return {"environment": runtime.environment(), "rows": rows}


def _times(
  held: Sequence[passes.Passes], dtype: str, rounds: int, seconds: float
) -> list[dict[str, Any]]:
  """Seconds of each pass by setting and round; FLOP/s of the best matmul."""
  matmul, flop = passes.matmul(dtype)
  squares = []
  times: list[dict[str, Any]] = [{n: [] for n in passes.NAMES} for _ in held]
  for _ in range(rounds):
    squares.append(peer_server.seconds_each(matmul, seconds / 3))
    for name in passes.NAMES:
      for found, one in zip(times, held, strict=True):
        took = peer_server.seconds_each(one.runner(name), seconds)
        found[name].append(took)
  times[0]["matmul"] = flop / min(squares)
  return times


def alone(function: Any, *args: Any) -> Any:
  """Calls it in a new process, which inherits no memory and starts JAX."""
  with concurrent.futures.ProcessPoolExecutor(
    1, multiprocessing.get_context("spawn")
  ) as pool:
    return pool.submit(function, *args).result()


def platform() -> str:
  """The one that JAX takes here; starts it."""
  runtime.start()
  return jax.default_backend()


def body(args: argparse.Namespace) -> None:
  """Measures, prints and writes.

  Raises:
    UserError: no such model or key, or one that doesn't fit.
  """
  common = settings.parse(" ".join(args.set))
  groups = [common | settings.parse(text) for text in args.compare or [""]]
  pairs = [(v, b) for v in args.variants for b in args.batches]
  for variant, batch in pairs:
    for changes in groups:
      validation.validate(changed(variant, batch, args.dtype, changes), 1)
  print(step_table.head(groups))
  found: dict[str, Any] = {}
  rows: list[dict[str, Any]] = []
  for variant, batch in pairs:
    found = alone(
      *(measure, variant, batch, args.dtype, args.rounds, args.seconds, groups)
    )
    rows += found["rows"]
    print("\n".join(step_table.lines(found["rows"], groups)), flush=True)
  best = max(row["matmul_flops"] for row in rows)
  print(f"\nbest matmul in {rows[0]['dtype']}: {best / 1e9:,.0f} GFLOP/s")
  record = records.start("benchmarks.step", found["environment"])
  record |= {"rounds": args.rounds, "rows": rows}
  where = record["environment"]["platform"]
  # A comparison is another question than the table's.
  kind = "step_compared" if args.compare else "step"
  path = args.out or records.RESULTS / f"{kind}_{where}.json"
  records.write(path, record)


def names(text: str) -> list[str]:
  """Of a flag's value, what is between commas."""
  return text.split(",")


def numbers(text: str) -> list[int]:
  """The same, as integers."""
  return [int(x) for x in text.split(",")]


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="Speed and memory of the model's passes, by size and setting."
  )
  parser.add_argument("--variants", type=names, default=["S/32", "S/16"])
  parser.add_argument("--batches", type=numbers, default=[32])
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), default="float32"
  )
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=3, help="of each")
  parser.add_argument(
    *("--set",),
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="a config key for all rows; may be repeated",
  )
  parser.add_argument(
    *("--compare",),
    action="append",
    metavar="KEY=VALUE",
    help="a setting to be timed in turn with the other --compare",
  )
  parser.add_argument("--out", type=pathlib.Path, help="another file")
  return command_line.tool(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
