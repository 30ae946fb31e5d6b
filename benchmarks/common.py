"""What all benchmarks share: timing, results, tables. Needs no package."""

import concurrent.futures
import datetime
import json
import multiprocessing
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Does something n times, waits for its end, and returns the last result.
Run = Callable[[int], Any]
# Flags whose values are paths of one machine; of the last, presence counts.
_PATHS = ("--out", "--torch_python", "--tensorflow_python", "--authors")


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


def alone(function: Any, *args: Any) -> Any:
  """Calls it in a new process, which inherits no memory and starts JAX."""
  with concurrent.futures.ProcessPoolExecutor(
    1, multiprocessing.get_context("spawn")
  ) as pool:
    return pool.submit(function, *args).result()


def environment() -> dict[str, Any]:
  """JAX's platform and versions; starts JAX, so call it by `alone`."""
  from mixer import runtime

  runtime.start()
  return runtime.environment() | {"host": ""}  # Whose machine is private.


def cores() -> int:
  """That this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def processor() -> str:
  """The name of the CPU's model, where the system has it."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  names = [x.split(":", 1)[1].strip() for x in lines if x[:10] == "model name"]
  return names[0] if names else platform.processor() or platform.machine()


def command(module: str, words: Sequence[str]) -> str:
  """The command line that was run, without paths of this machine."""
  kept, skip = [], False
  for word in words:
    name, equals, _ = word.partition("=")
    if not skip and name == "--authors":
      kept.append("--authors=DIR")
    elif not skip and name not in _PATHS:
      kept.append(word)
    skip = not skip and name in _PATHS and not equals
  return shlex.join(["python", "-m", module, *kept])


def record(module: str, environment: dict[str, Any]) -> dict[str, Any]:
  """Date, command and machine of a benchmark that begins now."""
  return {
    "date": datetime.date.today().isoformat(),
    "command": command(module, sys.argv[1:]),
    "processor": processor(),
    "cores": cores(),
    "environment": environment,
  }


def write(path: pathlib.Path, record: dict[str, Any]) -> None:
  """Writes a file of results; prints where it comes from and where it is."""
  e = record["environment"]
  where = f"{record['cores']} cores of {record['processor']}"
  if e["platform"] != "cpu":
    where = f"{e['num_devices']} x {e['device_kind']}"
  jax = e.get("versions", {}).get("jax")
  print(f"\n{where}, JAX {jax}; {record['date']}, `{record['command']}`")
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


def numbers(text: str) -> list[int]:
  """The same, as integers."""
  return [int(x) for x in text.split(",")]
