"""Training through `train.py` beside its bare jitted step.

  python -m benchmarks.end_to_end [--steps 15] [--rounds 5] [--demo]

The same model on the same machine, in turn:
  bare    the jitted step, dispatched again and again on one batch that lies on
          the device: nobody waits for it before the last
  ready   `train.train` whole (transfer, metrics, a record and a progress line
          of every step, files), but batches are there already: a loader in
          whose place stands a list of batches
  whole   the same with the loader at work, as a user runs it
`ready` over `bare` is what the loop costs: it should be under 2 %. `whole` over
`ready` is what the loader takes from the model: on a CPU processor time of the
model's own cores; an accelerator's only where the loop waits for batches
(`waited`, a share of the time). As a noisy machine moves both ratios by more
than the loop costs, the seconds that the loop's thread spends on a processor
are counted too: what they are more in `ready` than in `bare` is the loop's own
Python.

Prints Markdown; writes benchmarks/results/end_to_end.json, which keeps the rows
of other models and platforms. The model is S/32 at 224 px on rendered glyphs.
`--demo` measures the demo's instead, `--variant`, `--batch` and `--dtype`
another.
"""

import argparse
import contextlib
import copy
import io
import itertools
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax

import input_pipeline
import train
from benchmarks import common
from configs import demo
from mixer import cli, durations, loader, metrics, sharding, train_step
from mixer import config as config_lib

KINDS = ("bare", "ready", "whole")
# Steps that don't count: one compiles, in one the loader is still ahead.
FIRST = 2
_READY = 4  # Batches, one after the other and from the start again.


def recipe(args: argparse.Namespace) -> config_lib.Config:
  """The demo's small model, or a variant at 224 px, on glyphs."""
  config = demo.get_config()
  config.data.data_dir = args.data_dir
  config.fewshot.name = ""
  config.data.eval_split = "test[:64]"
  config.report = False
  config.schedule.warmup = "1 steps"
  config.log_every = "1 steps"
  config.eval_every = config.checkpoint_every = "100%"
  if not args.demo:
    config.model = config_lib.default().model
    config.model.variant = args.variant
    config.model.dtype = args.dtype
    config.image_size = config.data.eval_short_side = 224
    config.batch_size = args.batch
    config.data.threads = common.cores()
  config.total = f"{args.steps + FIRST} steps"
  return config


class Batches(Iterator[loader.Batch]):
  """Stands in for a loader, and for a clock: it is asked once a step."""

  def __init__(self, source: Iterator[loader.Batch]):
    self._source = source
    self._wall: list[float] = []
    self._thread: list[float] = []
    self._waited: list[float] = []

  def __next__(self) -> loader.Batch:
    self._wall.append(time.perf_counter())
    self._thread.append(time.thread_time())
    batch = dict(next(self._source))  # A dict of its own, as of a loader.
    self._waited.append(time.perf_counter() - self._wall[-1])
    return batch

  def timing(self) -> loader.Timing:
    """Of the loader behind it, if it is one."""
    if isinstance(self._source, loader.Loader):
      return self._source.timing()
    return loader.Timing(0.0, 0.0)

  def each(self) -> dict[str, float]:
    """Seconds a step, without the first ones."""
    n = len(self._wall) - FIRST - 1
    return {
      "wall": (self._wall[-1] - self._wall[FIRST]) / n,
      "thread": (self._thread[-1] - self._thread[FIRST]) / n,
      "waited": sum(self._waited[FIRST:-1]) / n,
    }


def loop(
  config: config_lib.Config, ready: Sequence[loader.Batch] | None
) -> dict[str, float]:
  """Seconds a step of `train.train`: `wall`, `thread`, `waited`.

  Args:
    config: of the run.
    ready: batches to be handed out in turn; None: the loader makes them.
  """
  found: list[Batches] = []
  make = input_pipeline.train_batches

  def batches(*args: Any) -> Batches:
    found.append(Batches(itertools.cycle(ready) if ready else make(*args)))
    return found[0]

  # The last step has no successor whose start would be its end.
  config = copy.deepcopy(config)
  steps = int(config.total.split()[0])
  config.total = f"{steps + 1} steps"
  with (
    tempfile.TemporaryDirectory() as folder,
    contextlib.redirect_stdout(io.StringIO()),
    mock.patch.object(input_pipeline, "train_batches", batches),
  ):
    train.train(config, folder)
    assert len(metrics.read(folder)) > steps
  return found[0].each()


class Bare:
  """The jitted step of a config; `ready` are batches of the loader."""

  def __init__(self, config: config_lib.Config):
    split, _ = input_pipeline.open_splits(config)
    mesh = sharding.make_mesh()
    plan = durations.plan(config, len(split))
    self._trainer = train_step.Trainer(
      config, plan, len(split.class_names), mesh
    )
    batches = input_pipeline.train_batches(split, config)
    self.ready = list(itertools.islice(batches, _READY))
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


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Medians and ratios of a model's rounds, `{"bare": {"wall": ..}, ..}` each.

  Returns:
    `seconds` by kind; `loop`, `loader` and `both`: ratios, with `_spread`;
    `loop_thread`: the loop's own Python, of the bare step; `waited`: share.
  """
  wall = {k: [r[k]["wall"] for r in rounds] for k in KINDS}
  found: dict[str, Any] = {
    "seconds": {k: statistics.median(v) for k, v in wall.items()}
  }
  for name, over, under in (
    ("loop", "ready", "bare"),
    ("loader", "whole", "ready"),
    ("both", "whole", "bare"),
  ):
    ratios = [a / b for a, b in zip(wall[over], wall[under], strict=True)]
    found[name] = statistics.median(ratios)
    found[f"{name}_spread"] = [min(ratios), max(ratios)]
  found["loop_thread"] = statistics.median(
    (r["ready"]["thread"] - r["bare"]["thread"]) / r["bare"]["wall"]
    for r in rounds
  )
  found["waited"] = statistics.median(
    r["whole"]["waited"] / r["whole"]["wall"] for r in rounds
  )
  return found


def body(args: argparse.Namespace) -> None:
  """Measures, prints and writes.

  Raises:
    UserError: no such model.
  """
  environment = common.environment()
  config = recipe(args)
  bare = Bare(config)
  loop(config, bare.ready)  # Fills the compilation cache.
  rounds: list[dict[str, Any]] = []
  for i in range(args.rounds):
    before = bare.seconds(args.steps)
    turn = {"ready": loop(config, bare.ready), "whole": loop(config, None)}
    after = bare.seconds(args.steps)
    # Around the loop's turns, so that a drift of the machine cancels.
    turn["bare"] = {k: (v + after[k]) / 2 for k, v in before.items()}
    rounds.append(turn)
    walls = ", ".join(f"{k} {turn[k]['wall'] * 1e3:,.1f} ms" for k in KINDS)
    print(f"round {i + 1}: {walls}", flush=True)
  row = common.record("benchmarks.end_to_end", environment) | {
    "model": "demo" if args.demo else args.variant,
    "image_size": config.image_size,
    "batch": config.batch_size,
    "dtype": config.model.dtype,
    "steps": args.steps,
    **summary(rounds),
    "rounds": rounds,
  }

  def percent(name: str) -> str:
    least, most = (100 * (x - 1) for x in row[f"{name}_spread"])
    return f"{row[name] - 1:+.1%} ({least:+.1f} to {most:+.1f})"

  print()
  common.head(
    *("training", "bare step, ms", "the loop adds", "its own Python"),
    *("the loader adds", "waits for it", "in all"),
  )
  common.row(
    f"{row['model']}, {row['image_size']} px, batch {row['batch']}",
    f"{row['seconds']['bare'] * 1e3:,.1f}",
    *(percent("loop"), f"{row['loop_thread']:.2%}", percent("loader")),
    *(f"{row['waited']:.1%}", percent("both")),
  )
  path = args.out or common.RESULTS / "end_to_end.json"
  old = json.loads(path.read_text())["rows"] if path.exists() else []
  kept = [r for r in old if _key(r) != _key(row)]
  rows = sorted([*kept, row], key=_key)
  common.write(
    path, common.record("benchmarks.end_to_end", environment) | {"rows": rows}
  )


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
  """What a newer row replaces an older one by."""
  platform = row["environment"]["platform"]
  return platform, row["model"], row["batch"], row["dtype"]


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="Training through train.py beside its bare jitted step."
  )
  parser.add_argument("--steps", type=int, default=15)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--demo", action="store_true", help="the demo's model")
  parser.add_argument("--variant", default="S/32")
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), default="float32"
  )
  parser.add_argument("--data_dir", default="runs/demo/data")
  parser.add_argument("--out", type=pathlib.Path, help="another file")
  return cli.run(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
