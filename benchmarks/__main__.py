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

MODULES = {
  "step": ["step"],
  "loop": ["training", "loop"],
  "startup": ["training", "startup"],
  "peers": ["peers"],
}
_SHORT = ("--rounds=1", "--seconds=0")
QUICK = {
  "step": ["--variants=S/32", "--batch=2", *_SHORT],
  "loop": ["--variant=demo", "--steps=3", "--rounds=1"],
  "startup": ["--variant=S/32", "--batch=2", "--rounds=1"],
  "peers": ["--variants=S/32", "--batch=2", *_SHORT],
}
_LARGE = ("--variants=S/32,S/16,B/32,B/16,L/16", "--batch=256")
_HALF = "--dtype=bfloat16"
ACCELERATOR = {
  "step": [*_LARGE, _HALF],
  "loop": ["--variant=B/16", "--batch=256", _HALF],
  "startup": ["--batch=256", _HALF],
  "peers": [*_LARGE, _HALF],
}


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks")
  parser.add_argument("--only", type=benchmarks.names, default=[*MODULES])
  parser.add_argument("--quick", action="store_true", help="tiny settings")
  parser.add_argument("--authors", help="see benchmarks.peers")
  args = parser.parse_args()
  if unknown := {*args.only} - {*MODULES}:
    parser.error(f"--only takes some of {','.join(MODULES)}, not {unknown}")
  on_cpu = benchmarks.environment()["platform"] == "cpu"
  failed = []
  for name in args.only:
    flags = QUICK[name] if args.quick else [] if on_cpu else ACCELERATOR[name]
    module, *words = MODULES[name]
    command = ["-m", f"benchmarks.{module}", *words, *flags]
    if args.quick:
      command.append(f"--out=runs/bench_quick/{name}.json")
    if name == "peers" and args.authors:
      command.append(f"--authors={args.authors}")
    print(f"\n$ python {shlex.join(command)}", flush=True)
    if subprocess.run(
      [sys.executable, *command], cwd=benchmarks.ROOT
    ).returncode:
      failed.append(name)
  if failed:
    print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
  return int(bool(failed))


if __name__ == "__main__":
  sys.exit(main())
