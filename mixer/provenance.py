"""Where a checkpoint comes from: its starts, the code, the machines."""

import functools
import hashlib
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from mixer import runtime

_ROOT = pathlib.Path(__file__).parent.parent


@functools.cache
def code() -> dict[str, str]:
  """A hash for each source file that training runs, by its path."""
  files = [_ROOT / "train.py", _ROOT / "input_pipeline.py"]
  files += sorted((_ROOT / "mixer").rglob("*.py"))
  return {
    str(f.relative_to(_ROOT)): hashlib.sha256(f.read_bytes()).hexdigest()[:16]
    for f in files
    if f.is_file()
  }


@functools.cache
def source() -> str:
  """One hash over the source files: what ran, committed or not."""
  text = "".join(f"{name} {sha}\n" for name, sha in sorted(code().items()))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def commit() -> str:
  """The Git commit of the checkout; "" where there is none to ask."""
  if not (_ROOT / ".git").exists():
    return ""  # Git would look in the folders above, at what isn't ours.
  try:
    asked = subprocess.run(
      ["git", "-C", str(_ROOT), "rev-parse", "--short=12", "HEAD"],
      capture_output=True,
      text=True,
      timeout=10,
      check=False,
    )
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return asked.stdout.strip() if asked.returncode == 0 else ""


def environment() -> dict[str, Any]:
  """What runs, and what on."""
  found = runtime.environment()
  return found | {"source": source(), "commit": commit()}


def describe_start(
  before: Mapping[str, Any] | None, step: int, origin: str
) -> dict[str, Any]:
  """What checkpoints keep of where they come from.

  Args:
    before: the metadata of the checkpoint that this start goes on from; None
      for the first start.
    step: updates done before this start.
    origin: what this start says that it starts from.

  Returns:
    `origin`, as the first start said it; `environment`, of this start; and
    `history`: for every change of environment, the first one first, the
    `steps` at which the starts in it began, the `origin` that the first of
    them said, and the `environment`.
  """
  about = environment()
  now = {"steps": [step], "origin": origin, "environment": about}
  entries = [] if before is None else [*_entries(before)]
  if entries and entries[-1]["environment"] == about:
    # So that a thousand preemptions are a line, not a megabyte.
    now = entries[-1] | {"steps": [*entries.pop()["steps"], step]}
  entries.append(now)
  return {
    "origin": entries[0]["origin"],
    "environment": about,
    "history": entries,
  }


def _entries(metadata: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
  """The history that a checkpoint tells; of an older one the newest start."""
  return metadata.get("history") or [
    {
      "steps": [],
      "origin": metadata.get("origin") or "unknown",
      "environment": metadata.get("environment") or {},
    }
  ]


def describe(metadata: Mapping[str, Any]) -> list[str]:
  """Lines for people: what a checkpoint's metadata tell of its making."""
  lines = []
  entries = _entries(metadata)
  for entry in entries:
    steps, about = entry["steps"], entry["environment"]
    at = ""
    if steps:
      shown = ", ".join(f"{s:,}" for s in steps[:8])
      more = f" and {len(steps) - 8} more" if len(steps) > 8 else ""
      at = f"started at step {shown}{more}: "
    lines.append(at + (entry["origin"] if entry is entries[0] else "went on"))
    lines += [f"  {line}" for line in _machine(about)]
  return lines


def _machine(about: Mapping[str, Any]) -> list[str]:
  lines = []
  if "device_kind" in about:
    processes = about.get("num_processes", 1)
    of = f" of {processes} processes" if processes > 1 else ""
    lines.append(
      f"on {about['num_devices']} x {about['device_kind']}{of}, first host "
      f"{about.get('host') or 'unknown'}"
    )
  code = [f"source {about['source']}"] if about.get("source") else []
  code += [f"commit {about['commit']}"] if about.get("commit") else []
  if code:
    lines.append(", ".join(code))
  versions = about.get("versions") or {}
  if versions:
    lines.append(", ".join(f"{k} {v}" for k, v in versions.items()))
  return lines
