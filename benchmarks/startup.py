"""Seconds from the command line to the end of the first update.

  python -m benchmarks.startup [--variants B/16] [--batch 8] [--rounds 3]

Starts `python train.py` as a user does, a process each, and stops the clock
when it tells the first update's loss: cold, with an empty compilation cache,
and then with the cache that this has filled. Where the time goes is told by
the run itself (its goodput, and JAX's own lines about what it compiles):
  python         until our first line runs
  imports        of train.py, as a process of its own just before took
  start          starting JAX, opening data and workdir, making the state,
                 without what is compiled for it
  state          tracing, and compiling or loading, what makes the state
  data           waiting for the first batch
  trace          tracing and lowering the training step
  compile        compiling it, or loading it from the cache
  first update   the rest: the update itself

Also the import time of train.py and of tools.predict in fresh processes, with
what the ten heaviest packages of it take themselves (`python -X importtime`).
The operating system has all files in memory by then, as a first process that
isn't timed has read them. Data: the shipped digits, resized to 224 px. Writes
benchmarks/results/startup_cpu.json, or startup_gpu.json.
"""

import argparse
import json
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

from benchmarks import import_times, records, step
from mixer import command_line, metrics
from mixer.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
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
    "data.name": "digits",
    "data.data_dir": folder / "data",
    "data.train_split": "train",
    "data.eval_split": "test",
    "model.variant": variant,
    "model.dtype": dtype,
    "batch_size": batch,
    "total": "1 steps",
    "schedule.warmup": "0 steps",
    "log_every": "1 steps",
    "eval_every": "100%",
    "checkpoint_every": "100%",
    "report": False,
  }
  return [
    *(sys.executable, "train.py", "--config=configs/mixer_b16_i1k.py"),
    f"--workdir={folder / 'run'}",
    *(f"--config.{key}={value}" for key, value in keys.items()),
  ]


def compile_times(log: str) -> dict[str, float]:
  """Seconds of `state`, `trace` and `compile`, from what JAX has told."""
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
    log: what JAX has told of tracing and compiling.
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
  """Runs it up to the end of the first update.

  Args:
    words: the command line.
    folder: where its workdir and the compilation cache lie.

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
  log = folder / "log.txt"
  with log.open("w") as stderr:
    start = time.perf_counter()
    process = subprocess.Popen(
      words,
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=stderr,
      text=True,
      env=environment,
    )
    assert process.stdout
    total = None
    for line in process.stdout:
      if line.startswith(_FIRST):
        total = time.perf_counter() - start
        break
    # Its evaluation and its checkpoint are of no interest here.
    process.kill()
    process.communicate()
  if total is None:
    told = [x for x in log.read_text().splitlines() if x.strip()]
    raise UserError(
      f"{' '.join(words)} ended before its first update: "
      + (told[-1] if told else "it said nothing on stderr.")
    )
  record = metrics.read(folder / "run")[0]
  goodput = {k: v for k, v in record.items() if k.startswith("goodput/")}
  return total, goodput, log.read_text()


def _measure(variant: str, args: argparse.Namespace) -> list[dict[str, Any]]:
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
        # Beside the run, as the machine's mood changes.
        imports = import_times.once("train")
        total, goodput, log = first_update(words, folder)
        if i:  # The first one prepares the data, and reads all files.
          rounds.append({"total": total} | phases(total, imports, goodput, log))
        elif cache == "cold":
          break
  return [
    {
      "model": variant,
      "batch": args.batch,
      "dtype": args.dtype,
      "cache": cache,
      "seconds": statistics.median(r["total"] for r in rounds),
      "spread": [f(r["total"] for r in rounds) for f in (min, max)],
      "phases": {p: statistics.median(r[p] for r in rounds) for p in PHASES},
    }
    for cache, rounds in found.items()
  ]


def _environment() -> dict[str, Any]:
  """Of a process that has started JAX: this one never does."""
  code = (
    "import json; from mixer import runtime; runtime.start(); "
    "print(json.dumps(runtime.environment()))"
  )
  words = [sys.executable, "-c", code]
  told = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True)
  return json.loads(told.stdout.splitlines()[-1])


def line(row: dict[str, Any]) -> str:
  """A row of the table that is printed."""
  least, most = row["spread"]
  parts = "".join(f"{row['phases'][p]:>13.1f}" for p in PHASES)
  spread = f"({least:.1f} to {most:.1f})"
  start = f"{row['model']:<6}{row['cache']:<6}{row['seconds']:>6.1f}"
  return f"{start} {spread:<16}{parts}"


def body(args: argparse.Namespace) -> None:
  """Measures, prints and writes.

  Raises:
    UserError: no such model, or a run that fails.
  """
  environment = _environment()
  if args.dtype is None:
    on_cpu = environment["platform"] == "cpu"
    args.dtype = "float32" if on_cpu else "bfloat16"
  if args.batch is None:
    args.batch = 8 if environment["platform"] == "cpu" else 256
  imports = [import_times.measure(m, args.rounds) for m in import_times.MODULES]
  for one in imports:
    print(import_times.told(one) + "\n", flush=True)
  rows = []
  head = "".join(f"{p:>13}" for p in PHASES)
  print(f"seconds to the end of the first update, batch {args.batch}")
  print(f"{'model':<6}{'cache':<6}{'all':>6} {'(spread)':<16}{head}")
  for variant in args.variants:
    found = _measure(variant, args)
    print("\n".join(map(line, found)), flush=True)
    rows += found
  record = records.start("benchmarks.startup", environment)
  record |= {"rounds": args.rounds, "rows": rows, "imports": imports}
  name = f"startup_{environment['platform']}.json"
  records.write(args.out or records.RESULTS / name, record)


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="Seconds from the command to the first update's end."
  )
  parser.add_argument("--variants", type=step.names, default=["B/16"])
  parser.add_argument("--batch", type=int, help="8 on a CPU, else 256")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"))
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--out", type=pathlib.Path, help="another file")
  return command_line.tool(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
