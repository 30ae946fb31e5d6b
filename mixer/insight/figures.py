"""What all figures share: their look, their titles, their files."""

import contextlib
import math
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib import figure as figure_lib
from matplotlib import rc_context

from mixer import files, text, trained
from mixer import model as model_lib
from mixer.insight import kernels

DPI = 200
# Okabe and Ito's colours for the colour-blind, without yellow and black.
COLOURS = (
  "#0072B2",
  "#E69F00",
  "#009E73",
  "#CC79A7",
  "#56B4E9",
  "#D55E00",
  "#666666",
)
_STYLE: Any = {
  "font.family": "DejaVu Sans",  # Matplotlib brings it along.
  "font.size": 9,
  "axes.titlesize": 9,
  "figure.titlesize": 10,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "legend.frameon": False,
  "savefig.facecolor": "white",
  "svg.hashsalt": "mixer",  # Ids of an SVG's parts: the same each time.
  "text.parse_math": False,  # Names of files and classes may hold a $.
}
# Pixels of a file: a picture's width, a tile's height.
_PAGE, _TILE = 1800, 110
_WIDE = 104  # Characters that a title of full width has room for.


@contextlib.contextmanager
def style() -> Iterator[None]:
  """Figures are made and saved within."""
  with rc_context(_STYLE):
    yield


def save(
  figure: figure_lib.Figure, folder: pathlib.Path, name: str
) -> list[pathlib.Path]:
  """Writes a PNG of 200 dots an inch, and an SVG; always the same bytes."""
  written = [folder / f"{name}.png", folder / f"{name}.svg"]
  with warnings.catch_warnings():
    # Characters that the font lacks are drawn as boxes.
    warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
    for path, options in zip(
      written,
      (
        {"format": "png", "dpi": DPI, "metadata": {"Software": None}},
        {"format": "svg", "metadata": {"Date": None, "Creator": None}},
      ),
      strict=True,
    ):
      with files.atomic_write(path) as f:
        figure.savefig(f, **options)
  return written


def name_of(model: trained.Trained) -> str:
  """The model, for titles: "Mixer-S/16 at 224 x 224 px"."""
  module = model.module
  height, width = model.image_size
  name = (
    f"Mixer of {module.num_blocks} blocks, {module.hidden_dim} channels, "
    f"patches of {module.patch_size} px,"
  )
  own = module.num_blocks, module.hidden_dim, module.channels_mlp_dim
  for known in "SBLH":
    variant = model_lib.parse_variant(f"{known}/{module.patch_size}")
    widths = variant.num_blocks, variant.hidden_dim, variant.channels_mlp_dim
    if widths == own:
      name = f"Mixer-{known}/{module.patch_size}"
  return f"{name} at {height} x {width} px"


def subtitle(model: trained.Trained) -> str:
  """The model and where it lies, for a figure's second line."""
  source = text.printable(model.source)
  name = name_of(model)
  while len(name) + len(source) > _WIDE and "/" in source[4:]:
    source = f".../{source[4:].split('/', 1)[1]}"
  return f"{name}; {source}"


def tiles(
  picture: np.ndarray,
  unit: int,
  lines: tuple[str, ...],
  *,
  bar: str = "",
  rows: tuple[str, ...] = (),
) -> figure_lib.Figure:
  """A montage, each of its pixels drawn as equally many of the file's.

  Args:
    picture: uint8 `[h, w, 3]`, see `kernels.montage`.
    unit: its pixels from one tile to the next, downwards.
    lines: of the title; the first is larger.
    bar: what the colours mean, where they are those of `kernels.diverging`.
    rows: names of the rows of tiles.
  """
  height, width = picture.shape[:2]
  # As wide as a page, but no tile above a centimetre or so.
  zoom = max(1, min(_PAGE // width, _TILE // unit))
  # All in whole pixels of the file, as else squares differ in size.
  inner = width * zoom, height * zoom
  label, margin = 220 if rows else 0, 30
  top, bottom = 56 + 36 * len(lines), 124 if bar else 24
  full = max(label + inner[0] + 2 * margin, 1520), top + inner[1] + bottom
  figure = figure_lib.Figure(figsize=(full[0] / DPI, full[1] / DPI))
  left = (full[0] - inner[0] + label) // 2

  def box(x: int, y: int, w: int, h: int) -> Any:
    return x / full[0], y / full[1], w / full[0], h / full[1]

  axes = figure.add_axes(box(left, bottom, *inner))
  axes.imshow(picture, interpolation="none", aspect="auto")
  axes.set_axis_off()
  for i, row in enumerate(rows):
    y = (i + 0.5) * unit / height
    axes.text(
      -16 / inner[0],
      1 - y,
      row,
      transform=axes.transAxes,
      ha="right",
      va="center",
      fontsize=8,
    )
  for i, line in enumerate(lines):
    figure.text(
      0.5,
      1 - (44 + 36 * i) / full[1],
      line,
      ha="center",
      va="center",
      fontsize=8 if i else 10,
    )
  if bar:
    below = figure.add_axes(box(full[0] // 2 - 300, bottom - 48, 600, 20))
    ramp = kernels.diverging(np.linspace(-1, 1, 256))[None]
    below.imshow(ramp, extent=(-1, 1, 0, 1), aspect="auto")
    below.spines[:].set_visible(False)
    below.set_yticks([])
    below.set_xticks([-1, 0, 1])
    below.tick_params(labelsize=7, length=2, pad=2)
    below.set_xlabel(bar, fontsize=7, labelpad=1)
  return figure


def columns(count: int, ideal: float, step: int = 1) -> int:
  """Tiles in a row, near an ideal, so that the last row is full or nearly.

  Args:
    count: of tiles.
    ideal: how many there should be in a row.
    step: of which it is a multiple.
  """
  low, high = max(1, round(0.75 * ideal / step)), round(1.35 * ideal / step)
  choices = [step * k for k in range(low, max(high, low) + 1)]
  best = min(choices, key=lambda c: (-count % c, abs(math.log(c / ideal))))
  return min(best, -(-count // step) * step)
