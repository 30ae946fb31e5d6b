"""Training through `train.py`: what it adds to the step, and its start.

  python -m benchmarks.training loop [--variant=S/32] [--batch=32] [--steps=15]
    [--rounds=5] [--dtype=float32]
  python -m benchmarks.training loop --recipe=configs/demo.py --steps=200
  python -m benchmarks.training startup --variant=B/16 --batch=8

Both run `python train.py` on the shipped digits, resized to 224 px, or as a
`--recipe` of small images says, its data in `--data_dir`. `loop` takes the
seconds of a step from the records of the second `--steps` steps, which are the
second epoch of a recipe's data: small sets are in memory then. It times a bare
jitted step on one batch before and after: what train.py adds is its own Python,
and on a CPU the loader, which takes the model's cores. `startup` stops the
clock when the first update's loss is printed: with an empty compilation cache,
and then with the cache that this has filled.
"""

import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import benchmarks
import input_pipeline
from benchmarks import step
from mixer import config as config_lib
from mixer import flags, metrics
from mixer.errors import UserError

SECONDS = 3.0  # Of the bare step in a turn.
PAPER = "configs/mixer_i1k.py"
FLAGS = {"what": ("loop", "startup"), "recipe": PAPER, "data_dir": ""}
FLAGS |= {"variant": "S/32", "batch": 32, "dtype": "float32", "steps": 15}


def keys(args: Any, folder: pathlib.Path, steps: int) -> dict[str, Any]:
  """What differs from the config: of the paper's also data and model."""
  found = {
    **{"data.data_dir": args.data_dir or str(folder / "data")},
    **{"total": f"{steps} steps", "log_every": f"{args.steps} steps"},
    **{"eval_every": "100%", "checkpoint_every": "100%", "report": False},
    **{"fewshot.name": "", "schedule.warmup": "0 steps"},
  }
  if args.recipe != PAPER:
    epoch = args.steps * flags.recipe(args.recipe).batch_size
    return found | {"data.train_split": f"train[:{epoch}]"}
  return found | {
    **{"data.name": "digits", "batch_size": args.batch},
    **{"data.train_split": "train", "data.eval_split": "test[:64]"},
    **{"model.variant": args.variant, "model.dtype": args.dtype},
  }


def train(args: Any, folder: pathlib.Path, steps: int) -> float:
  """Seconds until train.py prints the last of the steps."""
  words = [
    *(sys.executable, "train.py", f"--config={args.recipe}"),
    f"--workdir={folder / 'run'}",
    *(f"--config.{k}={v}" for k, v in keys(args, folder, steps).items()),
  ]
  shutil.rmtree(folder / "run", ignore_errors=True)
  start = time.perf_counter()
  with subprocess.Popen(
    words,
    cwd=benchmarks.ROOT,
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")},
  ) as process:
    last = f"step {steps}/{steps} "
    done = any(line.startswith(last) for line in process.stdout or ())
    seconds = time.perf_counter() - start
    process.kill()  # Its evaluation and its checkpoint are of no interest here.
  if not done:
    raise UserError(f"{' '.join(words)} ended before it printed {last!r}.")
  return seconds


def loop(args: Any, folder: pathlib.Path) -> benchmarks.Rows:
  """What train.py adds to the bare step."""
  benchmarks.start()
  # The first half doesn't count: compiling, and a loader that is ahead.
  steps = 2 * args.steps
  recipe = flags.recipe(args.recipe)
  config = config_lib.changed(recipe, keys(args, folder, steps))
  split, _ = input_pipeline.open_splits(config)
  update, _ = step.passes(config, classes=len(split.class_names))["train"]
  bare = functools.partial(benchmarks.seconds_each, update, SECONDS)

  def whole() -> float:
    train(args, folder, steps)
    records = metrics.read(folder / "run")
    return metrics.scores(records, "train/seconds_per_step")[steps]

  # Around, so that a drift of the machine cancels.
  turns = {"before": bare, "whole": whole, "after": bare}
  before, found, after = benchmarks.in_turn(turns, args.rounds).values()
  mean = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
  yield {
    "training": config.model.variant,
    "batch": config.batch_size,
    "bare step, ms": [1e3 * s for s in mean],
    "train.py, ms": [1e3 * s for s in found],
    "train.py over bare": benchmarks.ratios(found, mean),
  }


def startup(args: Any, folder: pathlib.Path) -> benchmarks.Rows:
  """From the command to the first update."""
  warm = functools.partial(train, args, folder, 1)

  def cold() -> float:
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return warm()

  cold()  # Prepares the data, and reads all files.
  found = benchmarks.in_turn({"empty": cold, "filled": warm}, args.rounds)
  yield {"model": args.variant, "batch": args.batch} | {
    f"{cache} cache, s": seconds for cache, seconds in found.items()
  }


def measure(args: Any) -> benchmarks.Rows:
  """The row of one of them."""
  args.name = args.what
  with tempfile.TemporaryDirectory() as folder:
    which = loop if args.what == "loop" else startup
    yield from which(args, pathlib.Path(folder))


if __name__ == "__main__":
  sys.exit(benchmarks.main(__doc__, measure, FLAGS))
