"""What importing one of our modules takes, in fresh processes."""

import collections
import pathlib
import re
import statistics
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
MODULES = ("train", "tools.predict")
HEAVIEST = 10
_LINE = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", re.MULTILINE)


def packages(told: str) -> dict[str, float]:
  """Seconds that packages' modules took themselves, the most first.

  Args:
    told: by `python -X importtime`; what a module imports isn't counted as
      its own, so that the sum of all is the whole.
  """
  found: dict[str, int] = collections.Counter()
  for microseconds, module in _LINE.findall(told):
    found[module.partition(".")[0]] += int(microseconds)
  return {
    name: microseconds / 1e6
    for name, microseconds in sorted(found.items(), key=lambda x: -x[1])
  }


def _run(*words: str) -> tuple[float, str]:
  """Seconds a Python took, and what it wrote to stderr."""
  start = time.perf_counter()
  done = subprocess.run(
    [sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, check=True
  )
  return time.perf_counter() - start, done.stderr.decode()


def once(module: str) -> float:
  """Seconds of an import, over those of Python alone."""
  bare, _ = _run("-c", "pass")
  return _run("-c", f"import {module}")[0] - bare


def measure(module: str, rounds: int) -> dict[str, Any]:
  """A module's import time: seconds over those of Python alone.

  Args:
    module: as "tools.predict".
    rounds: how often; one more comes first, which isn't timed.

  Returns:
    `module`, `seconds` (the median), `spread`, and `heaviest`: seconds that
    the heaviest packages took themselves, under -X importtime, which slows
    down what it measures; `others` is the rest.
  """
  once(module)
  found = [once(module) for _ in range(rounds)]
  _, told = _run("-X", "importtime", "-c", f"import {module}")
  # Python's own start is told as well, in both.
  _, before = _run("-X", "importtime", "-c", "pass")
  start = packages(before)
  taken = {k: v for k, v in packages(told).items() if k not in start}
  heaviest = dict(list(taken.items())[:HEAVIEST])
  return {
    "module": module,
    "seconds": statistics.median(found),
    "spread": [min(found), max(found)],
    "heaviest": heaviest,
    "others": sum(taken.values()) - sum(heaviest.values()),
  }


def told(found: dict[str, Any]) -> str:
  """For people."""
  least, most = found["spread"]
  lines = [
    f"import {found['module']}: {found['seconds']:.2f} s "
    f"({least:.2f} to {most:.2f}); by package, as -X importtime tells:"
  ]
  for name, seconds in (
    *found["heaviest"].items(),
    ("others", found["others"]),
  ):
    lines.append(f"  {seconds * 1e3:6.0f} ms  {name}")
  return "\n".join(lines)
