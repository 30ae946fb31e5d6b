"""What it costs to fit released weights to another resolution.

  python -m benchmarks.surgery [--rounds 3] [--weights FILE.npz]

Loads L/16 with 21,843 classes (random weights, unless a file is named) and
resizes it from 224 px, each in a process of its own: seconds, and the most
memory that the process took beyond what it had before, in multiples of the
weights'. Writes benchmarks/results/surgery.json. Linux only.
"""

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from mixer import model, released, resolution, runtime, weights

RESULTS = pathlib.Path(__file__).parent / "results" / "surgery.json"
# Method and image size; without a method the file is only loaded.
CASES = (
  ("", 224),
  ("tiles", 448),
  ("interleaved", 448),
  ("resample", 448),
  ("resample", 384),
  ("resample", 160),
)


def make(path: pathlib.Path) -> None:
  """Writes random weights."""
  spec = model.parse_variant("L/16")
  shape = weights.Shape(
    spec.patch_size,
    spec.num_blocks,
    spec.hidden_dim,
    spec.tokens_mlp_dim,
    spec.channels_mlp_dim,
    196,
    21843,
  )
  rng = np.random.default_rng(0)
  flat = {
    name: 0.02 * rng.standard_normal(dims, np.float32)
    for name, dims in weights.expected(shape).items()
  }
  released.save(weights.unflatten(flat), path)


def memory(field: str) -> int:
  """Bytes of resident memory: `VmRSS`, now, or `VmHWM`, at most until now."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    name, value = line.split(":")
    if name == field:
      return int(value.split()[0]) * 1024
  raise RuntimeError(f"no {field} in /proc/self/status")


def measure(path: str, method: str, size: int) -> dict[str, float]:
  """Loads and resizes, in this process."""
  before = memory("VmRSS")
  start = time.perf_counter()
  params = released.load(path)
  loaded = time.perf_counter()
  own = sum(x.nbytes for x in weights.flatten(params).values())
  if method:
    params = resolution.resize(params, size, method)
  seconds = time.perf_counter() - loaded
  new = sum(x.nbytes for x in weights.flatten(params).values())
  return {
    "load_seconds": round(loaded - start, 3),
    "resize_seconds": round(seconds, 3),
    "weights_mb": round(own / 1e6),
    "result_mb": round(new / 1e6),
    "peak_over_weights": round((memory("VmHWM") - before) / own, 3),
  }


def in_process(*args: str) -> str:
  """What this module prints when it is run with these arguments."""
  command = [sys.executable, "-m", "benchmarks.surgery", *args]
  return subprocess.run(
    command, check=True, stdout=subprocess.PIPE, text=True
  ).stdout


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="What it costs to fit weights to another resolution."
  )
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--weights", default="", help="an L/16's .npz at 224 px")
  parser.add_argument("--make", default="", help=argparse.SUPPRESS)
  parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.make:
    return make(pathlib.Path(args.make))
  if args.measure:
    path, method, size = args.measure
    return print(json.dumps(measure(path, method, int(size))))
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    path = args.weights or f"{folder}/weights.npz"
    if not args.weights:
      in_process("--make", path)
    print(
      f"{'method':<14}{'px':>5}{'load s':>9}{'resize s':>10}{'MB':>7}"
      f"{'result MB':>11}{'peak / weights':>16}"
    )
    for method, size in CASES:
      found = [
        json.loads(in_process("--measure", path, method, str(size)))
        for _ in range(args.rounds)
      ]
      row = {k: statistics.median(r[k] for r in found) for k in found[0]}
      row["peak_over_weights"] = max(r["peak_over_weights"] for r in found)
      rows.append({"method": method, "image_size": size} | row)
      print(
        f"{method or 'load alone':<14}{size:>5}{row['load_seconds']:>9.2f}"
        f"{row['resize_seconds']:>10.2f}{row['weights_mb']:>7.0f}"
        f"{row['result_mb']:>11.0f}{row['peak_over_weights']:>16.2f}",
        flush=True,
      )
  RESULTS.parent.mkdir(exist_ok=True)
  record = {
    "date": datetime.date.today().isoformat(),
    "processor": platform.processor() or platform.machine(),
    "environment": runtime.environment() | {"host": ""},
    "model": "L/16, 21,843 classes, from 224 px",
    "weights": "from a file" if args.weights else "random",
    "rounds": args.rounds,
    "rows": rows,
  }
  RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
  main()
