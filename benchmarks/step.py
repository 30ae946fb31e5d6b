r"""Speed and memory of the forward pass and the training step.

  python -m benchmarks.step [--variants=S/32,S/16] [--batch=32]
    [--dtype=float32] [--compare="KEY=VALUE ..." ...]

Times what `train.py` runs (AdamW, clipping, donated state; a uint8 batch on the
device; 1,000 classes, 224 px) in turn with matmuls of large squares in the same
dtype: what the device can do, whatever its data sheet says. Each variant has a
process of its own, without the compilation cache. Each `--compare` is a setting
of the config ("" is the default one); all are timed in turn:

  python -m benchmarks.step --compare=model.remat=none \
    --compare=model.remat=block

Prints medians of the rounds as Markdown, and writes
benchmarks/results/step_cpu.json, or step_gpu.json, step_tpu.json.
"""

import ast
import functools
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import benchmarks
from mixer import config as config_lib
from mixer import durations, sharding, train_step, validation
from mixer import model as model_lib
from mixer.errors import UserError

CLASSES = 1_000
PASSES = ("forward", "train")


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


def make_batch(config: config_lib.Config) -> dict[str, np.ndarray]:
  """Random `image` uint8 `[B, H, W, 3]`, `label` int32 `[B]`, `mask`."""
  rng = np.random.default_rng(0)
  shape = (config.batch_size, *config_lib.image_size(config), 3)
  return {
    "image": rng.integers(0, 256, shape, np.uint8),
    "label": rng.integers(CLASSES, size=shape[0]).astype(np.int32),
    "mask": np.ones(shape[0], bool),
  }


def changed(config: config_lib.Config, text: str) -> config_lib.Config:
  """The config with settings such as "model.remat=block"."""
  values = {}
  for word in text.split():
    key, _, value = word.partition("=")
    if key not in config_lib.KEYS:
      raise UserError(f"--compare={word}: {config_lib.unknown(key)}")
    try:
      values[key] = ast.literal_eval(value)
    except (SyntaxError, ValueError):
      values[key] = value
  try:
    config = config_lib.changed(config, values)
  except TypeError as e:
    raise UserError(f"--compare={text}: {e}") from e
  validation.validate(config, 1)
  return config


class Passes:
  """The compiled passes of a config, with all they take on the device."""

  def __init__(self, config: config_lib.Config):
    mesh = sharding.make_mesh()
    plan = durations.plan(config, 1)
    trainer = train_step.Trainer(config, plan, CLASSES, mesh)
    batch = sharding.put_batch(mesh, make_batch(config))
    self.batch_size = config.batch_size
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
    self.flop = {  # Of an image.
      "forward": 2 * model_lib.forward_macs(trainer.model, size)[0],
      "train": train_step.update_flop(trainer.model, config),
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


def matmul(dtype: str) -> tuple[benchmarks.Run, int]:
  """What multiplies two squares n times on one device, and the FLOP of it."""
  side = 2048 if jax.default_backend() == "cpu" else 8192
  x = jax.random.normal(jax.random.key(0), (side, side), dtype)
  multiply = jax.jit(lambda x, y: (x @ y) / side)

  def run(n: int) -> None:
    y = x
    for _ in range(n):
      y = multiply(x, y)
    jax.block_until_ready(y)

  run(1)
  return run, 2 * side**3


class Variant(benchmarks.OnJax):
  """A variant in all settings, in a process of its own."""

  def measure(
    self, configs: Sequence[Any], rounds: int, seconds: float
  ) -> list[dict[str, Any]]:
    """A row of the table for each setting and pass."""
    jax.config.update("jax_enable_compilation_cache", False)
    made = [Passes(config_lib.from_json(c, {})) for c in configs]
    square, flop = matmul(configs[0]["model"]["dtype"])
    rates: dict[tuple[int, str], list[float]] = {}
    best = 0.0
    for _ in range(rounds):
      best = max(best, flop / benchmarks.seconds_each(square, seconds / 3))
      for name in PASSES:
        for i, one in enumerate(made):
          run = functools.partial(one.run, name)
          rate = one.batch_size / benchmarks.seconds_each(run, seconds)
          rates.setdefault((i, name), []).append(rate)
    rows = []
    for (i, name), rate in rates.items():
      flops = statistics.median(rate) * made[i].flop[name]
      memory = made[i].compiled[name].memory_analysis()
      rows.append(
        {
          "setting": i,
          "pass": name,
          "images_per_second": rate,
          "flops": flops,
          "of_matmul": flops / best / jax.device_count(),
          "ratios": [a / b for a, b in zip(rate, rates[0, name], strict=True)],
          "temporaries": memory and memory.temp_size_in_bytes,
          "compile_seconds": made[i].compile_seconds[name],
        }
      )
    return rows


def body(args: Any) -> None:
  """Measures, prints and writes."""
  configs = {
    variant: [
      changed(recipe(variant, args.batch, args.dtype), text)
      for text in args.compare
    ]
    for variant in args.variants
  }
  benchmarks.head(
    *("model", "batch", "pass", "setting", "ms", "images/s (spread)"),
    *("GFLOP/s", "of the best matmul", "ratio (spread)"),
    *("temporaries, MiB", "compile, s"),
  )
  found, rows = {}, []
  for variant, settings in configs.items():
    process = benchmarks.Process(Variant)
    found = process.hello
    plain = [config_lib.to_json(c) for c in settings]
    made = process.ask("measure", plain, args.rounds, args.seconds)
    process.close()
    for row in sorted(made, key=lambda row: row["pass"]):
      setting = args.compare[row["setting"]]
      rows.append(row | {"model": variant, "setting": setting})
      rate = statistics.median(row["images_per_second"])
      ratio = statistics.median(row["ratios"])
      benchmarks.row(
        *(variant, args.batch, row["pass"], setting or "-"),
        f"{args.batch / rate * 1e3:,.1f}",
        f"{benchmarks.number(rate)} "
        f"({benchmarks.spread(row['images_per_second'], 1)})",
        f"{row['flops'] / 1e9:,.0f}",
        f"{row['of_matmul']:.0%}",
        f"{ratio:.2f} ({benchmarks.spread(row['ratios'])})",
        f"{(row['temporaries'] or 0) / 2**20:,.0f}",
        f"{row['compile_seconds']:.1f}",
      )
  # A comparison answers another question than the table.
  name = "step_compared" if len(args.compare) > 1 else "step"
  flags = {"batch": args.batch, "dtype": args.dtype}
  benchmarks.write(name, args, found, flags | {"rows": rows})


def main() -> int:
  """Runs the command line."""
  shared = ("variants", "batch", "dtype", "seconds")
  parser = benchmarks.parser("step", __doc__, *shared)
  parser.add_argument("--compare", action="append", metavar="KEY=VALUE")
  args = parser.parse_args()
  args.compare = args.compare or [""]
  return benchmarks.run(body, args)


if __name__ == "__main__":
  sys.exit(main())
