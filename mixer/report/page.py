"""The page: one self-contained HTML text that loads nothing."""

import html
import importlib.resources
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from mixer import __version__

_PARTS = {
  "css": ("vendor/uPlot.min.css", "page.css"),
  "js": ("vendor/uPlot.iife.min.js", "page.js", "charts.js", "predictions.js"),
}


def text(runs: Sequence[dict[str, Any]]) -> str:
  """The page about some runs, at least one, as of `collect.read`."""
  names = [run["name"] for run in runs]
  title = names[0] if len(names) == 1 else f"{len(names)} runs"
  data = plain({"version": __version__, "runs": list(runs)})
  written = json.dumps(data, allow_nan=False, separators=(",", ":"))
  # So that nothing in it can end the element that it is in.
  for character in "<>&":
    written = written.replace(character, f"\\u{ord(character):04x}")
  folder = importlib.resources.files("mixer.report")
  values = {
    kind: "\n".join((folder / name).read_text("utf-8") for name in names)
    for kind, names in _PARTS.items()
  } | {"data": written, "title": html.escape(f"{title}: report")}
  template = (folder / "page.html").read_text("utf-8")
  # In one go: the data may hold the name of a place.
  return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)


def plain(value: Any) -> Any:
  """JSON with null for each number that isn't finite."""
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
