"""All that is timed of the model and of training, one after the other.

  python -m benchmarks [--only=step,loop,startup,peers] [--quick]
    [--authors=DIR]

Runs `python -m benchmarks.NAME` of each with what fits the platform (on an
accelerator bfloat16, larger models and batches); each prints its tables and
where its results are. `--quick` takes tiny settings, to see whether all works:
its figures mean nothing, and go to runs/bench_quick.
"""

import argparse
import shlex
import subprocess
import sys

import benchmarks

_LARGE = "--variants=S/32,S/16,B/32,B/16,L/16 --batch=256 --dtype=bfloat16"
_TINY = "--variants=S/32 --batch=2 --rounds=1 --seconds=0"
# Module and its words; flags for --quick; flags on an accelerator.
RUNS = {
  "step": ("step", _TINY, _LARGE),
  "loop": (
    "training loop",
    "--variant=demo --steps=3 --rounds=1",
    "--variant=B/16 --batch=256 --dtype=bfloat16",
  ),
  "startup": (
    "training startup",
    "--variant=S/32 --batch=2 --rounds=1",
    "--batch=256 --dtype=bfloat16",
  ),
  "peers": ("peers", _TINY, _LARGE),
}


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks")
  parser.add_argument("--only", type=benchmarks.names, default=[*RUNS])
  parser.add_argument("--quick", action="store_true", help="tiny settings")
  parser.add_argument("--authors", help="see benchmarks.peers")
  args = parser.parse_args()
  if unknown := {*args.only} - {*RUNS}:
    parser.error(f"--only takes some of {','.join(RUNS)}, not {unknown}")
  on_cpu = benchmarks.environment()["platform"] == "cpu"
  failed = []
  for name in args.only:
    words, quick, large = RUNS[name]
    flags = quick if args.quick else "" if on_cpu else large
    command = ["-m", *f"benchmarks.{words} {flags}".split()]
    if args.quick:
      command.append(f"--out=runs/bench_quick/{name}.json")
    if name == "peers" and args.authors:
      command.append(f"--authors={args.authors}")
    print(f"\n$ python {shlex.join(command)}", flush=True)
    done = subprocess.run([sys.executable, *command], cwd=benchmarks.ROOT)
    if done.returncode:
      failed.append(name)
  if failed:
    print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
  return int(bool(failed))


if __name__ == "__main__":
  sys.exit(main())
