"""What `benchmarks.step` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import passes, settings

_START = f"{'model':<6}{'batch':>6} {'pass':<11}{'ms':>10}{'images/s':>10}"
_ALONE = (
  f"{'GFLOP/s':>10}{'of matmul':>10}{'of stated':>10}{'of step':>9}"
  f"{'temporaries':>13}{'compile':>9}{'first step':>12}"
)
_COMPARED = f"{'ratio':>7} {'(spread)':<16}{'temporaries':>12}  setting"


def head(groups: Sequence[Mapping[str, Any]]) -> str:
  """The heading, for one setting or several."""
  text = _START + (_ALONE if len(groups) == 1 else _COMPARED)
  return f"{text}\n{'-' * len(text)}"


def _share(value: float | None) -> str:
  return f"{value:.0%}" if value else "-"


def _start(row: Mapping[str, Any]) -> str:
  rate = row["images_per_second"]
  return (
    f"{row['model']:<6}{row['batch']:>6} {row['pass']:<11}"
    f"{row['seconds'] * 1e3:>10,.2f}{f'{rate:,.1f}' if rate else '-':>10}"
  )


def _temporaries(row: Mapping[str, Any]) -> str:
  memory = row["memory"]
  return f"{memory['temporaries'] / 2**20:,.0f} MiB" if memory else "-"


def line(row: Mapping[str, Any]) -> str:
  """A row of the table that is printed."""
  flop = row["flops"]
  first = row["first_step_seconds"] if row["pass"] == "train" else None
  told = (
    f"{_start(row)}{f'{flop / 1e9:,.0f}' if flop else '-':>10}"
    f"{_share(row['of_matmul']):>10}{_share(row['of_stated']):>10}"
    f"{_share(row['of_step']):>9}{_temporaries(row):>13}"
    f"{row['compile_seconds']:>7.1f} s"
    f"{f'{first:.1f} s' if first else '':>12}"
  )
  return told.rstrip()


def _compared(row: Mapping[str, Any]) -> str:
  least, most = row["ratio_spread"]
  spread = f"({least:.2f} to {most:.2f})"
  return (
    f"{_start(row)}{row['ratio']:>7.2f} {spread:<16}{_temporaries(row):>12}  "
    f"{settings.name(row['set']) or 'default'}"
  )


def lines(
  rows: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> list[str]:
  """Those of a size; with several settings, one pass after the other."""
  if len(groups) == 1:
    return [line(row) for row in rows]
  ordered = sorted(rows, key=lambda row: passes.NAMES.index(row["pass"]))
  return [_compared(row) for row in ordered]
