"""The picture of `benchmarks.curves`."""

import pathlib
from typing import Any

import matplotlib.figure
import matplotlib.ticker

from benchmarks import records

_AXES = {
  "batch": "batch",
  "model": "and GFLOP of a step's matmuls",
  "image": "side of the image, pixels",
  "devices": "virtual devices on the same cores",
}
_MEASURED, _LAW = "#2f6f9f", "#d98c3f"


def _gflop(row: dict[str, Any]) -> float:
  """Of a step, by its matmuls."""
  return row["law"]["matmuls"] * row["matmul_flops"] / 1e9


def _title(curve: str, row: dict[str, Any]) -> str:
  parts = {"model": row["model"], "batch": f"batch {row['batch']}"}
  told = [text for name, text in parts.items() if name != curve]
  return f"By {curve}: {', '.join(told)}"


def draw(record: dict[str, Any], path: pathlib.Path) -> None:
  """Milliseconds a step by what grows, measured and by the law, log-log.

  Args:
    record: as written.
    path: of a .png file.
  """
  curves = record["curves"]
  columns = min(2, len(curves))
  rows = -(-len(curves) // columns)
  figure = matplotlib.figure.Figure(
    figsize=(4.9 * columns, 3.7 * rows + 0.4), layout="constrained"
  )
  grid = figure.subplots(rows, columns, squeeze=False).flat
  for axis, (curve, found) in zip(grid, curves.items(), strict=False):
    if curve == "model":
      # One beside the other: some differ by little.
      found = sorted(found, key=_gflop)
      x = list(range(len(found)))
      ticks = [f"{row['model']}\n{_gflop(row):,.0f}" for row in found]
    else:
      found = sorted(found, key=lambda row, curve=curve: row[curve])
      x = [row[curve] for row in found]
      ticks = [f"{value:,}" for value in x]
      axis.set_xscale("log")
    y = [row["seconds"] * 1e3 for row in found]
    spread = [row["spread"] for row in found]
    whiskers = [
      [t - least * 1e3 for t, (least, _) in zip(y, spread, strict=True)],
      [most * 1e3 - t for t, (_, most) in zip(y, spread, strict=True)],
    ]
    law = [row["law"]["all"] * 1e3 for row in found]
    axis.plot(x, law, "--", color=_LAW, label="law: matmuls and optimizer")
    axis.errorbar(
      x, y, whiskers, fmt="o-", color=_MEASURED, capsize=3, label="measured"
    )
    for i, row in enumerate(found):
      # What is written above a point is how far it is from the law.
      axis.annotate(
        f"{row['over']:.2f}x",
        (x[i], row["spread"][1] * 1e3),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=8,
      )
    axis.set(yscale="log", xlabel=_AXES[curve])
    axis.set_ylim(min(law + y) / 1.5, max(law + y) * 2.2)
    axis.margins(x=0.1)
    axis.set_xticks(x, ticks)
    axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.yaxis.set_major_formatter(
      matplotlib.ticker.StrMethodFormatter("{x:,g}")
    )
    axis.set_title(_title(curve, found[0]), fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
  for axis in list(figure.axes)[len(curves) :]:
    axis.set_axis_off()
  for i in range(0, len(curves), columns):
    figure.axes[i].set_ylabel("ms a training step")
  figure.axes[0].legend(loc="upper left", fontsize=8, frameon=False)
  dtype = next(iter(curves.values()))[0]["dtype"]
  figure.suptitle(
    f"{records.machine(record)}, {dtype}, {record['date']}; above each point: "
    "measured over law",
    fontsize=10,
  )
  figure.savefig(path, dpi=130)
