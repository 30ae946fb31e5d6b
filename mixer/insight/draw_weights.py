"""Figures that need nothing but the weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import figure as figure_lib

from mixer import trained
from mixer.insight import figures, kernels, mixing, tokens

_BAR = "weight / largest |weight| of the unit"
# What an overview has room for.
_ROWS, _PAIRS = 12, 10


def units_of(model: trained.Trained, block: int) -> np.ndarray:
  """`kernels.token_units` of a model, where the patches lie in the image."""
  grid = tokens.grid_of(model.module, model.image_size)
  units = kernels.unsorted_token_units(model.params, block, grid)
  where = tokens.places(model.module, model.image_size)
  if where is not None:
    flat = units.reshape(len(units), -1)
    units = tokens.on_image(flat, where).reshape(units.shape)
  return units[kernels.pair_order(units)]


def token_units(
  model: trained.Trained, block: int, units: np.ndarray
) -> figure_lib.Figure:
  """All units of a block; figure 6 of the paper.

  Args:
    model: whose they are.
    block: counted from 0.
    units: `[T, h, w]`, see `units_of`.
  """
  n, h, w = units.shape
  # In a page's format; even, so that pairs stand side by side.
  columns = figures.columns(n, np.sqrt(2.2 * n * (h + 1) / (w + 1)), 2)
  return figures.tiles(
    kernels.montage(units, columns),
    h + 1,
    (
      f"Hidden units of token mixing, {_block(model, block)}: weights of the "
      f"{h} x {w} tokens",
      f"{n} units, low spatial frequency first, each followed by its closest "
      "inverse",
      figures.subtitle(model),
    ),
    bar=_BAR,
  )


def overview(
  model: trained.Trained, blocks: Sequence[int], pairs: Sequence[np.ndarray]
) -> figure_lib.Figure:
  """Some units of several blocks; figure 5 of the paper.

  Args:
    model: whose they are.
    blocks: counted from 0.
    pairs: for each `[2 k, h, w]`, of `some_pairs`; k may differ.
  """
  h, w = pairs[0].shape[1:]
  columns = max(map(len, pairs))
  blank = np.zeros((columns, h, w), np.float32)
  rows = [np.concatenate([own, blank[len(own) :]]) for own in pairs]
  picture = kernels.montage(np.concatenate(rows), columns)
  return figures.tiles(
    picture,
    h + 1,
    (
      "Hidden units of token mixing by depth",
      "pairs of a unit and its closest inverse, evenly spaced from low to high "
      "spatial frequency",
      figures.subtitle(model),
    ),
    bar=_BAR,
    rows=tuple(f"MixerBlock_{i}" for i in blocks),
  )


def some_blocks(blocks: Sequence[int]) -> list[int]:
  """Those of an overview: all, or some evenly spaced."""
  count = min(len(blocks), _ROWS)
  places = np.round(np.linspace(0, len(blocks) - 1, count)).astype(int)
  return [blocks[i] for i in places]


def some_pairs(units: np.ndarray) -> np.ndarray:
  """Of units in the order of `kernels.pair_order` some pairs, evenly spaced."""
  count = len(units) // 2
  if not count:
    return units
  chosen = np.linspace(0, count - 1, min(count, _PAIRS)).round().astype(int)
  return units[np.stack([2 * chosen, 2 * chosen + 1], axis=1).ravel()]


def stem(model: trained.Trained) -> figure_lib.Figure:
  """All kernels of the stem; figure 7 of the paper."""
  images = kernels.stem_kernels(model.params)
  n, p = images.shape[:2]
  columns = figures.columns(n, np.sqrt(1.8 * n))
  return figures.tiles(
    kernels.montage(images, columns),
    p + 1,
    (
      f"The stem's {n} kernels of {p} x {p} px in colour, low spatial "
      "frequency first",
      "each scaled by its largest |weight|; mid-grey is 0",
      figures.subtitle(model),
    ),
  )


def distance(
  model: trained.Trained, reaches: Sequence[mixing.Reach]
) -> figure_lib.Figure:
  """Mixing distance by depth; the counterpart of figure 7 of ViT's paper."""
  p = model.module.patch_size
  apart = tokens.distances(tokens.grid_of(model.module, model.image_size))
  figure = figure_lib.Figure(figsize=(6.4, 4.2), layout="constrained")
  axes = figure.subplots()
  rng = np.random.default_rng(0)
  for reach in reaches:
    units = reach.units[np.isfinite(reach.units)]
    if len(units) > 2_000:  # Untied MLPs, or very wide ones.
      units = rng.choice(units, 2_000, replace=False)
    axes.scatter(
      reach.block + rng.uniform(-0.18, 0.18, len(units)),
      units * p,
      s=5,
      alpha=0.35,
      linewidths=0,
      color=figures.COLOURS[4],
      label="" if reach.block else "one hidden unit",
      rasterized=True,
    )
  axes.plot(
    [reach.block for reach in reaches],
    [reach.whole * p for reach in reaches],
    "o-",
    color=figures.COLOURS[0],
    label="the whole map |W2 W1|",
  )
  axes.axhline(
    apart.mean() * p,
    color=figures.COLOURS[5],
    linestyle="--",
    label="uniform mixing",
  )
  axes.set_ylim(0, max(axes.get_ylim()[1], apart.mean() * p * 1.15))
  axes.set_xticks(_ticks(len(reaches)))
  axes.set_xlabel("MixerBlock (0 is the first)")
  axes.set_ylabel("mean distance between tokens (px)")
  patches: Any = (lambda y: y / p, lambda y: y * p)
  right = axes.secondary_yaxis("right", patches)
  right.set_ylabel("(patches)")
  figure.legend(loc="outside lower center", ncols=3)
  figure.suptitle(
    f"Token-mixing distance by depth\n{figures.subtitle(model)}", fontsize=8
  )
  return figure


def _ticks(count: int) -> list[int]:
  return list(range(0, count, 1 if count <= 16 else 2 if count <= 32 else 4))


def _block(model: trained.Trained, block: int) -> str:
  return f"MixerBlock_{block} ({block + 1} of {model.module.num_blocks})"
