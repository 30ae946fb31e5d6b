"""What the training loop costs over its bare jitted step.

  python -m benchmarks.loop [--steps 20] [--rounds 5] [--demo]

Trains the same model on the same machine in turn: through `train.train`, whole
(data, metrics and progress of every step, files), and by calling the jitted
step on one batch that lies on the device. Prints the median seconds a step of
each round, and the ratio; writes benchmarks/results/loop.json. On a CPU the
loader takes its time from the model's own cores, which an accelerator's
doesn't.

The model is S/32 at 224 px on rendered glyphs: small enough for a CPU, large
enough that a step is no toy's. `--demo` measures the demo's instead.
"""

import argparse
import contextlib
import datetime
import io
import json
import pathlib
import platform
import statistics
import tempfile
import time

import jax

import input_pipeline
import train
from configs import demo_pretrain
from mixer import config as config_lib
from mixer import durations, metrics, runtime, sharding
from mixer import step as step_lib

RESULTS = pathlib.Path(__file__).parent / "results" / "loop.json"


def recipe(demo: bool, data_dir: str) -> config_lib.Config:
  """S/32 at 224 px, or the demo's small model."""
  config = demo_pretrain.get_config()
  config.data.data_dir = data_dir
  config.fewshot.name = ""
  config.data.eval_split = "test[:64]"
  if not demo:
    config.model = config_lib.default().model
    config.model.variant = "S/32"
    config.model.dtype = "float32"
    config.image_size = config.data.eval_short_side = 224
    config.batch_size = 32
  return config


def loop_seconds(config: config_lib.Config, steps: int) -> float:
  """Median seconds a step through `train.train`, as the run reports them."""
  config = config.copy_and_resolve_references()
  config.total = f"{steps + 1} steps"
  config.schedule.warmup = "1 steps"
  config.log_every = "1 steps"
  config.eval_every = config.checkpoint_every = "100%"
  with tempfile.TemporaryDirectory() as folder:
    with contextlib.redirect_stdout(io.StringIO()):
      train.train(config, folder)
    records = metrics.read(pathlib.Path(folder))
  found = [
    r["train/seconds_per_step"]
    for r in records
    if "train/seconds_per_step" in r
  ]
  return statistics.median(found)


class Bare:
  """The jitted step of a config, and a batch on the device."""

  def __init__(self, config: config_lib.Config):
    split, _ = input_pipeline.open_splits(config)
    mesh = sharding.make_mesh()
    plan = durations.plan(config, len(split))
    self._trainer = step_lib.Trainer(config, plan, len(split.class_names), mesh)
    batches = input_pipeline.train_batches(split, config)
    self._batch = sharding.put_batch(mesh, next(batches))
    self._state = self._trainer.init()
    self.seconds(1)  # Compiles.

  def seconds(self, steps: int) -> float:
    """A step, the median of so many."""
    found = []
    for _ in range(steps):
      start = time.perf_counter()
      self._state, _ = self._trainer.train_step(self._state, self._batch)
      jax.block_until_ready(self._state)
      found.append(time.perf_counter() - start)
    return statistics.median(found)


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="What the training loop costs over its bare jitted step."
  )
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--demo", action="store_true", help="the demo's model")
  parser.add_argument("--data_dir", default="runs/demo/data")
  args = parser.parse_args()
  runtime.quiet_libraries()
  runtime.start()
  config = recipe(args.demo, args.data_dir)
  bare = Bare(config)
  loop_seconds(config, 1)  # Fills the compilation cache.
  rows = []
  print(f"{'round':<8}{'loop s/step':>14}{'bare s/step':>14}{'ratio':>9}")
  for i in range(args.rounds):
    before = bare.seconds(args.steps)
    loop = loop_seconds(config, args.steps)
    # Around the loop's run, so that a drift of the machine cancels.
    step = (before + bare.seconds(args.steps)) / 2
    rows.append({"loop": loop, "bare": step, "ratio": loop / step})
    print(
      f"{i + 1:<8}{loop:>14.4f}{step:>14.4f}{loop / step:>9.3f}", flush=True
    )
  ratios = [row["ratio"] for row in rows]
  print(
    f"median ratio {statistics.median(ratios):.3f} "
    f"({min(ratios):.3f} to {max(ratios):.3f})"
  )
  RESULTS.parent.mkdir(exist_ok=True)
  name = "demo" if args.demo else "S/32 at 224 px, batch 32"
  old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  old[name] = {
    "date": datetime.date.today().isoformat(),
    "processor": platform.processor() or platform.machine(),
    "environment": runtime.environment() | {"host": ""},
    "steps": args.steps,
    "rounds": rows,
    "median_ratio": statistics.median(ratios),
  }
  RESULTS.write_text(json.dumps(old, indent=2) + "\n")


if __name__ == "__main__":
  main()
