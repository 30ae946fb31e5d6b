"""Training through `train.py`: what it adds to the step, and its start.

  python -m benchmarks.training loop [--variant=S/32] [--batch=32] [--steps=15]
    [--rounds=5] [--dtype=float32] [--data_dir=DIR]
  python -m benchmarks.training startup [--variant=B/16] [--batch=8]

`loop` runs `python train.py` on rendered glyphs (at 224 px, or as the demo by
--variant=demo), takes the seconds of a step from its records, and times a bare
jitted step on one batch before and after: what train.py adds is its own Python,
and on a CPU the loader, which takes the model's cores.

`startup` starts `python train.py` on the shipped digits, resized to 224 px, and
stops the clock when it prints the first update's loss: cold, with an empty
compilation cache, and then with the cache that this has filled. Where the time
goes is in the run's own records: `start` until the state is there (Python,
imports, JAX, data, workdir), `data`, `first update` with its compilation.

Prints Markdown; writes benchmarks/results/loop_cpu.json or startup_cpu.json.
"""

import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import benchmarks
import input_pipeline
from benchmarks import step
from configs import demo
from mixer import config as config_lib
from mixer import metrics
from mixer.errors import UserError

FIRST = 3  # Steps that don't count: compiling, and a loader that is ahead.
PHASES = ("start", "data", "first update")


def train(
  folder: pathlib.Path, recipe: str, keys: dict[str, Any], until: str
) -> tuple[float, list[dict[str, Any]]]:
  """Seconds until train.py prints a line that starts so, and its records."""
  keys = keys | {"data.data_dir": keys.get("data.data_dir") or folder / "data"}
  keys |= {"report": False, "fewshot.name": "", "schedule.warmup": "0 steps"}
  keys |= {"log_every": "1 steps", "eval_every": "100%"}
  keys |= {"checkpoint_every": "100%"}
  words = [
    *(sys.executable, "train.py", f"--config=configs/{recipe}.py"),
    f"--workdir={folder / 'run'}",
    *(f"--config.{key}={value}" for key, value in keys.items()),
  ]
  shutil.rmtree(folder / "run", ignore_errors=True)
  start = time.perf_counter()
  process = subprocess.Popen(
    words,
    cwd=benchmarks.ROOT,
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")},
  )
  assert process.stdout
  begun = any(line.startswith(until) for line in process.stdout)
  seconds = time.perf_counter() - start
  # Its evaluation and its checkpoint are of no interest here.
  process.kill()
  process.communicate()
  if not begun:
    raise UserError(f"{' '.join(words)} ended before it printed {until!r}.")
  return seconds, metrics.read(folder / "run")


def loop(args: Any) -> None:
  """Measures the loop, prints and writes."""
  hello, config = benchmarks.start(), demo.get_config()
  keys: dict[str, Any] = {"data.data_dir": args.data_dir}
  if args.variant != "demo":
    keys |= {"model.variant": args.variant, "model.dtype": args.dtype}
    keys |= {"image_size": 224, "batch_size": args.batch}
    keys |= {f"model.{name}": 0 for name in step.SHAPE}
  config = config_lib.changed(config, keys)
  split, _ = input_pipeline.open_splits(config)
  classes = len(split.class_names)
  bare = step.passes(config, classes=classes)["train"][0]
  bare(1)
  total = args.steps + FIRST
  keys |= {"total": f"{total} steps", "data.eval_split": "test[:64]"}

  def each() -> float:
    start = time.perf_counter()
    bare(args.steps)
    return (time.perf_counter() - start) / args.steps

  with tempfile.TemporaryDirectory() as place:

    def whole() -> float:
      until = f"step {total}/{total} "
      _, records = train(pathlib.Path(place), "demo", keys, until)
      found = [r.get("train/seconds_per_step") for r in records[FIRST:]]
      return statistics.mean(s for s in found if s)

    # Around, so that a drift of the machine cancels.
    turns = {"before": each, "whole": whole, "after": each}
    found = benchmarks.in_turn(turns, args.rounds)
  both = zip(found["before"], found["after"], strict=True)
  mean = [(a + b) / 2 for a, b in both]
  size = f"{config.image_size} px, batch {config.batch_size}"
  benchmarks.row(
    {
      "training": f"{args.variant}, {size}",
      "bare step, ms": benchmarks.number(1e3 * s for s in mean),
      "train.py, ms": benchmarks.number(1e3 * s for s in found["whole"]),
      "train.py over bare (spread)": benchmarks.ratio(found["whole"], mean),
    }
  )
  record = {"model": args.variant, "steps": args.steps, "seconds": found}
  benchmarks.write("loop", args, hello, record)


def startup(args: Any) -> None:
  """Measures starts, prints and writes."""
  keys = {
    **{"data.name": "digits", "total": "1 steps", "batch_size": args.batch},
    **{"data.train_split": "train", "data.eval_split": "test"},
    **{"model.variant": args.variant, "model.dtype": args.dtype},
  }
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)

    def warm() -> dict[str, float]:
      total, records = train(folder, "mixer_i1k", keys, "step 1/1 ")
      data = records[0]["goodput/data"]
      update = records[0]["goodput/compile"] + records[0]["goodput/step"]
      phases = zip(PHASES, (total - data - update, data, update), strict=True)
      return {"seconds": total} | dict(phases)

    def cold() -> dict[str, float]:
      shutil.rmtree(folder / "cache", ignore_errors=True)
      return warm()

    cold()  # Prepares the data, and reads all files.
    found = benchmarks.in_turn({"cold": cold, "warm": warm}, args.rounds)
  for cache, rounds in found.items():
    row = {"model": args.variant, "cache": cache}
    for name in ("seconds", *PHASES):
      values = [r[name] for r in rounds]
      row[f"{name} (spread)"] = (
        f"{statistics.median(values):.1f} ({benchmarks.spread(values, 1)})"
      )
    benchmarks.row(row)
  record = {"model": args.variant, "batch": args.batch, "dtype": args.dtype}
  benchmarks.write("startup", args, benchmarks.environment(), record | found)


def main() -> int:
  """Runs the command line."""
  is_loop = "startup" not in sys.argv
  flags: dict[str, Any] = {"variant": "S/32", "batch": 32}
  flags = flags if is_loop else {"variant": "B/16", "batch": 8}
  flags |= {"dtype": "float32", "data_dir": "", "steps": 15}
  what = ("loop", "startup")
  return benchmarks.main(
    __doc__, loop if is_loop else startup, what=what, **flags
  )


if __name__ == "__main__":
  sys.exit(main())
