"""The page: one self-contained HTML text that loads nothing."""

import functools
import html
import importlib.resources
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from mixer import __version__

_PLACEHOLDERS = re.compile(r"/\*\{css\}\*/|/\*\{js\}\*/|\{data\}|\{title\}")


def text(runs: Sequence[dict[str, Any]]) -> str:
  """The page about some runs.

  Args:
    runs: as of `runs.read`, in the order in which they are to stand.
  """
  names = [run["name"] for run in runs]
  title = names[0] if len(names) == 1 else f"{len(names)} runs"
  data = plain({"version": __version__, "runs": list(runs)})
  written = json.dumps(data, allow_nan=False, separators=(",", ":"))
  # So that nothing in it can end the element that it stands in.
  for character in "<>&":
    written = written.replace(character, f"\\u{ord(character):04x}")
  template, css, js = _parts()
  values = {
    "/*{css}*/": css,
    "/*{js}*/": js,
    "{data}": written,
    "{title}": html.escape(f"{title}: report"),
  }
  # In one go: the data may hold the name of a place.
  return _PLACEHOLDERS.sub(lambda found: values[found.group()], template)


@functools.cache
def _parts() -> tuple[str, str, str]:
  """The page's frame, its styles, its scripts."""
  folder = importlib.resources.files("mixer.report")
  names = sorted(file.name for file in folder.iterdir())
  own = [name for name in names if name.startswith("page")]

  def joined(ending: str, library: str = "") -> str:
    parts = [name for name in own if name.endswith(ending)]
    return "\n".join(
      (folder / name).read_text("utf-8") for name in [library, *parts] if name
    )

  return (
    joined(".html"),
    joined(".css", "vendor/uPlot.min.css"),
    joined(".js", "vendor/uPlot.iife.min.js"),
  )


def plain(value: Any) -> Any:
  """JSON with null for each number that isn't finite."""
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
