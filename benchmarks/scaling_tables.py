"""The tables of docs/scaling.md, from benchmarks/results/scaling.json."""

from collections.abc import Sequence
from typing import Any

from benchmarks import scaling
from mixer.planning import hardware

_GIB = 2**30

MARK = "<!-- From here on by: python -m benchmarks.scaling tables -->\n"


def write(results: dict[str, Any]) -> None:
  """Renews the tables of docs/scaling.md."""
  text = scaling.DOCS.read_text("utf-8").split(MARK)[0]
  scaling.DOCS.write_text(f"{text}{MARK}\n{tables(results)}\n", "utf-8")


def tables(results: dict[str, Any]) -> str:
  """All of them, in Markdown."""
  compiled = results.get("compiled", {})
  return "\n\n".join(
    [
      "### Recipes, compiled",
      fit_table(compiled),
      "### What a device sends, compiled",
      sent_table(compiled),
      "### Weak scaling on CPU devices",
      weak_table(results.get("weak", [])),
      "### Published runs",
      published_table(),
    ]
  )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _name(row: dict[str, Any]) -> str:
  changes = "".join(f", {k}={v}" for k, v in row["changes"].items())
  return f"`{row['recipe']}`{changes}"


def _gib(value: float) -> str:
  return f"{value / _GIB:.2f}"


def _ratio(formula: float, truth: float | None) -> str:
  return f"{formula / truth:.2f}" if truth else "-"


def _order(compiled: dict[str, Any]) -> list[dict[str, Any]]:
  """The rows that there are, in the order of the benchmark."""
  found = []
  for name, where, changes in scaling.rows():
    key = scaling.row_key(name, where, changes)
    if key in compiled:
      found.append(compiled[key])
  return found


def _predicted(row: dict[str, Any]) -> dict[str, Any]:
  config = scaling.recipe(row["recipe"], row["changes"])
  return scaling.predict(config, hardware.parse(row["slice"]))


def fit_table(compiled: dict[str, Any]) -> str:
  """Memory and traffic: what the compiler says, and formula over compiler."""
  rows = []
  for row in _order(compiled):
    p = _predicted(row)
    temporaries = p["activations"] + p["gradients"]
    if not row["peak"]:
      rows.append(
        [
          *(_name(row), row["slice"], row["reason"]),
          *("-", "-", "-", "-", f"({_gib(p['memory'])} predicted)"),
        ]
      )
      continue
    traffic = row["traffic"]
    rows.append(
      [
        _name(row),
        row["slice"],
        "yes" if row["fits"] else row["reason"],
        f"{_gib(row['arguments'])} "
        f"({_ratio(p['arguments'], row['arguments'])})",
        f"{_gib(row['temporaries'])} "
        f"({_ratio(temporaries, row['temporaries'])})",
        f"{_gib(row['peak'])} ({_ratio(p['memory'], row['peak'])})",
        f"{traffic / 1e9:.0f} ({_ratio(p['traffic'], traffic)})"
        if traffic
        else "-",
        f"{row['copies'][0]}, {row['copies'][1] / 1e9:.1f} GB",
      ]
    )
  head = (
    *("recipe", "slice", "fits", "arguments, GiB", "temporaries, GiB"),
    *("peak, GiB", "traffic, GB", "copies"),
  )
  return _table(head, rows)


def sent_table(compiled: dict[str, Any]) -> str:
  """Messages of an update."""
  rows = []
  for row in _order(compiled):
    p = _predicted(row)
    sent = sum(c["sent"] for c in row["collectives"])
    if not sent:
      continue
    what = ", ".join(
      f"{c['count']} {c['kind']} ({c['size'] / 1e6:.1f} MB)"
      for c in row["collectives"]
    )
    formula = p["reduced"] + p["permuted"]
    rows.append(
      [
        _name(row),
        row["slice"],
        what,
        f"{sent / 1e6:.0f}",
        f"{formula / 1e6:.0f}",
        _ratio(formula, sent),
      ]
    )
  head = (
    *("recipe", "slice", "messages", "sent, MB", "formula, MB"),
    "formula / compiler",
  )
  return _table(head, rows)


def weak_table(found: list[dict[str, Any]]) -> str:
  """The small model on virtual devices."""
  rows = []
  for row in found:
    changes = ", ".join(f"{k}={v}" for k, v in row["changes"].items())
    messages = ", ".join(
      f"{count} {kind} ({size / 1e6:.2f} MB)"
      for kind, (count, size) in row["collectives"].items()
    )
    rows.append(
      [
        str(row["processes"]),
        str(row["devices"]),
        changes,
        f"{row['arguments'] / 1e6:.2f}",
        messages or "none",
        f"{row['sent'] / 1e6:.2f}",
        f"{row['predicted_sent'] / 1e6:.2f}",
        f"{row['seconds'] * 1e3:.0f}",
      ]
    )
  head = (
    *("processes", "devices", "changes", "arguments, MB", "messages"),
    *("sent, MB", "formula, MB", "ms an update"),
  )
  return _table(head, rows)


def published_table() -> str:
  """Predictions beside runs of other people's code, in float32."""
  rows = []
  for what, name, where, seconds in scaling.PUBLISHED:
    cells = [what]
    for dtype in ("float32", "bfloat16"):
      config = scaling.recipe(name, {"model.dtype": dtype})
      p = scaling.predict(config, hardware.parse(where))
      whole = p["steps"] * p["step_seconds"]
      if dtype == "float32":
        cells += [f"{seconds / p['steps'] * 1e3:.0f}"]
      cells += [
        f"{p['step_seconds'] * 1e3:.0f} ({p['bottleneck']})",
        f"{whole / seconds:.2f}",
      ]
    rows.append(cells)
  head = (
    *("run", "ms an update", "formula, float32", "formula / run"),
    *("formula, bfloat16", "formula / run"),
  )
  return _table(head, rows)
