"""Training through `train.py`: what its loop costs, and its start.

  python -m benchmarks.training loop [--variant=S/32] [--batch=32] [--steps=15]
  python -m benchmarks.training startup [--variant=B/16] [--batch=8]

`loop` times a step of the same model (at 224 px on rendered glyphs, or the
demo's by --variant=demo) in turn as
  bare    the jitted step, dispatched again and again on one batch on the
          device: nobody waits for it before the last
  ready   `train.train` whole (transfer, metrics, a record and a progress line
          of every step, files), with a list of batches in place of the loader
  whole   the same with the loader at work, as a user runs it
`ready` over `bare` is what the loop costs: it should be under 2 %. `whole` over
`ready` is what the loader takes from the model: on a CPU processor time of the
model's own cores; an accelerator's only where the loop waits for batches. As a
noisy machine moves both ratios by more than the loop costs, the seconds that
the loop's thread spends on a processor are counted too: what they are more in
`ready` than in `bare` is the loop's own Python.

`startup` starts `python train.py` on the shipped digits, resized to 224 px, and
stops the clock when it prints the first update's loss: cold, with an empty
compilation cache, and then with the cache that this has filled. Where the time
goes is in the run's own records: `start` until the state is there (Python,
imports, JAX, data, workdir), `data`, `first update` with its compilation. The
operating system has all files in memory by then.

Prints Markdown; writes benchmarks/results/loop_cpu.json or startup_cpu.json.
"""

import contextlib
import io
import itertools
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax

import benchmarks
import input_pipeline
import train
from configs import demo
from mixer import config as config_lib
from mixer import (
  durations,
  loader,
  metrics,
  runtime,
  sharding,
  train_step,
)
from mixer.errors import UserError

# Steps that don't count: one compiles, in one the loader is still ahead.
FIRST = 2
PHASES = ("start", "data", "first update")


class Batches(Iterator[Any]):
  """Stands in for a loader, and for a clock: it is asked once a step."""

  def __init__(self, source: Iterator[Any]):
    self._source = source
    self._wall: list[float] = []
    self._thread: list[float] = []
    self._waited: list[float] = []

  def __next__(self) -> Any:
    self._wall.append(time.perf_counter())
    self._thread.append(time.thread_time())
    batch = dict(next(self._source))  # A dict of its own, as of a loader.
    self._waited.append(time.perf_counter() - self._wall[-1])
    return batch

  def timing(self) -> Any:
    """Of the loader behind it, if it is one."""
    timing = getattr(self._source, "timing", lambda: loader.Timing(0.0, 0.0))
    return timing()

  def each(self) -> dict[str, float]:
    """Seconds a step, without the first ones."""
    n = len(self._wall) - FIRST - 1
    return {
      "wall": (self._wall[-1] - self._wall[FIRST]) / n,
      "thread": (self._thread[-1] - self._thread[FIRST]) / n,
      "waited": sum(self._waited[FIRST:-1]) / n,
    }


def loop_config(args: Any) -> Any:
  """The demo's small model, or a variant at 224 px, on glyphs."""
  config = demo.get_config()
  config.data.data_dir = args.data_dir
  config.fewshot.name = ""
  config.data.eval_split = "test[:64]"
  config.report = False
  config.schedule.warmup = "1 steps"
  config.log_every = "1 steps"
  config.eval_every = config.checkpoint_every = "100%"
  if args.variant != "demo":
    config.model = config_lib.default().model
    config.model.variant = args.variant
    config.model.dtype = args.dtype
    config.image_size = config.data.eval_short_side = 224
    config.batch_size = args.batch
    config.data.threads = benchmarks.cores()
  # The last step has no successor whose start would be its end.
  config.total = f"{args.steps + FIRST + 1} steps"
  return config


class Bare:
  """The jitted step of a config; `ready` are batches of the loader."""

  def __init__(self, config: Any):
    split, _ = input_pipeline.open_splits(config)
    mesh = sharding.make_mesh()
    plan = durations.plan(config, len(split))
    classes = len(split.class_names)
    self._trainer = train_step.Trainer(config, plan, classes, mesh)
    batches = input_pipeline.train_batches(split, config)
    self.ready = list(itertools.islice(batches, 4))
    self._batch = sharding.put_batch(mesh, self.ready[0])
    self._state = self._trainer.init()
    self.seconds(1)  # Compiles.

  def seconds(self, steps: int) -> dict[str, float]:
    """`wall` and `thread` seconds a step."""
    wall, thread = time.perf_counter(), time.thread_time()
    for _ in range(steps):
      self._state, _ = self._trainer.train_step(self._state, self._batch)
    jax.block_until_ready(self._state)
    return {
      "wall": (time.perf_counter() - wall) / steps,
      "thread": (time.thread_time() - thread) / steps,
    }


def timed_run(config: Any, ready: Sequence[Any] | None) -> dict[str, float]:
  """Seconds a step of `train.train`: `wall`, `thread`, `waited`.

  `ready` are batches to be handed out in turn; None: the loader makes them.
  """
  found: list[Batches] = []
  make = input_pipeline.train_batches

  def batches(*args: Any) -> Batches:
    found.append(Batches(itertools.cycle(ready) if ready else make(*args)))
    return found[0]

  with (
    tempfile.TemporaryDirectory() as folder,
    contextlib.redirect_stdout(io.StringIO()),
    mock.patch.object(input_pipeline, "train_batches", batches),
  ):
    train.train(config, folder)
  return found[0].each()


def loop_body(args: Any) -> None:
  """Measures the loop, prints and writes."""
  runtime.start()
  config = loop_config(args)
  bare = Bare(config)
  timed_run(config, bare.ready)  # Fills the compilation cache.
  rounds: list[dict[str, Any]] = []
  for _ in range(args.rounds):
    before = bare.seconds(args.steps)
    turn = {
      "ready": timed_run(config, bare.ready),
      "whole": timed_run(config, None),
    }
    after = bare.seconds(args.steps)
    # Around the loop's turns, so that a drift of the machine cancels.
    turn["bare"] = {k: (v + after[k]) / 2 for k, v in before.items()}
    rounds.append(turn)

  def added(over: str, under: str) -> str:
    ratios = [100 * (r[over]["wall"] / r[under]["wall"] - 1) for r in rounds]
    spread = f"{min(ratios):+.1f} to {max(ratios):+.1f}"
    return f"{statistics.median(ratios):+.1f}% ({spread})"

  def median(function: Any) -> float:
    return statistics.median(map(function, rounds))

  python = median(
    lambda r: (r["ready"]["thread"] - r["bare"]["thread"]) / r["bare"]["wall"]
  )
  benchmarks.head(
    *("training", "bare step, ms", "the loop adds", "its own Python"),
    *("the loader adds", "waits for it", "in all"),
  )
  benchmarks.row(
    f"{args.variant}, {config.image_size} px, batch {config.batch_size}",
    f"{median(lambda r: r['bare']['wall']) * 1e3:,.1f}",
    *(added("ready", "bare"), f"{python:.2%}", added("whole", "ready")),
    f"{median(lambda r: r['whole']['waited'] / r['whole']['wall']):.1%}",
    added("whole", "bare"),
  )
  row = {"model": args.variant, "dtype": config.model.dtype, "rounds": rounds}
  environment = runtime.environment() | {"host": ""}
  benchmarks.write("loop", args, environment, row | {"steps": args.steps})


def startup_command(args: Any, folder: pathlib.Path) -> list[str]:
  """What a user types to train on the digits, but for one update only."""
  keys = {
    **{"data.name": "digits", "data.data_dir": folder / "data"},
    **{"data.train_split": "train", "data.eval_split": "test"},
    **{"model.variant": args.variant, "model.dtype": args.dtype},
    **{"batch_size": args.batch, "total": "1 steps", "report": False},
    **{"schedule.warmup": "0 steps", "log_every": "1 steps"},
    **{"eval_every": "100%", "checkpoint_every": "100%"},
  }
  return [
    *(sys.executable, "train.py", "--config=configs/mixer_i1k.py"),
    f"--workdir={folder / 'run'}",
    *(f"--config.{key}={value}" for key, value in keys.items()),
  ]


def first_update(
  words: Sequence[str], folder: pathlib.Path
) -> dict[str, float]:
  """`total` seconds to the end of the first update, and those of `PHASES`."""
  start = time.perf_counter()
  process = subprocess.Popen(
    words,
    cwd=benchmarks.ROOT,
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")},
  )
  assert process.stdout
  begun = any(line.startswith("step 1/1 ") for line in process.stdout)
  total = time.perf_counter() - start
  # Its evaluation and its checkpoint are of no interest here.
  process.kill()
  process.communicate()
  if not begun:
    raise UserError(f"{' '.join(words)} ended before its first update.")
  record = metrics.read(folder / "run")[0]
  data = record["goodput/data"]
  update = record["goodput/compile"] + record["goodput/step"]
  return {"total": total} | dict(
    zip(PHASES, (total - data - update, data, update), strict=True)
  )


def startup_body(args: Any) -> None:
  """Measures starts, prints and writes."""
  found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    words = startup_command(args, folder)
    first_update(words, folder)  # Prepares the data, and reads all files.
    for cache in ("cold", "warm") * args.rounds:
      if cache == "cold":
        shutil.rmtree(folder / "cache")
      shutil.rmtree(folder / "run")
      found[cache].append(first_update(words, folder))
  benchmarks.head("model", "cache", "seconds", "spread", *PHASES)
  for cache, rounds in found.items():
    middle = {
      k: f"{statistics.median(r[k] for r in rounds):.1f}"
      for k in ("total", *PHASES)
    }
    spread = benchmarks.spread((r["total"] for r in rounds), 1)
    benchmarks.row(
      args.variant, cache, middle.pop("total"), spread, *middle.values()
    )
  row = {"model": args.variant, "batch": args.batch, "dtype": args.dtype}
  benchmarks.write("startup", args, benchmarks.environment(), row | found)


def main() -> int:
  """Runs the command line."""
  parser = benchmarks.parser("training", __doc__)
  parser.add_argument("what", choices=("loop", "startup"))
  parser.add_argument("--variant", help="default: S/32; of startup B/16")
  parser.add_argument("--batch", type=int, help="default: 32; of startup 8")
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), default="float32"
  )
  parser.add_argument("--data_dir", default="", help="of the glyphs")
  parser.add_argument("--steps", type=int, default=15, help="of the loop")
  args = parser.parse_args()
  is_loop = args.what == "loop"
  args.variant = args.variant or ("S/32" if is_loop else "B/16")
  args.batch = args.batch or (32 if is_loop else 8)
  return benchmarks.run(loop_body if is_loop else startup_body, args)


if __name__ == "__main__":
  sys.exit(main())
