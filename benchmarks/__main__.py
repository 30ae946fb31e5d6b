"""All that is timed of the model and of training, one after the other.

  python -m benchmarks [--only step,end_to_end,startup,peers]
    [--out FOLDER] [--quick] [--authors DIR] [--torch_python PYTHON]

Runs `python -m benchmarks.NAME` of each with what fits the platform (on an
accelerator bfloat16, larger models and batches); each prints its tables and
where its results are. `--quick` takes tiny settings, to see whether all works:
its figures mean nothing, and go to runs/bench_quick.
"""

import argparse
import pathlib
import subprocess
import sys

from benchmarks import common
from mixer import cli
from mixer.errors import UserError

_SHORT = ("--rounds=1", "--seconds=0")
QUICK = {
  "step": ["--variants=S/32", "--batches=2", *_SHORT],
  "end_to_end": ["--demo", "--steps=3", "--rounds=1"],
  "startup": ["--variants=S/32", "--batch=2", "--rounds=1"],
  "peers": ["--models=S/32", "--batch=2", "--trial=0", *_SHORT],
}
_LARGE = "S/32,S/16,B/32,B/16,L/16"
ACCELERATOR = {
  "step": [f"--variants={_LARGE}", "--batches=256", "--dtype=bfloat16"],
  "end_to_end": ["--variant=B/16", "--batch=256", "--dtype=bfloat16"],
  "startup": [],
  "peers": [f"--models={_LARGE}", "--batch=256", "--dtype=bfloat16"],
}


def body(args: argparse.Namespace) -> int:
  """Runs them; returns the exit code.

  Raises:
    UserError: no such benchmark.
  """
  for name in args.only:
    if name not in QUICK:
      raise UserError(
        f"there is no benchmark {name!r}; --only takes some of "
        f"{','.join(QUICK)}."
      )
  folder = args.out or (
    common.ROOT / "runs/bench_quick" if args.quick else None
  )
  platform = common.alone(common.environment)["platform"]
  failed = []
  for name in args.only:
    flags = list(QUICK[name]) if args.quick else []
    if not args.quick and platform != "cpu":
      flags = list(ACCELERATOR[name])
    if folder:
      flags.append(f"--out={folder / f'{name}_{platform}.json'}")
    if name == "peers":
      flags.append(f"--torch_python={args.torch_python}")
      flags += [f"--authors={args.authors}"] * bool(args.authors)
    words = [sys.executable, "-m", f"benchmarks.{name}", *flags]
    print(f"\n$ {common.command(f'benchmarks.{name}', flags)}", flush=True)
    if subprocess.run(words, cwd=common.ROOT).returncode:
      failed.append(name)
  if failed:
    print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
  return int(bool(failed))


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks", description="Measures speed, all of it."
  )
  parser.add_argument("--only", type=common.names, default=list(QUICK))
  parser.add_argument("--out", type=pathlib.Path, help="another folder")
  parser.add_argument("--quick", action="store_true", help="tiny settings")
  parser.add_argument("--authors", type=pathlib.Path)
  parser.add_argument("--torch_python", default=sys.executable)
  return cli.run(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
