"""The picture of `benchmarks.peers`."""

import pathlib
from typing import Any

import matplotlib.figure

from benchmarks.peer_field import PLAIN

_COLOURS = ("#8c8c8c", "#d98c3f", "#7a6aa8", "#c7c7c7")


def draw(record: dict[str, Any], path: pathlib.Path) -> None:
  """Bars of images/s, ours first, for each model and pass.

  A bar's whisker is from the least to the most of its rounds.

  Args:
    record: as written.
    path: of a .png file.
  """
  rows = [r for r in record["rows"] if r["peer"] != PLAIN]
  groups = list(dict.fromkeys((r["model"], r["pass"]) for r in rows))
  figure = matplotlib.figure.Figure(
    figsize=(2.6 * len(groups) + 0.6, 3.8), layout="constrained"
  )
  axes = figure.subplots(1, len(groups), squeeze=False)[0]
  for axis, (model, what) in zip(axes, groups, strict=True):
    found = [r for r in rows if (r["model"], r["pass"]) == (model, what)]
    bars = [("ours", found[0]["ours"], found[0]["rounds"]["ours"], "#2f6f9f")]
    bars += [
      (r["peer"], r["theirs"], r["rounds"]["theirs"], colour)
      for r, colour in zip(found, _COLOURS, strict=False)
    ]
    for i, (_, rate, rounds, colour) in enumerate(bars):
      whisker = [[rate - min(rounds)], [max(rounds) - rate]]
      axis.bar(i, rate, 0.75, color=colour, yerr=whisker, capsize=3)
      axis.annotate(
        f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}",
        (i, max(rounds)),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=9,
      )
    axis.set_xticks(
      range(len(bars)), [b[0].replace(" ", "\n") for b in bars], fontsize=9
    )
    axis.set_ylim(0, 1.12 * max(max(b[2]) for b in bars))
    axis.set_title(f"{model}, {what}", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
  axes[0].set_ylabel("images/s")
  first = rows[0]
  kind = record["environment"]["device_kind"]
  where = record["processor"] if kind == "cpu" else kind
  figure.suptitle(
    f"{where}, {record['cores']} cores, {first['dtype']}, batch "
    f"{first['batch']}, {record['date']}",
    fontsize=10,
  )
  figure.savefig(path, dpi=130)
