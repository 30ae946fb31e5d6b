"""Figures of what a model does with images."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colors, ticker
from matplotlib import figure as figure_lib

from mixer import text as text_lib
from mixer import trained
from mixer.insight import figures, receptive
from mixer.insight import saliency as saliency_lib

# Classes that have a colour and a sign of their own.
_CLASSES = 14
_MARKERS = "o^"
_OTHER = "#C8C8C8"


def receptive_field(
  model: trained.Trained, depths: Sequence[int], fields: np.ndarray, count: int
) -> figure_lib.Figure:
  """The central token's effective receptive field, and its size, by depth.

  Args:
    model: whose they are.
    depths: blocks passed.
    fields: `[len(depths), H, W]`, see `receptive.fields`.
    count: of the images behind it.
  """
  p = model.module.patch_size
  columns = -(-len(depths) // 2)
  figure = figure_lib.Figure(figsize=(1.7 * columns + 3.6, 4.6))
  figure.set_layout_engine("constrained")
  parts: Any = figure.subfigures(1, 2, width_ratios=(1.7 * columns + 0.5, 3.1))
  panels = parts[0].subplots(2, columns, squeeze=False)
  drawn = None
  for axes in panels.flat:
    axes.set_axis_off()
  for axes, depth, field in zip(panels.flat, depths, fields, strict=False):
    # Of orders of magnitude: what is far is small, and what one looks for.
    drawn = axes.imshow(
      np.maximum(field / (field.max() or 1), 1e-4),
      norm=colors.LogNorm(1e-4, 1),
      cmap="cividis",
      interpolation="none",
    )
    axes.set_title(_after(depth))
  bar = parts[0].colorbar(
    drawn, ax=panels, location="bottom", shrink=0.6, aspect=40
  )
  ticks = ("0.0001", "0.001", "0.01", "0.1", "1")
  bar.set_ticks([float(tick) for tick in ticks], labels=list(ticks))
  bar.minorticks_off()
  bar.set_label("gradient of the central token / its largest")
  axes = parts[1].subplots()
  sizes = [receptive.radius(field, p) for field in fields]
  axes.plot(depths, sizes, "o-", color=figures.COLOURS[0], label="this model")
  flat = receptive.radius(np.ones_like(fields[0]), p)
  axes.axhline(
    flat, color=figures.COLOURS[5], linestyle="--", label="all pixels alike"
  )
  own = np.zeros_like(fields[0])
  row, column = divmod(
    receptive.central((own.shape[0] // p, own.shape[1] // p)), own.shape[1] // p
  )
  own[row * p : (row + 1) * p, column * p : (column + 1) * p] = 1
  axes.axhline(
    receptive.radius(own, p),
    color=figures.COLOURS[2],
    linestyle=":",
    label="the token's own patch",
  )
  axes.set_ylim(0, flat * 1.15)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  axes.set_xlabel("blocks passed (0: the stem)")
  axes.set_ylabel("mean distance from the token, by gradient (px)")
  parts[1].legend(loc="outside lower center")
  figure.suptitle(
    f"Effective receptive field of the central token, mean over {count} "
    f"image{'s' * (count > 1)}\n{figures.subtitle(model)}",
    fontsize=8,
  )
  return figure


def similarity(
  model: trained.Trained, cka: np.ndarray, cosine: np.ndarray, count: int
) -> figure_lib.Figure:
  """How alike layers are: `[L, L]` each, of that many images."""
  figure = figure_lib.Figure(figsize=(9, 4.3), layout="constrained")
  layers = len(cka)
  step = 1 if layers <= 13 else 2 if layers <= 25 else 4
  for axes, values, title, cmap, low in zip(
    figure.subplots(1, 2),
    (cka, cosine),
    ("linear CKA of images' tokens", "mean cosine of tokens"),
    ("cividis", "RdBu_r"),
    (0, -1),
    strict=True,
  ):
    drawn = axes.imshow(
      values,
      vmin=low,
      vmax=1,
      cmap=cmap,
      origin="lower",
      interpolation="none",
    )
    axes.set_title(title)
    axes.set_xticks(range(0, layers, step))
    axes.set_yticks(range(0, layers, step))
    axes.set_xlabel("blocks passed (0: the stem)")
    axes.set_ylabel("blocks passed")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label=title.split(" of")[0])
  figure.suptitle(
    f"Similarity of layers, over {count} images\n{figures.subtitle(model)}",
    fontsize=8,
  )
  return figure


def saliency(
  model: trained.Trained,
  images: np.ndarray,
  names: Sequence[str],
  found: Sequence[saliency_lib.Saliency],
  smooth: int,
) -> figure_lib.Figure:
  """A row an image: itself, its gradient, what covering it does."""
  rows = len(images)
  height, width = images.shape[1:3]
  side = 1.8
  tall = side * height / width
  figure = figure_lib.Figure(figsize=(3 * side + 1.6, rows * (tall + 0.35) + 1))
  figure.set_layout_engine("constrained")
  grid = figure.subplots(rows, 3, squeeze=False)
  kind = f"gradient (SmoothGrad, {smooth})" if smooth else "gradient"
  covered, _ = saliency_lib.window(model.image_size, model.module.patch_size)
  for row, axes in enumerate(grid):
    image, name, one = images[row], names[row], found[row]
    label = _class(model, one.label)
    titles = (
      f"{_short(name, 30)}\npredicted: {_short(label, 22)}, {one.score:.1%}",
      kind,
      f"covered, {covered} px window",
    )
    for axis, title in zip(axes, titles, strict=True):
      axis.imshow(image, interpolation="none")
      if axis is axes[0] or not row:
        axis.set_title(title, fontsize=7)
      axis.set_axis_off()
    grey = image.mean(axis=-1) / 255
    # The largest hundredth would leave the rest dark.
    top = np.quantile(one.gradient, 0.99) or 1
    axes[1].imshow(
      _over(grey, np.clip(one.gradient / top, 0, 1)), interpolation="none"
    )
    limit = max(float(np.abs(one.occlusion).max()), 1e-6)
    axes[2].imshow(grey, cmap="gray", vmin=-1.2, vmax=1, interpolation="none")
    drawn = axes[2].imshow(
      one.occlusion,
      cmap="coolwarm",
      vmin=-limit,
      vmax=limit,
      alpha=0.65,
      interpolation="none",
    )
    bar = figure.colorbar(drawn, ax=axes[2], shrink=0.9, fraction=0.08)
    bar.ax.tick_params(labelsize=6)
    bar.set_label("fall of the score", fontsize=6)
  figure.suptitle(
    "Which pixels the prediction rests on\n"
    + textwrap.fill(figures.subtitle(model), 84),
    fontsize=8,
  )
  return figure


def embedding(
  model: trained.Trained,
  points: np.ndarray,
  axis_labels: Sequence[str],
  method: str,
  labels: Sequence[str],
  what: str,
) -> figure_lib.Figure:
  """Features in a plane.

  Args:
    model: whose they are.
    points: `[N, 2]`.
    axis_labels: of both axes.
    method: its name.
    labels: the class of each point.
    what: the colours mean.
  """
  figure = figure_lib.Figure(figsize=(7.6, 5.2), layout="constrained")
  axes = figure.subplots()
  values, counts = np.unique(np.array(labels), return_counts=True)
  common = values[np.argsort(-counts, kind="stable")]
  named = sorted(common if len(common) <= _CLASSES else common[: _CLASSES - 1])
  of = np.array(labels)
  rest = ~np.isin(of, named)
  for k, value in enumerate(named):
    axes.scatter(
      *points[of == value].T,
      s=22,
      color=figures.COLOURS[k % len(figures.COLOURS)],
      marker=_MARKERS[k // len(figures.COLOURS)],
      edgecolors="white",
      linewidths=0.4,
      label=_short(str(value), 24),
    )
  if rest.any():
    axes.scatter(
      *points[rest].T,
      s=14,
      color=_OTHER,
      zorder=0.5,
      linewidths=0,
      label=f"{len(values) - len(named)} others",
    )
  axes.set_xlabel(axis_labels[0])
  axes.set_ylabel(axis_labels[1])
  axes.legend(
    loc="upper left",
    bbox_to_anchor=(1.01, 1),
    borderaxespad=0,
    title=what,
    alignment="left",
  )
  figure.suptitle(
    f"Features of {len(points)} images (what enters the head), by {method}\n"
    + figures.subtitle(model),
    fontsize=8,
  )
  return figure


def _over(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """Marks what counts in orange over a faint image, `[H, W, 3]`."""
  base = 0.35 * grey[..., None].repeat(3, axis=-1)
  mark = np.array(colors.to_rgb(figures.COLOURS[1]))
  return base * (1 - heat[..., None]) + mark * heat[..., None]


def _class(model: trained.Trained, label: int) -> str:
  return model.class_names[label] if model.class_names else f"output {label}"


def _after(depth: int) -> str:
  return (
    f"after {depth} block{'s' * (depth > 1)}" if depth else "after the stem"
  )


def _short(name: str, most: int) -> str:
  text = text_lib.printable(name)
  return text if len(text) <= most else f"{text[: most - 3]}..."
