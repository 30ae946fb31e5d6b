"""What all benchmarks share: flags, turns, processes, tables and results.

A benchmark generates rows, `{column: text, number or list}`; a list has a
number of each round. They are printed as Markdown, a list as its median, least
and most, and written as JSON with date, machine and command, to --out=FILE or
benchmarks/results/NAME_PLATFORM.json.
"""

import contextlib
import datetime
import json
import multiprocessing
import os
import pathlib
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any
from unittest import mock

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
Rows = Iterator[dict[str, Any]]
# Flags of what measures models.
MODELS: dict[str, Any] = {"variants": "S/32,S/16", "batch": 32}
MODELS |= {"seconds": 3.0, "dtype": "float32"}
_SPAWN = multiprocessing.get_context("spawn")
_MADE: dict[str, Any] = {}  # What this process answers by.


def main(
  doc: str | None, measure: Callable[[Any], Rows], flags: dict[str, Any]
) -> int:
  """Runs a benchmark with flags of these defaults; returns the exit code.

  None means a flag that may be repeated; of a tuple one is chosen, without
  dashes.
  """
  from mixer import cli
  from mixer import flags as flags_lib

  module = pathlib.Path(sys.argv[0]).stem
  parser = flags_lib.Parser(f"python -m benchmarks.{module}", doc)
  for name, default in ({"rounds": 5, "out": ""} | flags).items():
    if isinstance(default, tuple):
      parser.add_argument(name, choices=default)
    elif default is None:
      parser.add_argument(f"--{name}", action="append")
    else:
      parser.add_argument(f"--{name}", type=type(default), default=default)
  parser.set_defaults(name=module, command=f"benchmarks.{module}")
  args = parser.read(sys.argv[1:])
  return cli.run(lambda args: _report(measure, args), args)


def _report(measure: Callable[[Any], Rows], args: Any) -> None:
  """Prints and writes what is measured; `args.name` names the result."""
  rows: list[dict[str, Any]] = []
  for row in measure(args):
    head = () if rows else (row, ["---"] * len(row))
    for cells in (*head, map(_cell, row.values())):
      print("| " + " | ".join(cells) + " |", flush=True)
    rows.append(row)
  machine = start()  # Threads before JAX starts cost it memory: `runtime`.
  # Where folders are on this machine is private.
  paths = r"(?<=^--)(out|authors|scratch|data_dir|workdir)=.*"
  words = [re.sub(paths, r"\1=DIR", w) for w in sys.argv[1:]]
  record = {
    "date": datetime.date.today().isoformat(),
    "command": shlex.join(["python", "-m", args.command, *words]),
    "processor": f"{cores()} cores of {_processor()}",
    "device": f"{machine['num_devices']} x {machine['device_kind']}",
    "environment": machine,
    "rows": rows,
  }
  print("\n" + "; ".join([*record.values()][:4]))
  own = f"benchmarks/results/{args.name}_{machine['platform']}.json"
  path = pathlib.Path(args.out or ROOT / own)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(record, indent=2) + "\n")
  print(f"written to {path}", flush=True)


def save(path: pathlib.Path, figure: Any) -> None:
  """Writes a picture, with its folder, and says so."""
  from mixer import files

  path.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic_write(path) as f:
    figure.savefig(f, dpi=150, format="png")
  print(f"drawn: {path}", flush=True)


def _cell(value: Any) -> str:
  if isinstance(value, list):
    middle, low, high = statistics.median(value), min(value), max(value)
    return f"{_cell(middle)} ({_cell(low)} to {_cell(high)})"
  if isinstance(value, float):
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
  return str(value)


def _processor() -> str:
  info = pathlib.Path("/proc/cpuinfo")
  text = info.read_text() if info.exists() else ""
  named = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
  return named[1] if named else platform.machine()


def cores() -> int:
  """Number of cores that this process may use."""
  return len(os.sched_getaffinity(0))


def start() -> dict[str, Any]:
  """Starts JAX; platform, devices, versions."""
  from mixer import runtime

  runtime.start()
  return runtime.environment() | {"host": ""}  # Which is private.


def environment() -> dict[str, Any]:
  """As `start`, in a process that is gone then."""
  with futures.ProcessPoolExecutor(1, _SPAWN) as pool:
    return pool.submit(start).result()


def seconds_each(
  one: Callable[[], Any],
  seconds: float,
  wait: Callable[[Any], Any] = np.asarray,
) -> float:
  """Median seconds of a pass, measured for about `seconds`.

  Short ones are timed several at once, so that waiting costs nothing.
  """

  def each(n: int) -> float:
    begin, result = time.perf_counter(), None
    for _ in range(n):
      result = one()
    wait(result)
    return (time.perf_counter() - begin) / n

  end = time.perf_counter() + seconds
  n = max(1, round(0.1 / each(1)))
  found = [each(n)]
  while time.perf_counter() < end:
    found.append(each(n))
  return statistics.median(found)


def in_turn(
  contenders: Mapping[Any, Callable[..., Any]], rounds: int, *args: Any
) -> dict[Any, list[Any]]:
  """What each makes of `args` in every round, in which all have their turn."""
  found: dict[Any, list[Any]] = {name: [] for name in contenders}
  for name in [*contenders] * rounds:
    found[name].append(contenders[name](*args))
  return found


def ratios(over: Iterable[float], under: Iterable[float]) -> list[float]:
  """Those within rounds."""
  return [a / b for a, b in zip(over, under, strict=True)]


@contextlib.contextmanager
def field(
  contenders: Mapping[str, tuple[Any, ...]], **variables: str
) -> Iterator[dict[str, Callable[..., Any]]]:
  """Runs `make(*args)` of each in a process that is idle until it is asked.

  That returns functions by name; `ask(name, *args)`, given here, calls them.
  `variables` are of the environment. Whose packages don't work is left out.
  """
  asks = {}
  with contextlib.ExitStack() as stack, mock.patch.dict(os.environ, variables):
    for name, work in contenders.items():
      pool = stack.enter_context(futures.ProcessPoolExecutor(1, _SPAWN))
      if missing := pool.submit(_make, *work).result():
        print(f"{name} is left out: {missing}", file=sys.stderr)
      else:
        asks[name] = lambda *args, p=pool: p.submit(_answer, *args).result()
    yield asks


def _make(make: Callable[..., dict[str, Any]], *args: Any) -> str:
  try:
    _MADE.update(make(*args))
  except (ImportError, RuntimeError) as e:  # Of builds that don't fit.
    return str(e)
  return ""


def _answer(name: str, *args: Any) -> Any:
  return _MADE[name](*args)
