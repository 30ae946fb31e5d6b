r"""Speed and memory of the forward pass and the training step.

  python -m benchmarks.step [--variants S/32,S/16] [--batches 32]
    [--dtype float32] [--rounds 5] [--seconds 3]
    [--set KEY=VALUE ...] [--compare "KEY=VALUE ..." ...]

Times what `train.py` runs (AdamW, clipping, donated state; a uint8 batch that
lies on the device; 1,000 classes, 224 px). In turn with it, matmuls of large
squares in the same dtype: what the device can do, whatever its data sheet says.
Each size has a process of its own, without the compilation cache.

`--set` changes keys of the config for all rows. Each `--compare` is a setting
of its own ("" is the default one); all are timed in turn in one process:

  python -m benchmarks.step --compare model.remat=none \
    --compare model.remat=block

Prints medians of the rounds as Markdown, and writes
benchmarks/results/step_cpu.json, or step_gpu.json, step_tpu.json.
"""

import argparse
import ast
import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import common
from mixer import cli, durations, sharding, train_step, validation
from mixer import config as config_lib
from mixer import model as model_lib
from mixer.errors import UserError

CLASSES = 1_000
PASSES = ("forward", "train")
HEAD = (
  *("model", "batch", "pass", "setting", "ms", "images/s (spread)", "GFLOP/s"),
  *("of the best matmul", "ratio (spread)", "temporaries, MiB", "compile, s"),
)
_MATMUL = {"cpu": 2048}
_MATMUL_ELSEWHERE = 8192


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
  config: config_lib.Config, num_classes: int = CLASSES
) -> dict[str, np.ndarray]:
  """Random `image` uint8 `[B, H, W, 3]`, `label` int32 `[B]`, `mask`."""
  rng = np.random.default_rng(0)
  shape = (config.batch_size, *config_lib.image_size(config), 3)
  return {
    "image": rng.integers(0, 256, shape, np.uint8),
    "label": rng.integers(num_classes, size=shape[0]).astype(np.int32),
    "mask": np.ones(shape[0], bool),
  }


def parse(text: str) -> dict[str, Any]:
  """`{"model.remat": "block"}` from "model.remat=block"; several by spaces.

  Raises:
    UserError: not of that form.
  """
  found = {}
  for word in text.split():
    key, equals, value = word.partition("=")
    if not equals:
      raise UserError(f"{word!r} is no KEY=VALUE, as in model.remat=block.")
    try:
      found[key] = ast.literal_eval(value)
    except (SyntaxError, ValueError):
      found[key] = value
  return found


def apply(config: config_lib.Config, changes: Mapping[str, Any]) -> None:
  """Sets keys of a config.

  Raises:
    UserError: no such key, or a value of another type.
  """
  for key, value in changes.items():
    try:
      if key not in config_lib.flatten(config):
        raise KeyError("no such key; mixer/config.py lists them all")
      config.update_from_flattened_dict({key: value})
    except (KeyError, TypeError) as e:
      raise UserError(f"{key}={value}: {e.args[0]}.") from e


class Passes:
  """The compiled passes of a config, with all they take on the device."""

  def __init__(self, config: config_lib.Config):
    mesh = sharding.make_mesh()
    plan = durations.plan(config, 1)
    trainer = train_step.Trainer(config, plan, CLASSES, mesh)
    batch = sharding.put_batch(mesh, make_batch(config))
    self._state = trainer.init()
    self._batch = {
      "forward": {k: batch[k] for k in ("image", "mask")},
      "train": {k: batch[k] for k in ("image", "label")},
    }
    self.compiled: dict[str, Any] = {}
    self.compile_seconds: dict[str, float] = {}
    for name, function, first in (
      ("forward", trainer.inference.logits, self._state.params),
      ("train", trainer.train_step, self._state),
    ):
      before = time.perf_counter()
      lowered = function.lower(first, self._batch[name])
      self.compiled[name] = lowered.compile()
      self.compile_seconds[name] = time.perf_counter() - before
      self.run(name, 1)
    size = config_lib.image_size(config)
    forward = 2 * model_lib.forward_macs(trainer.model, size)[0]
    train = train_step.update_flop(trainer.model, config)
    self.flop = {
      "forward": config.batch_size * forward,
      "train": config.batch_size * train,
    }

  def run(self, name: str, n: int) -> None:
    """Does a pass n times, and waits for its end."""
    found: Any = None
    for _ in range(n):
      if name == "train":
        self._state, found = self.compiled[name](self._state, self._batch[name])
      else:
        found = self.compiled[name](self._state.params, self._batch[name])
    jax.block_until_ready((self._state, found))


def matmul(dtype: str) -> tuple[common.Run, int]:
  """What multiplies two squares n times on one device, and the FLOP of it."""
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


def measure(
  variant: str,
  batch: int,
  dtype: str,
  rounds: int,
  seconds: float,
  groups: Sequence[Mapping[str, Any]] = ({},),
) -> dict[str, Any]:
  """The rows of a size in all settings; in a process of its own.

  Raises:
    UserError: the device's memory is too small.
  """
  found = common.environment()
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    configs = [recipe(variant, batch, dtype) for _ in groups]
    for config, changes in zip(configs, groups, strict=True):
      apply(config, changes)
    held = [Passes(config) for config in configs]
    square, flop = matmul(configs[0].model.dtype)
    rates: list[dict[str, list[float]]] = [
      {n: [] for n in PASSES} for _ in held
    ]
    best = 0.0
    for _ in range(rounds):
      best = max(best, flop / common.seconds_each(square, seconds / 3))
      for name in PASSES:
        for i, one in enumerate(held):
          took = common.seconds_each(functools.partial(one.run, name), seconds)
          rates[i][name].append(configs[i].batch_size / took)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    raise UserError(
      f"{variant} at batch {batch} doesn't fit into "
      f"{jax.devices()[0].device_kind}; ask for a smaller one, as in "
      "--batches=8, or for fewer --compare."
    ) from e
  rows = []
  for i, (config, one) in enumerate(zip(configs, held, strict=True)):
    for name in PASSES:
      rate, first = rates[i][name], rates[0][name]
      took = config.batch_size / statistics.median(rate)
      memory = one.compiled[name].memory_analysis()
      rows.append(
        {
          "model": variant,
          "batch": config.batch_size,
          "pass": name,
          "dtype": config.model.dtype,
          "set": dict(groups[i]),
          "seconds": took,
          "images_per_second": statistics.median(rate),
          "spread": [min(rate), max(rate)],
          "ratio": statistics.median(rate) / statistics.median(first),
          "ratio_spread": [
            f(a / b for a, b in zip(rate, first, strict=True))
            for f in (min, max)
          ],
          "flops": one.flop[name] / took,
          "of_matmul": one.flop[name] / took / best / jax.device_count(),
          "arguments": memory and memory.argument_size_in_bytes,
          "temporaries": memory and memory.temp_size_in_bytes,
          "compile_seconds": one.compile_seconds[name],
        }
      )
  return {"environment": found, "rows": rows}


def body(args: argparse.Namespace) -> None:
  """Measures, prints and writes.

  Raises:
    UserError: no such model or key, or one that doesn't fit.
  """
  shared = parse(" ".join(args.set))
  groups = [shared | parse(text) for text in args.compare or [""]]
  pairs = [(v, b) for v in args.variants for b in args.batches]
  for variant, batch in pairs:
    for changes in groups:
      config = recipe(variant, batch, args.dtype)
      apply(config, changes)
      validation.validate(config, 1)
  common.head(*HEAD)
  record: dict[str, Any] = {"rounds": args.rounds, "rows": []}
  for variant, batch in pairs:
    found = common.alone(
      *(measure, variant, batch, args.dtype, args.rounds, args.seconds, groups)
    )
    record |= common.record("benchmarks.step", found["environment"])
    record["rows"] += found["rows"]
    for r in sorted(found["rows"], key=lambda r: PASSES.index(r["pass"])):
      temporaries = r["temporaries"]
      common.row(
        *(r["model"], r["batch"], r["pass"]),
        " ".join(f"{k}={v}" for k, v in r["set"].items()) or "-",
        f"{r['seconds'] * 1e3:,.1f}",
        f"{common.number(r['images_per_second'])} "
        f"({common.spread(r['spread'], 1)})",
        f"{r['flops'] / 1e9:,.0f}",
        f"{r['of_matmul']:.0%}",
        f"{r['ratio']:.2f} ({common.spread(r['ratio_spread'])})",
        "-" if temporaries is None else f"{temporaries / 2**20:,.0f}",
        f"{r['compile_seconds']:.1f}",
      )
  where = record["environment"]["platform"]
  # A comparison answers another question than the table.
  kind = "step_compared" if args.compare else "step"
  common.write(args.out or common.RESULTS / f"{kind}_{where}.json", record)


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="Speed and memory of the model's passes, by size and setting."
  )
  parser.add_argument("--variants", type=common.names, default=["S/32", "S/16"])
  parser.add_argument("--batches", type=common.numbers, default=[32])
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
  return cli.run(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
