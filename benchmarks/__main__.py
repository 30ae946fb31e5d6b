"""Speed of the model and of training: all benchmarks of them, in turn.

  python -m benchmarks [--only=step,loop,startup,peers] [--quick]
    [--authors=DIR]

Runs `python -m benchmarks.NAME` of each, on an accelerator in bfloat16 with
larger models and batches. `--quick` takes tiny settings, to see whether all
works: its figures mean nothing, and go to runs/bench_quick.
"""

import shlex
import subprocess
import sys
from typing import Any

import benchmarks
from mixer import cli, flags
from mixer.errors import UserError

_LARGE = "--variants=S/32,S/16,B/32,B/16,L/16 --batch=256 --dtype=bfloat16"
_B16 = "--variant=B/16 --batch=256 --dtype=bfloat16"
_TINY = "--variants=S/32 --batch=2 --rounds=1 --seconds=0"
_SHORT = "--variant=S/32 --batch=2 --rounds=1 --steps=3"
# Module and its words; more of them on an accelerator, and for --quick.
RUNS = {
  "step": ("step", _LARGE, _TINY),
  "loop": ("training loop", _B16, _SHORT),
  "startup": ("training startup --variant=B/16 --batch=8", _B16, _SHORT),
  "peers": ("peers", _LARGE, _TINY),
}


def run(args: Any) -> None:
  """Runs them; a UserError at the end names those that failed."""
  on_cpu, failed = benchmarks.environment()["platform"] == "cpu", []
  for name in args.only:
    words, accelerator, quick = RUNS[name]
    more = quick if args.quick else "" if on_cpu else accelerator
    command = ["-m", *f"benchmarks.{words} {more}".split()]
    if args.quick:
      command.append(f"--out=runs/bench_quick/{name}.json")
    if name == "peers" and args.authors:
      command.append(f"--authors={args.authors}")
    print(f"\n$ python {shlex.join(command)}", flush=True)
    done = subprocess.run([sys.executable, *command], cwd=benchmarks.ROOT)
    failed += [name] * bool(done.returncode)
  if failed:
    raise UserError(f"failed: {', '.join(failed)}; the errors are above.")


if __name__ == "__main__":
  parser, every = flags.Parser("python -m benchmarks", __doc__), [*RUNS]
  parser.add_argument("--only", type=flags.some_of(every), default=every)
  parser.add_argument("--quick", action="store_true")
  parser.add_argument("--authors", default="")
  sys.exit(cli.run(run, parser.read(sys.argv[1:])))
