r"""Speed and memory of the forward pass and the training step.

  python -m benchmarks.step [--variants=S/32,S/16] [--batch=32] [--seconds=3]
    [--rounds=5] [--dtype=float32] [--compare="KEY=VALUE ..." ...]

Times what `train.py` runs (AdamW, clipping, donated state; a uint8 batch on the
device; 1,000 classes, 224 px) in turn with matmuls of large squares in the same
dtype, the best that the device does. Each `--compare` is a setting of the
config ("" is the default one); all are timed in turn, and `rate` is the ratio
of a setting's images/s to the first's:

  python -m benchmarks.step --compare=model.remat=none \
    --compare=model.remat=block
"""

import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import benchmarks
from mixer import config as config_lib
from mixer import durations, flags, sharding, train_step, validation
from mixer import model as model_lib

FLAGS = benchmarks.MODELS | {"compare": None}
CLASSES = 1_000


def recipe(variant: str, batch: int, dtype: str) -> config_lib.Config:
  """What is measured: as the recipes train, without what is random."""
  config = config_lib.default()
  config.model.update(variant=variant, dtype=dtype)
  config.batch_size = batch
  config.data.eval_short_side = 0  # Any image size will do.
  config.total = "1000000 steps"
  config.optimizer.weight_decay = 0.1
  return config


def changed(config: config_lib.Config, text: str) -> config_lib.Config:
  """The config with settings such as "model.remat=block"."""
  config = config_lib.changed(config, dict(map(flags.override, text.split())))
  validation.validate(config, 1)
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


def passes(
  config: config_lib.Config, params: Any = None, classes: int = CLASSES
) -> dict[str, tuple[Callable[[], jax.Array], Any]]:
  """`forward` and `train`: what does one, and the compiled function.

  The first gives logits, the second the loss before its update. Weights are
  `params` where given.
  """
  mesh, plan = sharding.make_mesh(), durations.plan(config, 1)
  trainer = train_step.Trainer(config, plan, classes, mesh)
  batch = sharding.put_batch(mesh, make_batch(config))
  masked = {k: batch[k] for k in ("image", "mask")}
  labelled = {k: batch[k] for k in ("image", "label")}
  state = trainer.init()
  if params is not None:
    where = jax.tree.map(lambda x: x.sharding, trainer.abstract.params)
    state = state.replace(params=jax.device_put(params, where))
  logits = trainer.inference.logits.lower(state.params, masked).compile()
  step = trainer.train_step.lower(state, labelled).compile()

  def update() -> jax.Array:
    nonlocal state
    state, metrics = step(state, labelled)
    return metrics["loss"]

  forward = lambda: logits(state.params, masked)[0]  # noqa: E731
  return {"forward": (forward, logits), "train": (update, step)}


def matmul_flops(dtype: str) -> Callable[[float], float]:
  """Measures the FLOP/s of large squares on one device, for some seconds."""
  side = 2048 if jax.default_backend() == "cpu" else 8192
  x = jax.random.normal(jax.random.key(0), (side, side), dtype)
  multiply, wait = jax.jit(lambda x: (x @ x) / side), jax.block_until_ready
  each = functools.partial(benchmarks.seconds_each, lambda: multiply(x))
  return lambda seconds: 2 * side**3 / each(seconds, wait)


def measure(args: Any) -> benchmarks.Rows:
  """Rows of all variants, passes and settings."""
  settings = args.compare or [""]
  if len(settings) > 1:  # Answers another question than the table.
    args.name = "step_compared"
  configs = {
    v: [changed(recipe(v, args.batch, args.dtype), s) for s in settings]
    for v in args.variants.split(",")
  }
  benchmarks.start()
  jax.config.update("jax_enable_compilation_cache", False)
  for variant, changes in configs.items():
    made = [passes(config) for config in changes]
    turns: dict[Any, Callable[[float], float]] = {
      (name, i): functools.partial(benchmarks.seconds_each, one[name][0])
      for name in ("forward", "train")
      for i, one in enumerate(made)
    }
    turns["matmul"] = matmul_flops(args.dtype)
    found = benchmarks.in_turn(turns, args.rounds, args.seconds)
    best = max(found.pop("matmul")) * jax.device_count()
    for (name, i), seconds in found.items():
      config = changes[i]
      model = model_lib.from_config(config, CLASSES)
      flop = model_lib.update_flop(model, config)
      if name == "forward":
        size = config_lib.image_size(config)
        flop = 2 * model_lib.forward_macs(model, size)[0]
      flops = args.batch * flop / statistics.median(seconds)
      memory = made[i][name][1].memory_analysis()
      yield {
        "model": variant,
        "batch": args.batch,
        "pass": name,
        "setting": settings[i] or "-",
        "ms": statistics.median(seconds) * 1e3,
        "images/s": [args.batch / s for s in seconds],
        "GFLOP/s": flops / 1e9,
        "% of the best matmul": 100 * flops / best,
        "rate": benchmarks.ratios(found[name, 0], seconds),
        "temporaries, MiB": memory and memory.temp_size_in_bytes / 2**20,
      }


if __name__ == "__main__":
  sys.exit(benchmarks.main(__doc__, measure, FLAGS))
