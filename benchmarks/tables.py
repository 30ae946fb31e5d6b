"""Results as tables in Markdown, for the README and docs/performance.md."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import records, settings

Rows = list[dict[str, Any]]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _source(record: dict[str, Any], more: str = "") -> str:
  jax = record["environment"].get("versions", {}).get("jax")
  told = [records.machine(record), more, f"JAX {jax}" if jax else ""]
  where = ", ".join(x for x in told if x)
  return f"\n\n{where}; {record['date']}, `{record['command']}`"


def _number(value: float) -> str:
  """Three figures, or all of a larger one."""
  digits = 0 if value >= 100 else 1 if value >= 10 else 2
  return f"{value:,.{digits}f}"


def _range(spread: Sequence[float], digits: int = 2) -> str:
  return f"{spread[0]:.{digits}f} to {spread[1]:.{digits}f}"


def _one(rows: Rows, key: str) -> str:
  """What all rows have, if it is one thing."""
  values = {row[key] for row in rows}
  return str(values.pop()) if len(values) == 1 else "several"


def _work(rows: Rows) -> str:
  return f"{_one(rows, 'dtype')}, batch {_one(rows, 'batch')}"


def _peers(record: dict[str, Any]) -> str:
  cells = [
    [
      *(row["model"], row["pass"], _number(row["ours"]), row["peer"]),
      *(row["variant"], _number(row["theirs"]), f"{row['ratio']:.2f}"),
      _range(row["spread"]),
    ]
    for row in record["rows"]
  ]
  head = (
    *("model", "pass", "ours, images/s", "other", "its setting"),
    *("theirs, images/s", "ours/theirs", "spread"),
  )
  return _markdown(head, cells) + _source(record, _work(record["rows"]))


def _peers_short(record: dict[str, Any]) -> str:
  rows = [row for row in record["rows"] if not row["peer"].startswith("ours")]
  peers = list(dict.fromkeys(row["peer"] for row in rows))
  cells = []
  for model, what in dict.fromkeys((r["model"], r["pass"]) for r in rows):
    found = {
      r["peer"]: r for r in rows if (r["model"], r["pass"]) == (model, what)
    }
    line = [f"{model}, {what}", _number(next(iter(found.values()))["ours"])]
    for peer in peers:
      row = found.get(peer)
      line.append(
        f"{_number(row['theirs'])} ({row['ratio']:.2f}, "
        f"{_range(row['spread'])})"
        if row
        else "-"
      )
    cells.append(line)
  head = ("images/s", "mixer", *(f"{peer} (ratio, spread)" for peer in peers))
  return _markdown(head, cells) + _source(record, _work(rows))


def _share(value: float | None) -> str:
  return f"{value:.0%}" if value else "-"


def _step(record: dict[str, Any]) -> str:
  best = max(row["matmul_flops"] for row in record["rows"])
  unit, flops = (1e12, "TFLOP/s") if best > 1e13 else (1e9, "GFLOP/s")
  cells = []
  for row in record["rows"]:
    memory, rate, flop = row["memory"], row["images_per_second"], row["flops"]
    first = row["first_step_seconds"] if row["pass"] == "train" else None
    changed = settings.name(row["set"])
    cells.append(
      [
        f"{row['model']} {changed}".strip(),
        *(str(row["batch"]), row["pass"], _number(row["seconds"] * 1e3)),
        f"{_number(rate)} ({_range(row['spread'], 1)})" if rate else "-",
        _number(flop / unit) if flop else "-",
        *(_share(row[k]) for k in ("of_matmul", "of_stated", "of_step")),
        f"{memory['temporaries'] / 2**20:,.0f}" if memory else "-",
        f"{row['compile_seconds']:.1f}",
        f"{first:.1f}" if first else "-",
      ]
    )
  head = (
    *("model", "batch", "pass", "ms", "images/s (spread)", flops),
    *("of the best matmul", "of the data sheet", "of the training step"),
    *("temporaries, MiB", "compile, s", "first step, s"),
  )
  told = _number(best / unit)
  more = f"{_one(record['rows'], 'dtype')}, best matmul {told} {flops}"
  return _markdown(head, cells) + _source(record, more)


def _end_to_end(record: dict[str, Any]) -> str:
  cells = []
  for row in record["rows"]:

    def percent(name: str, row: dict[str, Any] = row) -> str:
      least, most = (100 * (x - 1) for x in row[f"{name}_spread"])
      return f"{row[name] - 1:+.1%} ({least:+.1f} to {most:+.1f})"

    cells.append(
      [
        f"{row['model']}, {row['image_size']} px, batch {row['batch']}",
        f"{row['seconds']['bare'] * 1e3:,.1f}",
        *(percent("loop"), f"{row['loop_thread']:.2%}", percent("loader")),
        f"{row['waited']:.1%}",
        percent("both"),
        f"{records.machine(row)}, {row['dtype']}; {row['date']}, "
        f"`{row['command']}`",
      ]
    )
  head = (
    *("training", "bare step, ms", "the loop adds", "its own Python"),
    *("the loader adds", "waits for it", "in all", "measured"),
  )
  return _markdown(head, cells)


def _startup(record: dict[str, Any]) -> str:
  parts = list(record["rows"][0]["phases"])
  cells = [
    [
      *(row["model"], row["cache"], f"{row['seconds']:.1f}"),
      _range(row["spread"], 1),
      *(f"{row['phases'][p]:.1f}" for p in parts),
    ]
    for row in record["rows"]
  ]
  head = ("model", "cache", "seconds", "spread", *parts)
  return _markdown(head, cells) + _source(record, _work(record["rows"]))


def _imports(record: dict[str, Any]) -> str:
  cells = [
    [
      f"`import {row['module']}`",
      f"{row['seconds']:.2f} ({_range(row['spread'])})",
      ", ".join(f"{k} {t * 1e3:.0f}" for k, t in row["heaviest"].items()),
      f"{row['others'] * 1e3:.0f}",
    ]
    for row in record["imports"]
  ]
  head = ("module", "seconds (spread)", "heaviest packages, ms", "others, ms")
  return _markdown(head, cells) + _source(record)


# Benchmark -> what makes its tables.
_TABLES: dict[str, tuple[Callable[[dict[str, Any]], str], ...]] = {
  "step": (_step,),
  "end_to_end": (_end_to_end,),
  "startup": (_startup, _imports),
  "peers": (_peers, _peers_short),
}


def markdown(name: str, path: pathlib.Path) -> list[str]:
  """The tables of a benchmark's results, each with its origin below it.

  Args:
    name: of the benchmark.
    path: of its results.
  """
  record = json.loads(path.read_text("utf-8"))
  return [table(record) for table in _TABLES[name]]
