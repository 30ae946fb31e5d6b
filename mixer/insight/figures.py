"""Figures of a trained Mixer: of its weights, and of what it does with images.

Each function is a figure of `mixer visualize`: of a model, images and flags it
yields names of files and figures, whose first line says what they show.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colors, rcParams
from matplotlib.figure import Figure

from mixer import errors, files, trained
from mixer.errors import UserError
from mixer.insight import activations, kernels

_DPI = 200
# Okabe and Ito's colours for the colour-blind, without yellow and black.
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_COLOURS = (_BLUE, _ORANGE, _GREEN, "#CC79A7", "#56B4E9", _RED, "#666666")
_STYLE: Any = {
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlesize": 8,
  "figure.titlesize": 9,
  "font.size": 8,
  "image.interpolation": "none",
  "svg.hashsalt": "mixer",  # Ids of an SVG's parts: the same each time.
  "text.parse_math": False,  # Names of files and classes may hold a $.
}
rcParams.update(_STYLE)
# Pixels of a file: a picture's width, a tile's height.
_PAGE, _TILE = 1800, 110
# What an overview of units shows: blocks, units of each.
_ROWS, _UNITS = 12, 20
# Panels of the receptive field, and images behind it.
_DEPTHS, _FIELD_IMAGES = 8, 16

Drawn = Iterator[tuple[str, Figure]]


class Images(NamedTuple):
  """Images to look at a model with, and their classes or folders."""

  images: np.ndarray  # uint8 `[N, H, W, 3]`, as the model takes them.
  names: Sequence[str]
  labels: Sequence[str]


def save(figure: Figure, folder: pathlib.Path, name: str) -> None:
  """Writes a PNG of 200 dots an inch, and an SVG; always the same bytes."""
  for kind, none in (("png", ["Software"]), ("svg", ["Date", "Creator"])):
    with files.atomic_write(folder / f"{name}.{kind}") as f:
      metadata = dict.fromkeys(none)
      figure.savefig(f, format=kind, dpi=_DPI, metadata=metadata)


def _figure(
  model: trained.Trained, width: float, height: float, *lines: str
) -> Figure:
  """An empty one, titled by the lines, the model, and where that is."""
  figure = Figure(figsize=(width, height), layout="constrained")
  rows, columns = model.image_size
  name = f"{kernels.model_name(model.params)}, {rows} x {columns} px"
  figure.suptitle("\n".join([*lines, name, _short(model.source, -70)]))
  return figure


def _short(name: str, most: int) -> str:
  """The beginning of a name, or its end where `most` is negative."""
  name = errors.printable(name)
  if len(name) <= abs(most):
    return name
  return f"{name[:most]}..." if most > 0 else f"...{name[most:]}"


def _grid(model: trained.Trained) -> tuple[tuple[int, int], np.ndarray]:
  """(rows, columns) of tokens, and the place of each in the image."""
  m, (height, width) = model.module, model.image_size
  grid = height // m.patch_size, width // m.patch_size
  return grid, kernels.token_places(grid, m.permute, m.permute_seed)


def _tiles(
  model: trained.Trained,
  images: np.ndarray,
  columns: int,
  lines: Sequence[str],
  rows: Sequence[str] = (),
) -> Figure:
  """A montage, each of its pixels drawn as equally many of the file's."""
  picture, unit = kernels.montage(images, columns), images.shape[1] + 1
  zoom = max(1, min(_PAGE // picture.shape[1], _TILE // unit))
  h, w = picture.shape[0] * zoom, picture.shape[1] * zoom
  height, width = h + 240, max(w + 480, 1600)
  figure = _figure(model, width / _DPI, height / _DPI, *lines)
  figure.set_layout_engine("none")
  left = (width - w) // 2 / width
  box = left, 40 / height, w / width, h / height
  axes = figure.add_axes(box, frame_on=False)
  axes.imshow(picture, aspect="auto")
  axes.set_xticks([])
  axes.set_yticks([(i + 0.5) * unit for i in range(len(rows))], rows)
  axes.tick_params(length=0)
  return figure


def tokens(model: trained.Trained, *args: Any) -> Drawn:
  """Figures 6 and 5 of the paper: all units of a block; some of each block."""
  count, (grid, places) = model.module.num_blocks, _grid(model)
  some, problem = [], None
  for i in range(count):
    try:
      units = kernels.token_units(model.params, i, grid, places)
    except UserError as e:  # From a pyramid's first step on.
      problem = e
      break
    some.append(kernels.some_pairs(units, _UNITS))
    # In a page's format; even, so that pairs stand side by side.
    columns = 2 * round(np.sqrt(0.55 * len(units) * grid[0] / grid[1])) or 2
    lines = (
      f"All {len(units)} hidden units of token mixing in MixerBlock_{i}: "
      f"weights of the {grid[0]} x {grid[1]} tokens",
      "low frequency first, each followed by its closest inverse; red above 0, "
      "blue below, each scaled by its largest |weight|",
    )
    name = f"tokens_block{i:0{len(str(count - 1))}}"
    yield name, _tiles(model, units, columns, lines)
  if some:
    blocks = kernels.evenly(len(some), _ROWS)
    units = np.concatenate([some[i] for i in blocks])
    lines = (
      "Hidden units of token mixing by depth",
      "pairs of a unit and its closest inverse, from low to high frequency",
    )
    names = [f"MixerBlock_{i}" for i in blocks]
    yield "tokens", _tiles(model, units, len(some[0]), lines, names)
  if problem:
    raise problem


def stem(model: trained.Trained, *args: Any) -> Drawn:
  """Figure 7 of the paper."""
  images = kernels.stem_kernels(model.params)
  n, p = images.shape[:2]
  lines = (
    f"The stem's {n} kernels of {p} x {p} px in colour",
    "low frequency first; each scaled by its largest |weight|; mid-grey is 0",
  )
  yield "stem", _tiles(model, images, round(np.sqrt(1.8 * n)), lines)


def distance(model: trained.Trained, *args: Any) -> Drawn:
  """As ViT's paper has it of attention in its figure 7."""
  p, count = model.module.patch_size, model.module.num_blocks
  apart = kernels.token_distances(*_grid(model))
  found = kernels.mixing_distances(model.params, count, apart)
  if not found:
    raise UserError("the first block already changes the number of tokens.")
  figure = _figure(model, 6.4, 4.2, "Token-mixing distance by depth")
  axes = figure.subplots()
  rng = np.random.default_rng(0)
  dots: Any = {"color": _COLOURS[4], "alpha": 0.35, "rasterized": True}
  for block, (_, units) in enumerate(found):
    units = units[kernels.evenly(len(units), 2000)] * p  # Untied: very many.
    places = block + rng.uniform(-0.18, 0.18, len(units))
    label = "" if block else "one hidden unit"
    axes.plot(places, units, ".", label=label, **dots)
  wholes = [whole * p for whole, _ in found]
  axes.plot(wholes, "o-", color=_BLUE, label="the whole map |W2 W1|")
  axes.axhline(apart.mean() * p, color=_RED, ls="--", label="uniform mixing")
  axes.set_ylim(0)
  axes.locator_params("x", integer=True)
  axes.set_xlabel("MixerBlock (0 is the first)")
  axes.set_ylabel(f"mean distance between tokens (px; a patch has {p})")
  figure.legend(loc="outside lower center", ncols=3)
  yield "distance", figure


def receptive_field(model: trained.Trained, shown: Images, *args: Any) -> Drawn:
  """What the central token depends on, by depth."""
  p, (_, places) = model.module.patch_size, _grid(model)
  pyramid = [i for i, _ in model.module.mixing.pyramid]
  last = min(pyramid, default=model.module.num_blocks)
  depths = kernels.evenly(last + 1, _DEPTHS).tolist()
  images = shown.images[kernels.evenly(len(shown.images), _FIELD_IMAGES)]
  fields = activations.receptive_fields(model, images, depths, places)
  columns = -(-len(depths) // 2)
  even = activations.radius(np.ones_like(fields[0]), p)
  figure = _figure(
    model,
    1.8 * columns + 0.6,
    5.2,
    f"Effective receptive field of the central token, {len(images)} images",
    f"and its mean distance from the token ({even:.1f} px if all were alike)",
  )
  panels = figure.subplots(2, columns, squeeze=False)
  drawn: Any = None
  for axes in panels.flat:
    axes.set_axis_off()
  for axes, depth, field in zip(panels.flat, depths, fields, strict=False):
    # Of orders of magnitude: what is far is small, and what one looks for.
    values = np.maximum(field / (field.max() or 1), 1e-4)
    drawn = axes.imshow(values, norm=colors.LogNorm(1e-4, 1), cmap="cividis")
    after = f"after block {depth}" if depth else "stem"
    axes.set_title(f"{after}: {activations.radius(field, p):.1f} px")
  bar = figure.colorbar(drawn, ax=panels, location="bottom", format="%g")
  bar.set_label("gradient of the central token / its largest")
  yield "receptive_field", figure


def similarity(model: trained.Trained, shown: Images, *args: Any) -> Drawn:
  """Of the tokens after each block to those after each other one."""
  if model.module.mixing.pyramid:
    raise UserError("the blocks of a pyramid have different numbers of tokens.")
  cka, cosine = activations.similarity(model, shown.images)
  title = f"Similarity of layers, over {len(shown.images)} images"
  figure = _figure(model, 9, 4.3, title)
  left, right = figure.subplots(1, 2)
  for axes, values, what, colour, low in (
    (left, cka, "linear CKA of images' tokens", "cividis", 0),
    (right, cosine, "mean cosine of tokens", "RdBu_r", -1),
  ):
    drawn = axes.imshow(values, vmin=low, vmax=1, cmap=colour, origin="lower")
    axes.set_title(what)
    axes.locator_params(integer=True)
    axes.set_xlabel("blocks passed (0: the stem)")
    axes.set_ylabel("blocks passed")
    figure.colorbar(drawn, ax=axes, shrink=0.8)
  yield "similarity", figure


def saliency(model: trained.Trained, shown: Images, flags: Any) -> Drawn:
  """Which pixels the class with the highest logit rests on."""
  if not model.num_classes:
    raise UserError(
      "the checkpoint has no head, so it predicts no classes; take one that "
      "was fine-tuned."
    )
  chosen = kernels.evenly(len(shown.images), flags.explain).tolist()
  found = activations.saliency(model, shown.images[chosen], flags.smooth)
  tall = 1.8 * model.image_size[0] / model.image_size[1] + 0.35
  title = "Which pixels the prediction rests on"
  figure = _figure(model, 7, len(chosen) * tall + 1, title)
  smooth = f" (SmoothGrad, {flags.smooth})" if flags.smooth else ""
  side, _ = activations.window(model.image_size, model.module.patch_size)
  for i, row, (label, score, slope, fall) in zip(
    chosen, figure.subplots(len(chosen), 3, squeeze=False), found, strict=True
  ):
    image, predicted = shown.images[i], _short(_class_names(model)[label], 22)
    name = _short(str(shown.names[i]), 30)
    row[0].set_title(f"{name}\npredicted: {predicted}, {score:.1%}")
    row[1].set_title(f"gradient{smooth}")
    row[2].set_title(f"covered, {side} px window")
    for axes in row:
      axes.set_axis_off()
    row[0].imshow(image)
    # Marked in orange over a faint image; the largest hundredth would leave
    # the rest dark.
    grey = image.mean(axis=-1) / 255
    heat = np.clip(slope / (np.quantile(slope, 0.99) or 1), 0, 1)[..., None]
    faint = 0.35 * grey[..., None] * (1 - heat)
    row[1].imshow(faint + np.array(colors.to_rgb(_ORANGE)) * heat)
    most = max(float(np.abs(fall).max()), 1e-6)
    row[2].imshow(grey, cmap="gray", vmin=-1.2, vmax=1)
    look: Any = {"cmap": "coolwarm", "alpha": 0.65, "vmin": -most, "vmax": most}
    drawn = row[2].imshow(fall, **look)
    figure.colorbar(drawn, ax=row[2], shrink=0.9, label="fall of the score")
  yield "saliency", figure


def embedding(model: trained.Trained, shown: Images, flags: Any) -> Drawn:
  """Images by what enters the head, in a plane."""
  features = activations.features(model, shown.images)
  labels, kind = np.array(shown.labels), None
  if len({*shown.labels}) == 1 and model.num_classes:
    head, kind = model.params["head"], "predicted class"
    logits = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    labels = np.array(_class_names(model))[logits.argmax(axis=-1)]
  values, counts = np.unique(labels, return_counts=True)
  common = values[np.argsort(-counts, kind="stable")][: 2 * len(_COLOURS)]
  for method in dict.fromkeys(("pca", flags.embedding)):
    points, axis_labels = activations.plane(features, method)
    title = f"Features of {len(labels)} images (what enters the head): {method}"
    figure = _figure(model, 7.6, 5.2, title)
    axes = figure.subplots()
    rest = points[~np.isin(labels, common)]
    if len(rest):
      other = f"{len(values) - len(common)} others"
      axes.plot(*rest.T, ".", color="#C8C8C8", label=other)
    for k, value in enumerate(sorted(common)):
      half, colour = divmod(k, len(_COLOURS))
      look: Any = {"color": _COLOURS[colour], "label": _short(str(value), 24)}
      axes.plot(*points[labels == value].T, "o^"[half], **look)
    axes.set_xlabel(axis_labels[0])
    axes.set_ylabel(axis_labels[1])
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), title=kind)
    yield f"embedding_{method}", figure


def _class_names(model: trained.Trained) -> list[str]:
  numbers = [f"output {k}" for k in range(model.num_classes)]
  return list(model.class_names or numbers)
