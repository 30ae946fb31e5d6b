"""What all benchmarks share: timing, processes, results, tables."""

import argparse
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
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Does something n times, waits for its end, and returns the last result.
Run = Callable[[int], Any]


def seconds_each(run: Run, seconds: float) -> float:
  """Median seconds of one of what `run` does, which has run before.

  Short ones are timed several at once, so that waiting costs nothing; one that
  takes longer than `seconds` is timed once.
  """
  start = time.perf_counter()
  run(1)
  found = [time.perf_counter() - start]
  n = max(1, round(0.1 / found[0]))
  if n > 1:
    found = []
  while not found or time.perf_counter() - start < seconds:
    before = time.perf_counter()
    run(n)
    found.append((time.perf_counter() - before) / n)
  return statistics.median(found)


class Process:
  """An object in a process of its own, which is idle until it is asked.

  Attributes:
    hello: the object's own, which says what it is; {} if a package is missing.
  """

  def __init__(self, factory: Callable[..., Any], *args: Any, **variables: str):
    """Makes `factory(*args)` there, with additional environment variables."""
    spawn = multiprocessing.get_context("spawn")
    self._pool = futures.ProcessPoolExecutor(1, spawn)
    with mock.patch.dict(os.environ, variables):
      making = self._pool.submit(_make, factory, *args)
    self.hello: dict[str, Any] = making.result()

  def ask(self, method: str, *args: Any) -> Any:
    """What a method of the object returns."""
    return self._pool.submit(_ask, method, *args).result()

  def close(self) -> None:
    """Ends it, and waits for that."""
    self._pool.shutdown()


_HELD: list[Any] = []


def _make(factory: Callable[..., Any], *args: Any) -> dict[str, Any]:
  try:
    _HELD.append(factory(*args))
  except ImportError as e:
    print(f"{factory.__name__} is left out: {e}", file=sys.stderr)
    return {}
  return _HELD[0].hello


def _ask(method: str, *args: Any) -> Any:
  return getattr(_HELD[0], method)(*args)


class OnJax:
  """Starts JAX; its `hello` is platform, devices, versions."""

  def __init__(self):
    from mixer import runtime

    runtime.start()
    # Whose machine it is, is private.
    self.hello = runtime.environment() | {"host": ""}


def environment() -> dict[str, Any]:
  """JAX's, of which this process starts none."""
  process = Process(OnJax)
  process.close()
  return process.hello


def cores() -> int:
  """That this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _processor() -> str:
  """The name of the CPU's model, where the system has it."""
  info = pathlib.Path("/proc/cpuinfo")
  text = info.read_text() if info.exists() else ""
  named = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
  return named[1] if named else platform.processor() or platform.machine()


def parser(
  module: str, doc: str | None, *shared: str
) -> argparse.ArgumentParser:
  """A benchmark's flags: what all have, and those of `shared`."""
  made = argparse.ArgumentParser(
    prog=f"python -m benchmarks.{module}",
    description=doc,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  made.add_argument("--rounds", type=int, default=5)
  made.add_argument("--out", type=pathlib.Path, help="another .json file")
  flags: dict[str, dict[str, Any]] = {
    "variants": {"type": names, "default": ["S/32", "S/16"]},
    "batch": {"type": int, "default": 32},
    "seconds": {"type": float, "default": 3, "help": "of each"},
    "dtype": {"choices": ("float32", "bfloat16"), "default": "float32"},
  }
  for name in shared:
    made.add_argument(f"--{name}", **flags[name])
  return made


def run(body: Callable[[argparse.Namespace], None], args: Any) -> int:
  """Runs a benchmark; what stops it is said in a sentence."""
  from mixer import cli

  return cli.run(body, args)


def write(
  name: str, args: argparse.Namespace, found: dict[str, Any], record: Any
) -> None:
  """Prints where results come from; writes them, with date and machine."""
  words = [w for w in sys.argv[1:] if not w.startswith(("--out", "/"))]
  words = ["--authors=DIR" if w.startswith("--authors") else w for w in words]
  module = pathlib.Path(sys.argv[0]).stem
  record = {
    "date": datetime.date.today().isoformat(),
    "command": shlex.join(["python", "-m", f"benchmarks.{module}", *words]),
    "processor": _processor(),
    "cores": cores(),
    "environment": found,
  } | record
  where = f"{cores()} cores of {record['processor']}"
  if found["platform"] != "cpu":
    where = f"{found['num_devices']} x {found['device_kind']}"
  jax = found.get("versions", {}).get("jax")
  print(f"\n{where}, JAX {jax}; {record['date']}, `{record['command']}`")
  path = args.out or RESULTS / f"{name}_{found['platform']}.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(record, indent=2) + "\n")
  print(f"written to {path}", flush=True)


def row(*cells: Any) -> None:
  """Prints a row of a Markdown table."""
  print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def head(*cells: str) -> None:
  """Prints the head of a Markdown table."""
  row(*cells)
  row(*("---" for _ in cells))


def number(value: float) -> str:
  """Three figures, or all of a larger one."""
  return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def spread(values: Iterable[float], digits: int = 2) -> str:
  """From the least to the most."""
  found = list(values)
  return f"{min(found):.{digits}f} to {max(found):.{digits}f}"


def names(text: str) -> list[str]:
  """Of a flag's value, what is between commas."""
  return text.split(",")
