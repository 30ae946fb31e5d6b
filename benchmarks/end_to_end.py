"""Training through `train.py` beside its bare jitted step.

  python -m benchmarks.end_to_end [--steps 15] [--rounds 5] [--demo]

The same model on the same machine, in turn:
  bare    the jitted step, dispatched again and again on one batch that lies on
          the device: nobody waits for it before the last
  ready   `train.train` whole (transfer, metrics, a record and a progress line
          of every step, files), but batches are there already: a loader in
          whose place stands a list of batches
  whole   the same with the loader at work, as a user runs it
`ready` over `bare` is what the loop costs: it should be under 2 %. `whole`
over `ready` is what the loader takes from the model. On a CPU that is
processor time of the model's own cores; an accelerator's it leaves alone,
unless it is too slow for it (`waited` is the share of the time for which the
loop waited for batches). As a noisy machine moves both ratios by more than the
loop costs, the seconds that the loop's thread spends on a processor are counted
too (`thread`): what they are more in `ready` than in `bare` is the loop's own
Python.

Prints seconds a step by round, medians and ratios; writes
benchmarks/results/end_to_end.json, which keeps the rows of other models and
platforms. The model is S/32 at 224 px on rendered glyphs: small enough for a
CPU, large enough that a step is no toy's. `--demo` measures the demo's instead,
`--variant`, `--batch` and `--dtype` another.
"""

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import loop_timing, records
from configs import demo_pretrain
from mixer import command_line, runtime
from mixer import config as config_lib

KINDS = ("bare", "ready", "whole")


def recipe(args: argparse.Namespace) -> config_lib.Config:
  """The demo's small model, or a variant at 224 px, on glyphs."""
  config = demo_pretrain.get_config()
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
    config.data.threads = records.cores()
  config.total = f"{args.steps + loop_timing.FIRST} steps"
  return config


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Medians and ratios of a model's rounds.

  Args:
    rounds: `{"bare": {"wall": ..}, ..}` each, seconds a step.

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
  own = [
    (r["ready"]["thread"] - r["bare"]["thread"]) / r["bare"]["wall"]
    for r in rounds
  ]
  found["loop_thread"] = statistics.median(own)
  waited = [r["whole"]["waited"] / r["whole"]["wall"] for r in rounds]
  found["waited"] = statistics.median(waited)
  return found


def told(row: dict[str, Any]) -> str:
  """For people."""

  def percent(name: str) -> str:
    least, most = (x - 1 for x in row[f"{name}_spread"])
    return f"{row[name] - 1:+.1%} ({least:+.1%} to {most:+.1%})"

  return (
    f"the loop over the bare step:      {percent('loop')}; its own Python: "
    f"{row['loop_thread']:.2%}\n"
    f"the loader, over ready batches:   {percent('loader')}; the loop waited "
    f"for it {row['waited']:.1%} of the time\n"
    f"train.py over the bare step:      {percent('both')}"
  )


def body(args: argparse.Namespace) -> None:
  """Measures, prints and writes.

  Raises:
    UserError: no such model.
  """
  runtime.start()
  config = recipe(args)
  bare = loop_timing.Bare(config)
  loop_timing.loop(config, bare.ready)  # Fills the compilation cache.
  rounds: list[dict[str, Any]] = []
  print("seconds a step\n" + "".join(f"{k:>12}" for k in ("round", *KINDS)))
  for i in range(args.rounds):
    before = bare.seconds(args.steps)
    turn = {
      "ready": loop_timing.loop(config, bare.ready),
      "whole": loop_timing.loop(config, None),
    }
    after = bare.seconds(args.steps)
    # Around the loop's turns, so that a drift of the machine cancels.
    turn["bare"] = {k: (v + after[k]) / 2 for k, v in before.items()}
    rounds.append(turn)
    walls = "".join(f"{turn[k]['wall']:>12.5f}" for k in KINDS)
    print(f"{i + 1:>12}{walls}", flush=True)
  row = {
    "model": "demo" if args.demo else args.variant,
    "image_size": config.image_size,
    "batch": config.batch_size,
    "dtype": config.model.dtype,
    "steps": args.steps,
    **summary(rounds),
    "rounds": rounds,
  }
  row = records.start("benchmarks.end_to_end", runtime.environment()) | row
  print(told(row))
  path = args.out or records.RESULTS / "end_to_end.json"
  old = json.loads(path.read_text())["rows"] if path.exists() else []
  rows = [r for r in old if key(r) != key(row)] + [row]
  records.write(path, {"rows": sorted(rows, key=key)})


def key(row: dict[str, Any]) -> tuple[Any, ...]:
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
  return command_line.tool(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
