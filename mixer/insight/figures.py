"""Figures of a trained Mixer: of its weights, and of what it does with images.

Each function but `save` is a figure of `mixer visualize`: of a model, images
uint8 `[N, H, W, 3]`, their labels and flags it yields names of files and
figures, whose first line says what they show.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import colors, rcParams
from matplotlib.figure import Figure

from mixer import errors, files, trained
from mixer.errors import UserError
from mixer.insight import activations, kernels

_DPI = 200
_LOOK: Any = {
  "axes.titlesize": 8,
  "figure.titlesize": 9,
  "font.size": 8,
  "image.interpolation": "none",
  "svg.hashsalt": "mixer",  # The same ids in an SVG each time.
  "text.parse_math": False,  # Names of files and classes may hold a $.
}
rcParams.update(_LOOK)
_PAGE, _TILE = 1800, 110  # Pixels: a picture's width, a tile's height.
_ROWS, _UNITS = 12, 20  # Of the overview `tokens`: blocks, units of each.
_DEPTHS, _FIELD_IMAGES = 8, 16  # Panels and images of the receptive field.
_GROUPS = 10  # Of images that have a colour in an embedding.

Drawn = Iterator[tuple[str, Figure]]


def save(figure: Figure, folder: pathlib.Path, name: str) -> None:
  """Writes a PNG of 200 dots an inch, and an SVG; always the same bytes."""
  for kind, keys in (("png", ["Software"]), ("svg", ["Date", "Creator"])):
    with files.atomic_write(folder / f"{name}.{kind}") as f:
      metadata = dict.fromkeys(keys)
      figure.savefig(f, format=kind, dpi=_DPI, metadata=metadata)


def _figure(
  model: trained.Trained, width: float, height: float, *lines: str
) -> Figure:
  """An empty one, titled by the lines, the model, and where that is."""
  figure = Figure(figsize=(width, height), layout="constrained")
  rows, columns = model.image_size
  name = f"{kernels.model_name(model.params)}, {rows} x {columns} px"
  figure.suptitle("\n".join([*lines, name, _short(model.source, 70)]))
  return figure


def _short(name: object, most: int = 24) -> str:
  """A name, or its end, which says more than its beginning."""
  name = errors.printable(name)
  return name if len(name) <= most else f"...{name[-most:]}"


def _grid(model: trained.Trained) -> tuple[tuple[int, int], np.ndarray]:
  """(rows, columns) of tokens, and the place of each in the image."""
  m, (height, width) = model.module, model.image_size
  grid = height // m.patch_size, width // m.patch_size
  return grid, kernels.token_places(grid, m.permute, m.permute_seed)


def _tiles(
  model: trained.Trained, images: np.ndarray, columns: int, *lines: str
) -> Figure:
  """A montage, each of its pixels drawn as equally many of the file's."""
  picture = kernels.montage(images, columns)
  zoom = min(_PAGE // picture.shape[1], _TILE // images.shape[1])
  h, w = (n * max(1, zoom) for n in picture.shape[:2])
  height, width = h + 240, max(w + 480, 1600)
  figure = _figure(model, width / _DPI, height / _DPI, *lines)
  figure.set_layout_engine("none")
  box = (width - w) // 2 / width, 40 / height, w / width, h / height
  axes = figure.add_axes(box, frame_on=False, xticks=[], yticks=[])
  axes.imshow(picture, aspect="auto")
  return figure


def tokens(model: trained.Trained, *args: Any) -> Drawn:
  """Figures 6 and 5 of the paper: all units of a block; some of each block."""
  count, (grid, places) = model.module.num_blocks, _grid(model)
  order = (
    "low frequency first, each followed by its closest inverse; red above 0, "
    "blue below, each scaled by its largest |weight|"
  )
  some, problem = [], None
  for i in range(count):
    mlp = model.params[f"MixerBlock_{i}"]["token_mixing"]
    try:
      units = kernels.token_units(mlp["Dense_0"]["kernel"], grid, places)
    except UserError as e:  # From a pyramid's first step on.
      problem = UserError(f"MixerBlock_{i}: {e}")
      break
    some.append(kernels.some_pairs(units, _UNITS))
    # In a page's format; even, so that pairs stand side by side.
    columns = 2 * round(np.sqrt(0.55 * len(units) * grid[0] / grid[1])) or 2
    title = f"All {len(units)} hidden units of token mixing in MixerBlock_{i}"
    name = f"tokens_block{i:0{len(str(count - 1))}}"
    yield name, _tiles(model, units, columns, title, order)
  if some:
    blocks = kernels.evenly(len(some), _ROWS)
    units = np.concatenate([some[i] for i in blocks])
    title = "Hidden units of token mixing by depth"
    rows = f"rows: blocks {', '.join(map(str, blocks))}"
    yield "tokens", _tiles(model, units, len(some[0]), title, rows, order)
  if problem:
    raise problem


def stem(model: trained.Trained, *args: Any) -> Drawn:
  """Figure 7 of the paper."""
  images = kernels.stem_kernels(model.params["stem"]["kernel"])
  n, p = images.shape[:2]
  title = f"The stem's {n} kernels of {p} x {p} px in colour"
  scale = "low frequency first, each scaled by its largest |weight|, grey is 0"
  yield "stem", _tiles(model, images, round(np.sqrt(1.8 * n)), title, scale)


def distance(model: trained.Trained, *args: Any) -> Drawn:
  """As ViT's paper has it of attention in its figure 7."""
  p, apart = model.module.patch_size, kernels.token_distances(*_grid(model))
  figure = _figure(model, 6.4, 4.2, "Token-mixing distance by depth")
  axes, wholes = figure.subplots(), []
  rng = np.random.default_rng(0)
  for block in range(model.module.num_blocks):
    mlp = model.params[f"MixerBlock_{block}"]["token_mixing"]
    if not (found := kernels.mixing_distances(mlp, apart)):
      break  # From a pyramid's first step on tokens have no place.
    wholes.append(found[0] * p)
    units = found[1][kernels.evenly(len(found[1]), 2000)] * p
    places = block + rng.uniform(-0.18, 0.18, len(units))
    axes.plot(places, units, ".", color="C2", alpha=0.35, rasterized=True)
  if not wholes:
    raise UserError("the first block already changes the number of tokens.")
  axes.plot(wholes, "o-", color="C0", label="|W2 W1| (dots: hidden units)")
  axes.axhline(apart.mean() * p, color="C1", ls="--", label="uniform mixing")
  axes.set_ylim(0)
  axes.locator_params("x", integer=True)
  axes.set(xlabel="MixerBlock", ylabel=f"mean distance (px; a patch has {p})")
  figure.legend(loc="outside lower center", ncols=2)
  yield "distance", figure


def receptive_field(
  model: trained.Trained, images: np.ndarray, *args: Any
) -> Drawn:
  """What the central token depends on, by depth."""
  p, (_, places) = model.module.patch_size, _grid(model)
  pyramid = [i for i, _ in model.module.mixing.pyramid]
  last = min(pyramid, default=model.module.num_blocks)
  depths = kernels.evenly(last + 1, _DEPTHS).tolist()
  images = images[kernels.evenly(len(images), _FIELD_IMAGES)]
  fields = activations.receptive_fields(model, images, depths, places)
  columns = -(-len(depths) // 2)
  even = activations.radius(np.ones_like(fields[0]), p)
  lines = (
    f"Effective receptive field of the central token, {len(images)} images",
    f"and its mean distance from the token ({even:.1f} px if all were alike)",
  )
  figure = _figure(model, 1.8 * columns + 0.6, 5.2, *lines)
  panels = figure.subplots(2, columns, squeeze=False)
  for axes in panels.flat:
    axes.set_axis_off()
  look: Any = {"norm": colors.LogNorm(1e-4, 1), "cmap": "cividis"}
  for axes, depth, field in zip(panels.flat, depths, fields, strict=False):
    drawn = axes.imshow(np.maximum(field / (field.max() or 1), 1e-4), **look)
    after = f"after block {depth}" if depth else "stem"
    axes.set_title(f"{after}: {activations.radius(field, p):.1f} px")
    if not depth:
      bar = figure.colorbar(drawn, ax=panels, location="bottom", format="%g")
      bar.set_label("gradient of the central token / its largest")
  yield "receptive_field", figure


def similarity(model: trained.Trained, images: np.ndarray, *args: Any) -> Drawn:
  """Of the tokens after each block to those after each other one."""
  if model.module.mixing.pyramid:
    raise UserError("the blocks of a pyramid have different numbers of tokens.")
  cka, cosine = activations.similarity(model, images)
  title = f"Similarity of layers, over {len(images)} images"
  figure = _figure(model, 9, 4.3, title, "by blocks passed; 0 is the stem")
  left, right = figure.subplots(1, 2)
  look: Any = {"vmax": 1, "origin": "lower"}
  drawn = left.imshow(cka, vmin=0, cmap="cividis", **look)
  figure.colorbar(drawn, ax=left, label="linear CKA of images' tokens")
  drawn = right.imshow(cosine, vmin=-1, cmap="RdBu_r", **look)
  figure.colorbar(drawn, ax=right, label="mean cosine of tokens")
  for axes in (left, right):
    axes.locator_params(integer=True)
  yield "similarity", figure


def saliency(
  model: trained.Trained, images: np.ndarray, labels: Sequence[str], flags: Any
) -> Drawn:
  """Which pixels the class with the highest logit rests on."""
  if not model.num_classes:
    raise UserError("the checkpoint has no head: take one with classes.")
  chosen = kernels.evenly(len(images), flags.explain).tolist()
  found = activations.saliency(model, images[chosen], flags.smooth)
  tall = 1.8 * model.image_size[0] / model.image_size[1] + 0.35
  title = "Which pixels the prediction rests on"
  figure = _figure(model, 7, len(chosen) * tall + 1, title)
  side, _ = activations.windows(model.image_size, model.module.patch_size)
  panels = figure.subplots(len(chosen), 3, squeeze=False)
  names = model.class_names or range(model.num_classes)
  for i, row, one in zip(chosen, panels, found, strict=True):
    (label, score, slope, fall), image = one, images[i]
    predicted = f"predicted: {_short(names[label])}, {score:.1%}"
    titles = (
      f"{_short(labels[i])}\n{predicted}",
      f"gradient, mean of {flags.smooth}" if flags.smooth else "gradient",
      f"covered, {side} px window",
    )
    for axes, text in zip(row, titles, strict=True):
      axes.set_axis_off()
      axes.set_title(text)
    row[0].imshow(image)
    # The largest hundredth would leave the rest dark.
    row[1].imshow(slope, cmap="inferno", vmin=0, vmax=np.quantile(slope, 0.99))
    most = max(float(np.abs(fall).max()), 1e-6)
    row[2].imshow(image.mean(axis=-1), cmap="gray")
    look: Any = {"cmap": "coolwarm", "alpha": 0.65, "vmin": -most, "vmax": most}
    drawn = row[2].imshow(fall, **look)
    figure.colorbar(drawn, ax=row[2], shrink=0.9, label="fall of the score")
  yield "saliency", figure


def embedding(
  model: trained.Trained, images: np.ndarray, labels: Sequence[str], flags: Any
) -> Drawn:
  """Images by what enters the head, in a plane."""
  features = activations.features(model, images)
  groups, kind = np.array(labels), None
  if len({*labels}) == 1 and model.num_classes:
    head, kind = model.params["head"], "predicted class"
    logits = features @ head["kernel"] + head["bias"]
    names = model.class_names or range(model.num_classes)
    groups = np.array(names)[logits.argmax(axis=-1)]
  values, counts = np.unique(groups, return_counts=True)
  common = sorted(values[np.argsort(-counts, kind="stable")][:_GROUPS])
  for method in dict.fromkeys(("pca", flags.embedding)):
    points, axis_labels = activations.plane(features, method)
    title = f"Features of {len(images)} images (what enters the head): {method}"
    figure = _figure(model, 7.6, 5.2, title)
    axes = figure.subplots()
    axes.plot(*points[~np.isin(groups, common)].T, ".", color="#D0D0D0")
    for value in common:
      axes.plot(*points[groups == value].T, "o", label=_short(value))
    axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), title=kind)
    yield f"embedding_{method}", figure
