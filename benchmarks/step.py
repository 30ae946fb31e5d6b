"""Speed and memory of the forward pass and of the training step, by size.

  python -m benchmarks.step [--variants S/32,S/16] [--batches 32]
    [--dtype float32] [--rounds 5] [--seconds 3]

Each row has a process of its own, without the compilation cache. There the
jitted step that `train.py` runs (AdamW, clipping, donated state; a uint8 batch
that lies on the device; 1,000 classes, 224 px) is timed in turn with the
forward pass and with matmuls of large squares in the same dtype: what the
device can do, whatever its data sheet says.

Prints the medians of the rounds, and writes
benchmarks/results/step_cpu.json, or step_gpu.json, step_tpu.json:
  images_per_second, spread   the median, and the least and most of the rounds
  flops                       FLOP/s, by the matmuls that the model needs
  of_matmul                   that over the best matmul's
  of_stated                   over the data sheet's peak (bfloat16), or null
  memory                      bytes of arguments, outputs and temporaries, as
                              compiled; what of the outputs reuses arguments
  device_peak                 bytes, on devices that count them, or null
  compile_seconds             tracing and compiling
  first_step_seconds          from nothing to the end of a first update
"""

import argparse
import concurrent.futures
import datetime
import json
import multiprocessing
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import peer_server
from mixer import (
  command_line,
  durations,
  flops,
  runtime,
  sharding,
  validation,
)
from mixer import config as config_lib
from mixer import step as step_lib
from mixer.errors import UserError

RESULTS = pathlib.Path(__file__).parent / "results"
CLASSES = 1_000
_MATMUL = {"cpu": 2048}
_MATMUL_ELSEWHERE = 8192


def processor() -> str:
  """The name of the CPU's model, where the system tells it."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  names = [x.split(":", 1)[1].strip() for x in lines if x[:10] == "model name"]
  return names[0] if names else platform.processor() or platform.machine()


def recipe(variant: str, batch: int, dtype: str) -> config_lib.Config:
  """What is measured: as the recipes train, without what is random."""
  config = config_lib.default()
  config.model.variant = variant
  config.model.dtype = dtype
  config.batch_size = batch
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


def _matmul(dtype: str) -> tuple[Callable[[int], Any], int]:
  """What multiplies two squares n times, and the FLOP of that."""
  side = _MATMUL.get(jax.default_backend(), _MATMUL_ELSEWHERE)
  x = jax.random.normal(jax.random.key(0), (side, side), dtype)
  multiply = jax.jit(lambda x, y: (x @ y) / side)

  def run(n: int) -> None:
    y = x
    for _ in range(n):
      y = multiply(x, y)
    jax.block_until_ready(y)

  run(1)
  return run, 2 * side**3


class Step:
  """The compiled functions of one row, with all they take on the device."""

  def __init__(self, variant: str, batch: int, dtype: str):
    start = time.perf_counter()
    config = recipe(variant, batch, dtype)
    mesh = sharding.make_mesh()
    plan = durations.plan(config, 1)
    trainer = step_lib.Trainer(config, plan, CLASSES, mesh)
    whole = sharding.put_batch(mesh, make_batch(config, CLASSES))
    self._batch = {k: whole[k] for k in ("image", "label")}
    self._masked = {k: whole[k] for k in ("image", "mask")}
    self._state = trainer.init()
    before = time.perf_counter()
    self._train = trainer.train_step.lower(self._state, self._batch).compile()
    self.compile_seconds = {"train": time.perf_counter() - before}
    self.train(1)
    self.first_step_seconds = time.perf_counter() - start
    before = time.perf_counter()
    self._forward = trainer.inference.logits.lower(
      self._state.params, self._masked
    ).compile()
    self.compile_seconds["forward"] = time.perf_counter() - before
    macs, _ = flops.forward_macs(trainer.model, config.image_size)
    self.flop = {
      "forward": 2 * macs,
      "train": flops.training(trainer.model, config.image_size),
    }
    self.compiled = {"forward": self._forward, "train": self._train}

  def forward(self, n: int) -> None:
    logits = None
    for _ in range(n):
      logits, _ = self._forward(self._state.params, self._masked)
    jax.block_until_ready(logits)

  def train(self, n: int) -> None:
    for _ in range(n):
      self._state, _ = self._train(self._state, self._batch)
    jax.block_until_ready(self._state)


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
  variant: str, batch: int, dtype: str, rounds: int, seconds: float
) -> dict[str, Any]:
  """The two rows of a size; in a process of its own.

  Raises:
    UserError: the device's memory is too small.
  """
  runtime.start()
  jax.config.update("jax_enable_compilation_cache", False)
  device = jax.devices()[0]
  try:
    step = Step(variant, batch, dtype)
    matmul, flop = _matmul(dtype)
    times: dict[str, list[float]] = {"matmul": [], "forward": [], "train": []}
    for _ in range(rounds):
      times["matmul"].append(peer_server.seconds_each(matmul, seconds / 3))
      times["forward"].append(peer_server.seconds_each(step.forward, seconds))
      times["train"].append(peer_server.seconds_each(step.train, seconds))
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    raise UserError(
      f"{variant} at batch {batch} doesn't fit into {device.device_kind}; "
      "ask for a smaller one, as in --batches=8."
    ) from e
  best = flop / min(times["matmul"]) * jax.device_count()
  stated = flops.peak(device.device_kind) if dtype == "bfloat16" else None
  peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
  rows = []
  for name in ("forward", "train"):
    rates = [batch / t for t in times[name]]
    rate = statistics.median(rates)
    achieved = rate * step.flop[name]
    rows.append(
      {
        "model": variant,
        "batch": batch,
        "pass": name,
        "dtype": dtype,
        "images_per_second": rate,
        "spread": [min(rates), max(rates)],
        "flops": achieved,
        "matmul_flops": best,
        "of_matmul": achieved / best,
        "of_stated": stated and achieved / stated / jax.device_count(),
        "memory": _memory(step.compiled[name]),
        "device_peak": peak,
        "compile_seconds": step.compile_seconds[name],
        "first_step_seconds": step.first_step_seconds,
      }
    )
  return {"environment": runtime.environment() | {"host": ""}, "rows": rows}


_HEAD = (
  f"{'model':<6}{'batch':>6} {'pass':<8}{'images/s':>10}{'GFLOP/s':>10}"
  f"{'of matmul':>10}{'of stated':>10}{'temporaries':>13}{'compile':>9}"
  f"{'first step':>11}"
)


def line(row: dict[str, Any]) -> str:
  """A row of the table that is printed."""
  stated = f"{row['of_stated']:.0%}" if row["of_stated"] else "-"
  memory = row["memory"]
  held = f"{memory['temporaries'] / 2**20:,.0f} MiB" if memory else "-"
  first = f"{row['first_step_seconds']:.1f} s" if row["pass"] == "train" else ""
  return (
    f"{row['model']:<6}{row['batch']:>6} {row['pass']:<8}"
    f"{row['images_per_second']:>10,.1f}{row['flops'] / 1e9:>10,.0f}"
    f"{row['of_matmul']:>10.0%}{stated:>10}{held:>13}"
    f"{row['compile_seconds']:>7.1f} s{first:>11}"
  )


def _alone(*args: Any) -> dict[str, Any]:
  """`measure` in a new process, so that no row inherits another's memory."""
  with concurrent.futures.ProcessPoolExecutor(
    1, multiprocessing.get_context("spawn")
  ) as pool:
    return pool.submit(measure, *args).result()


def body(args: argparse.Namespace) -> None:
  """Measures, prints and writes.

  Raises:
    UserError: no such model, or one that doesn't fit.
  """
  pairs = [(v, b) for v in args.variants for b in args.batches]
  for variant, batch in pairs:
    validation.validate(recipe(variant, batch, args.dtype), 1)
  print(f"{_HEAD}\n{'-' * len(_HEAD)}")
  found: dict[str, Any] = {}
  rows = []
  for variant, batch in pairs:
    found = _alone(variant, batch, args.dtype, args.rounds, args.seconds)
    rows += found["rows"]
    print("\n".join(map(line, found["rows"])), flush=True)
  best = max(row["matmul_flops"] for row in rows)
  print(f"\nbest matmul in {args.dtype}: {best / 1e9:,.0f} GFLOP/s")
  record = {
    "date": datetime.date.today().isoformat(),
    "command": " ".join(["python -m benchmarks.step", *sys.argv[1:]]),
    "processor": processor(),
    "environment": found["environment"],
    "rounds": args.rounds,
    "rows": rows,
  }
  platform_name = found["environment"]["platform"]
  path = args.out or RESULTS / f"step_{platform_name}.json"
  path.write_text(json.dumps(record, indent=2) + "\n")
  print(f"written to {path}")


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="Speed and memory of the model's passes, by size."
  )
  names = lambda text: text.split(",")  # noqa: E731
  sizes = lambda text: [int(x) for x in text.split(",")]  # noqa: E731
  parser.add_argument("--variants", type=names, default=["S/32", "S/16"])
  parser.add_argument("--batches", type=sizes, default=[32])
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), default="float32"
  )
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=3, help="of each")
  parser.add_argument("--out", type=pathlib.Path, help="another file")
  return command_line.tool(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
