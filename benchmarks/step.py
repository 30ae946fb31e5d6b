r"""Speed and memory of the forward pass and the training step.

  python -m benchmarks.step [--variants=S/32,S/16] [--batch=32] [--seconds=3]
    [--rounds=5] [--dtype=float32] [--compare="KEY=VALUE ..." ...]

Times what `train.py` runs (AdamW, clipping, donated state; a uint8 batch on the
device; 1,000 classes, 224 px) in turn with matmuls of large squares in the same
dtype: what the device can do, whatever its data sheet says. Each `--compare` is
a setting of the config ("" is the default one); all are timed in turn:

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
from typing import Any

import jax
import numpy as np

import benchmarks
from mixer import config as config_lib
from mixer import durations, sharding, train_step, validation
from mixer import model as model_lib
from mixer.errors import UserError

CLASSES = 1_000
# Keys of a model's shape beside its variant.
SHAPE = ("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")


def recipe(variant: str, batch: int, dtype: str) -> config_lib.Config:
  """What is measured: as the recipes train, without what is random."""
  config = config_lib.default()
  config.model.update(variant=variant, dtype=dtype)
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
  for key, _, value in (word.partition("=") for word in text.split()):
    if key not in config_lib.KEYS:
      raise UserError(f"--compare={text}: {config_lib.unknown(key)}")
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


def passes(
  config: config_lib.Config, params: Any = None, classes: int = CLASSES
) -> dict[str, Any]:
  """`forward` and `train`: (run, compiled, seconds of compiling).

  `run(n)` does it n times, waits, and returns logits, or the loss before the
  last update. Weights are `params` where given.
  """
  mesh, plan = sharding.make_mesh(), durations.plan(config, 1)
  trainer = train_step.Trainer(config, plan, classes, mesh)
  batch = sharding.put_batch(mesh, make_batch(config))
  held = [trainer.init()]
  if params is not None:
    where = jax.tree.map(lambda x: x.sharding, trainer.abstract.params)
    held[0] = held[0].replace(params=jax.device_put(params, where))
  masked = {k: batch[k] for k in ("image", "mask")}
  labelled = {k: batch[k] for k in ("image", "label")}

  def compiled(function: Any, *args: Any) -> tuple[Any, float]:
    before = time.perf_counter()
    return function.lower(*args).compile(), time.perf_counter() - before

  forward = compiled(trainer.inference.logits, held[0].params, masked)
  train = compiled(trainer.train_step, held[0], labelled)

  def logits() -> Any:
    return forward[0](held[0].params, masked)[0]

  def update() -> Any:
    held[0], metrics = train[0](held[0], labelled)
    return metrics["loss"]

  return {
    "forward": (benchmarks.repeated(logits), *forward),
    "train": (benchmarks.repeated(update), *train),
  }


def matmul(dtype: str) -> tuple[benchmarks.Run, int]:
  """What multiplies two squares n times on one device, and the FLOP of it."""
  side = 2048 if jax.default_backend() == "cpu" else 8192
  x = jax.random.normal(jax.random.key(0), (side, side), dtype)
  multiply = jax.jit(lambda x: (x @ x) / side)
  run = benchmarks.repeated(lambda: multiply(x), jax.block_until_ready)
  return run, 2 * side**3


def measure(
  settings: list[config_lib.Config], rounds: int, seconds: float
) -> list[dict[str, Any]]:
  """A variant in all settings: a result for each and either pass."""
  made = {
    (name, i): one
    for i, config in enumerate(settings)
    for name, one in passes(config).items()
  }
  runs: dict[Any, Any] = {key: one[0] for key, one in made.items()}
  runs["matmul"], flop = matmul(settings[0].model.dtype)
  for run in runs.values():
    run(1)
  each = functools.partial(benchmarks.seconds_each, seconds=seconds)
  turns = {key: functools.partial(each, run) for key, run in runs.items()}
  found = benchmarks.in_turn(turns, rounds)
  best = flop / min(found.pop("matmul")) * jax.device_count()
  rows = []
  for (name, i), times in sorted(found.items()):
    config, (_, compiled, compile_seconds) = settings[i], made[name, i]
    model = model_lib.from_config(config, CLASSES)
    work = model_lib.update_flop(model, config)
    if name == "forward":
      size = config_lib.image_size(config)
      work = 2 * model_lib.forward_macs(model, size)[0]
    flops = config.batch_size * work / statistics.median(times)
    memory = compiled.memory_analysis()
    rows.append(
      {
        "setting": i,
        "pass": name,
        "images_per_second": [config.batch_size / t for t in times],
        "flops": flops,
        "of_matmul": flops / best,
        "ratios": [a / b for a, b in zip(found[name, 0], times, strict=True)],
        "temporaries": memory.temp_size_in_bytes if memory else 0,
        "compile_seconds": compile_seconds,
      }
    )
  return rows


def body(args: Any) -> None:
  """Measures, prints and writes."""
  compared = args.compare or [""]
  configs = {
    name: [
      changed(recipe(name, args.batch, args.dtype), text) for text in compared
    ]
    for name in args.variants
  }
  hello, rows = benchmarks.start(), []
  jax.config.update("jax_enable_compilation_cache", False)
  for name, settings in configs.items():
    for row in measure(settings, args.rounds, args.seconds):
      row |= {"model": name, "setting": compared[row["setting"]]}
      rows.append(row)
      rates, ratios = row["images_per_second"], row["ratios"]
      benchmarks.row(
        {
          "model": name,
          "batch": args.batch,
          "pass": row["pass"],
          "setting": row["setting"] or "-",
          "ms": f"{args.batch / statistics.median(rates) * 1e3:,.1f}",
          "images/s (spread)": f"{benchmarks.number(rates)} "
          f"({benchmarks.spread(rates, 1)})",
          "GFLOP/s": f"{row['flops'] / 1e9:,.0f}",
          "of the best matmul": f"{row['of_matmul']:.0%}",
          "ratio (spread)": f"{benchmarks.number(ratios)} "
          f"({benchmarks.spread(ratios)})",
          "temporaries, MiB": f"{row['temporaries'] / 2**20:,.0f}",
          "compile, s": f"{row['compile_seconds']:.1f}",
        }
      )
  # A comparison answers another question than the table.
  name = "step_compared" if len(compared) > 1 else "step"
  flags = {"batch": args.batch, "dtype": args.dtype}
  benchmarks.write(name, args, hello, flags | {"rows": rows})


def main() -> int:
  """Runs the command line."""
  return benchmarks.main(__doc__, body, compare=None, **benchmarks.MODELS)


if __name__ == "__main__":
  sys.exit(main())
