"""Seconds from the command line to the end of the first update.

  python -m benchmarks.startup [--variants B/16] [--batch 8] [--rounds 3]

Starts `python train.py` as a user does, a process each, and stops the clock
when it prints the first update's loss: cold, with an empty compilation cache,
and then with the cache that this has filled. Where the time goes is in the
run's own records (its goodput, and JAX's lines about what it compiles):
  python         until our first line runs
  imports        of train.py, as a process of its own just before took
  start          starting JAX, opening data and workdir, making the state,
                 without what is compiled for it
  state          tracing, and compiling or loading, what makes the state
  data           waiting for the first batch
  trace          tracing and lowering the training step
  compile        compiling it, or loading it from the cache
  first update   the rest: the update itself

The operating system has all files in memory by then, as a first process that
isn't timed has read them. Data: the shipped digits, resized to 224 px. Prints
Markdown and writes benchmarks/results/startup_cpu.json, or startup_gpu.json.
"""

import argparse
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import common
from mixer import cli, metrics
from mixer.errors import UserError

PHASES = (
  *("python", "imports", "start", "state", "data", "trace", "compile"),
  "first update",
)
_FIRST = "step 1/1 "
# As JAX writes it with JAX_LOG_COMPILES; each line comes twice, and only one
# of the two starts so. The wording of "tracing" has changed over versions.
_COMPILED = re.compile(
  r"^WARNING:.*Finished (tracing|jaxpr to MLIR|XLA compilation)"
  r".*?\b(init|train_step)\b.* in ([\d.]+) sec",
  re.MULTILINE,
)


def command(
  variant: str, batch: int, dtype: str, folder: pathlib.Path
) -> list[str]:
  """What a user types to train on the digits, but for one update only."""
  keys = {
    **{"data.name": "digits", "data.data_dir": folder / "data"},
    **{"data.train_split": "train", "data.eval_split": "test"},
    **{"model.variant": variant, "model.dtype": dtype, "batch_size": batch},
    **{"total": "1 steps", "schedule.warmup": "0 steps", "report": False},
    **{"log_every": "1 steps", "eval_every": "100%"},
    "checkpoint_every": "100%",
  }
  return [
    *(sys.executable, "train.py", "--config=configs/mixer_b16_i1k.py"),
    f"--workdir={folder / 'run'}",
    *(f"--config.{key}={value}" for key, value in keys.items()),
  ]


def compile_times(log: str) -> dict[str, float]:
  """Seconds of `state`, `trace` and `compile`, from JAX's log."""
  found = {"state": 0.0, "trace": 0.0, "compile": 0.0}
  for what, function, seconds in _COMPILED.findall(log):
    kind = "compile" if what == "XLA compilation" else "trace"
    found["state" if function == "init" else kind] += float(seconds)
  return found


def phases(
  total: float, imports: float, goodput: dict[str, float], log: str
) -> dict[str, float]:
  """Where the time until the first update's end went; the sum is `total`.

  Args:
    total: seconds since the command was given.
    imports: seconds that importing train.py takes, in another process.
    goodput: of the record of the first update, as `goodput/start`.
    log: JAX's, of tracing and compiling.
  """
  compiled = compile_times(log)
  spent = {k.removeprefix("goodput/"): v for k, v in goodput.items()}
  update = spent["compile"] + spent["step"]
  # They are of another process, which may have been the slower one.
  imports = min(imports, spent["start"] - compiled["state"])
  return {
    "python": total - spent["start"] - spent["data"] - update,
    "imports": imports,
    "start": spent["start"] - imports - compiled["state"],
    "state": compiled["state"],
    "data": spent["data"],
    "trace": compiled["trace"],
    "compile": compiled["compile"],
    "first update": update - compiled["trace"] - compiled["compile"],
  }


def first_update(
  words: Sequence[str], folder: pathlib.Path
) -> tuple[float, dict[str, float], str]:
  """Runs a command line up to the end of the first update.

  Returns:
    Seconds; the goodput of that update's record; JAX's log.

  Raises:
    UserError: it ends before.
  """
  environment = dict(os.environ) | {
    "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
    "JAX_LOG_COMPILES": "1",
    "JAX_LOGGING_LEVEL": "WARNING",
  }
  log, total = folder / "log.txt", None
  with log.open("w") as stderr:
    start = time.perf_counter()
    process = subprocess.Popen(
      words,
      cwd=common.ROOT,
      stdout=subprocess.PIPE,
      stderr=stderr,
      text=True,
      env=environment,
    )
    assert process.stdout
    for line in process.stdout:
      if line.startswith(_FIRST):
        total = time.perf_counter() - start
        break
    # Its evaluation and its checkpoint are of no interest here.
    process.kill()
    process.communicate()
  if total is None:
    lines = [x for x in log.read_text().splitlines() if x.strip()]
    raise UserError(
      f"{' '.join(words)} ended before its first update: "
      + (lines[-1] if lines else "it said nothing on stderr.")
    )
  record = metrics.read(folder / "run")[0]
  goodput = {k: v for k, v in record.items() if k.startswith("goodput/")}
  return total, goodput, log.read_text()


def import_seconds(module: str) -> float:
  """Of an import in a fresh process, over those of Python alone."""
  found = []
  for code in ("pass", f"import {module}"):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=common.ROOT, check=True)
    found.append(time.perf_counter() - start)
  return found[1] - found[0]


def measure(variant: str, args: argparse.Namespace) -> list[dict[str, Any]]:
  """The cold row and the warm one, in turn."""
  found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    words = command(variant, args.batch, args.dtype, folder)
    for i in range(args.rounds + 1):
      for cache, rounds in found.items():
        if cache == "cold":
          shutil.rmtree(folder / "cache", ignore_errors=True)
        shutil.rmtree(folder / "run", ignore_errors=True)
        # Beside the run, as the machine's speed changes.
        imports = import_seconds("train")
        total, goodput, log = first_update(words, folder)
        if i:  # The first one prepares the data, and reads all files.
          rounds.append({"total": total} | phases(total, imports, goodput, log))
        elif cache == "cold":
          break
  return [
    {
      **{"model": variant, "batch": args.batch, "dtype": args.dtype},
      "cache": cache,
      "seconds": statistics.median(r["total"] for r in rounds),
      "spread": [f(r["total"] for r in rounds) for f in (min, max)],
      "phases": {p: statistics.median(r[p] for r in rounds) for p in PHASES},
    }
    for cache, rounds in found.items()
  ]


def body(args: argparse.Namespace) -> None:
  """Measures, prints and writes.

  Raises:
    UserError: no such model, or a run that fails.
  """
  environment = common.alone(common.environment)
  cpu = environment["platform"] == "cpu"
  args.dtype = args.dtype or ("float32" if cpu else "bfloat16")
  args.batch = args.batch or (8 if cpu else 256)
  rows = []
  common.head("model", "cache", "seconds (spread)", *PHASES)
  for variant in args.variants:
    for row in measure(variant, args):
      rows.append(row)
      common.row(
        *(row["model"], row["cache"]),
        f"{row['seconds']:.1f} ({common.spread(row['spread'], 1)})",
        *(f"{row['phases'][p]:.1f}" for p in PHASES),
      )
  record = common.record("benchmarks.startup", environment)
  record |= {"rounds": args.rounds, "rows": rows}
  name = f"startup_{environment['platform']}.json"
  common.write(args.out or common.RESULTS / name, record)


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="Seconds from the command to the first update's end."
  )
  parser.add_argument("--variants", type=common.names, default=["B/16"])
  parser.add_argument("--batch", type=int, help="8 on a CPU, else 256")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"))
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--out", type=pathlib.Path, help="another file")
  return cli.run(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
