"""All that is timed of the model and of training, one after the other.

  python -m benchmarks [--only step,end_to_end,startup,peers]
    [--out FOLDER] [--quick] [--authors DIR] [--torch_python PYTHON]

Runs `python -m benchmarks.NAME` of each with what fits the platform (on an
accelerator bfloat16, larger models and batches), prints the tables, and says
where results and pictures are, and how long all took. `peers` needs timm and
PyTorch, and is left out where they aren't. `--quick` takes tiny settings, to
see whether all works: its figures mean nothing, and go to runs/bench_quick.
"""

import argparse
import pathlib
import subprocess
import sys
import time

from benchmarks import records, step, tables
from mixer import command_line, metrics
from mixer.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ("step", "end_to_end", "startup", "peers")


def settings(name: str, *, on_cpu: bool, quick: bool) -> list[str]:
  """Flags of a benchmark, where its defaults don't fit."""
  if quick:
    return {
      "step": ["--variants=S/32", "--batches=2", *_SHORT],
      "end_to_end": ["--demo", "--steps=3", "--rounds=1"],
      "startup": ["--variants=S/32", "--batch=2", "--rounds=1"],
      "peers": ["--models=S/32", "--batch=2", "--trial=0", *_SHORT],
    }[name]
  if on_cpu:
    return []
  return {
    "step": [
      *("--variants=S/32,S/16,B/32,B/16,L/16", "--batches=256"),
      "--dtype=bfloat16",
    ],
    "end_to_end": ["--variant=B/16", "--batch=256", "--dtype=bfloat16"],
    "startup": [],
    "peers": [
      *("--models=S/32,S/16,B/32,B/16,L/16", "--batch=256"),
      "--dtype=bfloat16",
    ],
  }[name]


_SHORT = ("--rounds=1", "--seconds=0")


def _output(name: str, folder: pathlib.Path, platform: str) -> pathlib.Path:
  stem = name if name == "end_to_end" else f"{name}_{platform}"
  return folder / f"{stem}.json"


def _has_timm(python: str) -> bool:
  """Whether that Python has what peers need; asked of itself."""
  # Found and not imported: that takes long, and timm's import may want the
  # help that benchmarks/peer_timm.py gives it.
  code = (
    "import sys; from importlib.util import find_spec as find; "
    "sys.exit(not (find('timm') and find('torch')))"
  )
  return not subprocess.run([python, "-c", code]).returncode


def body(args: argparse.Namespace) -> int | None:
  """Runs them.

  Raises:
    UserError: no such benchmark.
  """
  for name in args.only:
    if name not in NAMES:
      raise UserError(
        f"there is no benchmark {name!r}; --only takes some of "
        f"{','.join(NAMES)}."
      )
  began = time.perf_counter()
  folder = args.out or (
    ROOT / "runs" / "bench_quick" if args.quick else records.RESULTS
  )
  platform = step.alone(step.platform)
  ran, failed = [], []
  for name in args.only:
    if name == "peers" and not _has_timm(args.torch_python):
      print(
        "peers: left out, as timm or PyTorch isn't there; make setup-export, "
        "or name a Python that has them by --torch_python.\n"
      )
      continue
    flags = settings(name, on_cpu=platform == "cpu", quick=args.quick)
    if folder != records.RESULTS:
      flags.append(f"--out={_output(name, folder, platform)}")
    if name == "peers":
      if args.torch_python != sys.executable:
        flags.append(f"--torch_python={args.torch_python}")
      if args.authors:
        flags.append(f"--authors={args.authors}")
    print(f"$ python -m benchmarks.{name} {' '.join(flags)}", flush=True)
    start = time.perf_counter()
    words = [sys.executable, "-m", f"benchmarks.{name}", *flags]
    code = subprocess.run(words, cwd=ROOT).returncode
    took = metrics.duration(time.perf_counter() - start)
    (failed if code else ran).append(name)
    print(f"{name}: {'failed' if code else 'done'} in {took}\n", flush=True)
  for name in ran:
    for table in tables.markdown(name, _output(name, folder, platform)):
      print(f"{table}\n")
  took = metrics.duration(time.perf_counter() - began)
  print(f"all in {took}; results and pictures are in {folder}")
  if failed:
    print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
    return 1
  return None


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks", description="Measures speed, all of it."
  )
  parser.add_argument("--only", type=step.names, default=list(NAMES))
  parser.add_argument("--out", type=pathlib.Path, help="another folder")
  parser.add_argument("--quick", action="store_true", help="tiny settings")
  parser.add_argument("--authors", type=pathlib.Path)
  parser.add_argument("--torch_python", default=sys.executable)
  return command_line.tool(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
