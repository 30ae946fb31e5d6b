"""What all benchmarks share: flags, timing in turn, processes, results."""

import argparse
import datetime
import functools
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
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from typing import Any
from unittest import mock

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
# Does something n times, waits for its end, and returns the last result.
Run = Callable[[int], Any]
# Flags of what measures models.
MODELS: dict[str, Any] = {"variants": ["S/32", "S/16"], "batch": 32}
MODELS |= {"seconds": 3.0, "dtype": "float32"}


def main(doc: str | None, body: Callable[[Any], None], **flags: Any) -> int:
  """A benchmark's command line: flags by their defaults; the exit code."""
  from mixer import cli

  parser = argparse.ArgumentParser(
    prog=f"python -m benchmarks.{pathlib.Path(sys.argv[0]).stem}",
    description=doc,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  for name, default in ({"rounds": 5, "out": ""} | flags).items():
    kind = names if isinstance(default, list) else type(default)
    if default is None:  # As often as it is given.
      parser.add_argument(f"--{name}", action="append")
    elif isinstance(default, tuple):  # One of them, without dashes.
      parser.add_argument(name, choices=default)
    else:
      parser.add_argument(f"--{name}", type=kind, default=default)
  return cli.run(body, parser.parse_args())


def names(text: str) -> list[str]:
  """Of a flag's value, what is between commas."""
  return text.split(",")


def repeated(
  one: Callable[[], Any], wait: Callable[[Any], Any] = np.asarray
) -> Run:
  """What does a pass n times, and waits for the last result."""

  def run(n: int) -> Any:
    result: Any = None
    for _ in range(n):
      result = one()
    return wait(result)

  return run


def seconds_each(run: Run, seconds: float) -> float:
  """Median seconds of one of what `run` does, for about that long.

  Short ones are timed several at once, so that waiting costs nothing.
  """
  start, found = time.perf_counter(), []
  run(1)
  n = max(1, round(0.1 / (time.perf_counter() - start)))
  while not found or time.perf_counter() - start < seconds:
    before = time.perf_counter()
    run(n)
    found.append((time.perf_counter() - before) / n)
  return statistics.median(found)


def in_turn(
  contenders: Mapping[Any, Callable[[], Any]], rounds: int
) -> dict[Any, list[Any]]:
  """What each returns in every round, in which all have their turn."""
  found: dict[Any, list[Any]] = {name: [] for name in contenders}
  for _ in range(rounds):
    for name, measure in contenders.items():
      found[name].append(measure())
  return found


class Process:
  """`make(*args)` in a process of its own, which is idle until it is asked.

  It returns `hello`, which says what it is, and functions by name. Where a
  package is missing, `hello` is {}. `variables` are of the environment.
  """

  def __init__(self, make: Callable[..., Any], *args: Any, **variables: str):
    spawn = multiprocessing.get_context("spawn")
    self._pool = futures.ProcessPoolExecutor(1, spawn)
    with mock.patch.dict(os.environ, variables):
      making = self._pool.submit(_make, make, *args)
    self.hello: dict[str, Any] = making.result()

  def ask(self, name: str, *args: Any) -> Any:
    """What a function of it returns."""
    return self._pool.submit(_ask, name, *args).result()

  def close(self) -> None:
    """Ends it, and waits for that."""
    self._pool.shutdown()


_FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _make(make: Callable[..., Any], *args: Any) -> dict[str, Any]:
  try:
    hello, functions = make(*args)
  except ImportError as e:
    print(f"{make.__name__} is left out: {e}", file=sys.stderr)
    return {}
  _FUNCTIONS.update(functions)
  return hello


def _ask(name: str, *args: Any) -> Any:
  return _FUNCTIONS[name](*args)


def start() -> dict[str, Any]:
  """Starts JAX; platform, devices, versions."""
  from mixer import runtime

  runtime.start()
  # Whose machine it is, is private.
  return runtime.environment() | {"host": ""}


def environment() -> dict[str, Any]:
  """JAX's, of which this process starts none."""
  spawn = multiprocessing.get_context("spawn")
  with futures.ProcessPoolExecutor(1, spawn) as pool:
    return pool.submit(start).result()


def cores() -> int:
  """That this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _processor() -> str:
  info = pathlib.Path("/proc/cpuinfo")
  text = info.read_text() if info.exists() else ""
  named = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
  return named[1] if named else platform.processor() or platform.machine()


def write(name: str, args: Any, hello: dict[str, Any], record: Any) -> None:
  """Prints where results come from; writes them, with date and machine."""
  words = [w for w in sys.argv[1:] if not w.startswith(("--out", "/"))]
  words = ["--authors=DIR" if w.startswith("--authors") else w for w in words]
  module = pathlib.Path(sys.argv[0]).stem
  record = {
    "date": datetime.date.today().isoformat(),
    "command": shlex.join(["python", "-m", f"benchmarks.{module}", *words]),
    "processor": _processor(),
    "cores": cores(),
    "environment": hello,
  } | record
  where = f"{cores()} cores of {record['processor']}"
  if hello["platform"] != "cpu":
    where = f"{hello['num_devices']} x {hello['device_kind']}"
  jax = hello.get("versions", {}).get("jax")
  print(f"\n{where}, JAX {jax}; {record['date']}, `{record['command']}`")
  own = ROOT / "benchmarks" / "results" / f"{name}_{hello['platform']}.json"
  path = pathlib.Path(args.out) if args.out else own
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(record, indent=2) + "\n")
  print(f"written to {path}", flush=True)


@functools.cache
def _head(*names: str) -> None:
  _line(names)
  _line(["---"] * len(names))


def _line(cells: Iterable[Any]) -> None:
  print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def row(cells: Mapping[str, Any]) -> None:
  """Prints a row of a Markdown table, and first its head."""
  _head(*cells)
  _line(cells.values())


def number(values: Iterable[float]) -> str:
  """Their median: three figures, or all of a larger one."""
  value = statistics.median(values)
  return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def spread(values: Iterable[float], digits: int = 2) -> str:
  """From the least to the most."""
  found = list(values)
  return f"{min(found):.{digits}f} to {max(found):.{digits}f}"


def ratio(ours: list[float], theirs: list[float]) -> str:
  """Median and spread of the ratios within rounds."""
  found = [a / b for a, b in zip(ours, theirs, strict=True)]
  return f"{statistics.median(found):.2f} ({spread(found)})"
