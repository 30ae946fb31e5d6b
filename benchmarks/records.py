"""What every file in benchmarks/results/ tells beside its figures."""

import datetime
import json
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"


def processor() -> str:
  """The name of the CPU's model, where the system tells it."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  names = [x.split(":", 1)[1].strip() for x in lines if x[:10] == "model name"]
  return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
  """That this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


# Paths of one machine, which change no figure; of the last it says that it was
# there.
_UNTOLD = ("--out", "--torch_python", "--authors")


def _flags(words: Sequence[str]) -> list[str]:
  """Of a command line, without paths of this machine."""
  found, follows = [], False
  for word in words:
    name, equals, _ = word.partition("=")
    if not follows and name == "--authors":
      found.append("--authors=DIR")
    elif not follows and name not in _UNTOLD:
      found.append(word)
    follows = not follows and name in _UNTOLD and not equals
  return found


def start(module: str, environment: dict[str, Any]) -> dict[str, Any]:
  """Date, command and machine of a benchmark that begins now.

  Args:
    module: that is run, as "benchmarks.step".
    environment: of `runtime.environment`.
  """
  return {
    "date": datetime.date.today().isoformat(),
    "command": shlex.join(["python", "-m", module, *_flags(sys.argv[1:])]),
    "processor": processor(),
    "cores": cores(),
    # Whose machine it was is no one's affair.
    "environment": environment | {"host": ""},
  }


def write(path: pathlib.Path, record: dict[str, Any]) -> None:
  """Writes a file of results, and says so."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(record, indent=2) + "\n")
  print(f"written to {path}", flush=True)


def machine(record: dict[str, Any]) -> str:
  """In a few words: the device, or the processor and its cores."""
  environment = record["environment"]
  kind = environment["device_kind"]
  if environment["platform"] != "cpu":
    count = environment["num_devices"]
    return kind if count == 1 else f"{count} x {kind}"
  count = record.get("cores") or environment["cpu_count"]
  plural = "" if count == 1 else "s"
  return f"{count} core{plural} of {record['processor']}"
