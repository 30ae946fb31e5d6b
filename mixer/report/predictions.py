"""What a report shows of a model: its predictions for a split, its weights."""

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from mixer import config as config_lib
from mixer import errors, evaluate, preprocess, sharding, trained
from mixer.datasets import split as split_lib
from mixer.errors import UserError
from mixer.insight import kernels

# How many there are at most: rows of the confusion matrix, pairs of classes,
# examples of a kind, units in a figure; and classes in the table, where they
# are more than `_ALL_CLASSES`.
_MATRIX, _PAIRS, _EXAMPLES, _UNITS, _WORST_CLASSES = 30, 30, 24, 64, 100
_ALL_CLASSES = 1_000
_BINS = 15
# Images up to so many pixels a side are PNGs of every pixel; others JPEGs of
# this quality, at most so many pixels a side.
_EXACT, _LARGEST, _QUALITY = 64, 192, 85


def gather(
  step: int,
  model: Any,
  params: Any,
  batches: evaluate.Batches,
  mesh: Mesh,
  split: split_lib.Split,
  config: config_lib.Config,
  interrupt: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], dict[str, Any]]:
  """Evaluates, as `evaluate.examples`: metrics, and JSON for `report.json`."""
  counts, parts = evaluate.ConfusionCounts(len(split.class_names)), []
  for part in evaluate.examples(model, params, batches, mesh, interrupt):
    counts.add(part)
    parts.append(part)
  rows = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
  metrics = counts.metrics()
  figures, notes = _figures(_shown_weights(params, mesh), config)
  if broken := metrics.get("not_numbers"):
    notes.append(
      f"{broken:,} of the {metrics['examples']:,} examples have a NaN among "
      "their logits: they count as wrong, as no class, and leave no mean loss."
    )

  def example(i: int) -> dict[str, Any]:
    (record,), data = split.read([i]), config.data
    image = preprocess.evaluation(
      record["image"], config_lib.image_size(config), data.eval_short_side
    )
    top = zip(rows["classes"][i], rows["scores"][i], strict=True)
    return {
      "index": i,
      "label": int(rows["label"][i]),
      "loss": float(rows["loss"][i]),
      "top": [[int(k), float(p)] for k, p in top if k != evaluate.NO_CLASS],
      "file": errors.printable(record.get("file_name", "")),
      "image": thumbnail(image),
    }

  predictions = {
    "split": split.expression,
    "step": step,
    "examples": metrics["examples"],
    "classes": trained.names_for_people(split.class_names),
    "accuracy": metrics["accuracy"],
    "accuracy_top5": metrics["accuracy_top5"],
    "mean_loss": metrics["loss"],
    **_confusions(counts.confusion, rows["label"]),
    "calibration": _calibration(rows),
    "worst": [example(i) for i in _worst(rows)],
    "samples": [
      example(i) for i in kernels.evenly(len(split), _EXAMPLES).tolist()
    ],
  }
  content = {"predictions": predictions, "weights": figures, "notes": notes}
  return metrics, {"step": step, **content}


def _worst(rows: Mapping[str, np.ndarray]) -> list[int]:
  """Wrong predictions, the highest loss first.

  Before them NaNs; last an infinite loss, as its class has no output: no image
  could have been right.
  """
  first, loss = rows["classes"][:, 0], rows["loss"].astype(np.float64)
  rank = np.where(np.isfinite(loss), -loss, np.inf)
  rank[first == evaluate.NO_CLASS] = -np.inf
  wrong = np.flatnonzero(first != rows["label"])
  return wrong[np.argsort(rank[wrong], kind="stable")][:_EXAMPLES].tolist()


def _confusions(confusion: Any, label: np.ndarray) -> dict[str, Any]:
  """Of a sparse matrix: the pairs, a part to show, and a table of classes."""
  totals = np.bincount(label, minlength=confusion.shape[0])
  table = np.stack([np.arange(len(totals)), totals, confusion.diagonal()], 1)
  found = confusion.tocoo()
  wrong = (found.row != found.col) & (found.data > 0)
  pairs = np.stack([found.row, found.col, found.data], 1)[wrong]
  pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0], -pairs[:, 2]))]
  # All classes, or those that are mistaken most: others would leave it empty
  # beside its diagonal.
  matrix = list(range(len(table)))
  if len(table) > _MATRIX:
    mistaken = dict.fromkeys(pairs[:, :2].ravel().tolist())
    matrix = sorted(list(mistaken or matrix)[:_MATRIX])
  dense = confusion[matrix][:, matrix].toarray()
  elsewhere = totals[matrix] - dense.sum(axis=1)
  if len(table) > _ALL_CLASSES:
    # The worst; of equal shares those of more examples, which say more.
    table = table[totals > 0]
    label, examples, correct = table.T
    order = np.lexsort((label, -examples, correct / examples))
    table = table[order[:_WORST_CLASSES]]
  return {
    "confusion": {
      "classes": matrix,
      "counts": dense.tolist(),
      "elsewhere": elsewhere.tolist(),
    },
    "pairs": pairs[:_PAIRS].tolist(),
    "by_class": table.tolist(),
  }


def _calibration(rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The expected error; bins of (low, high, examples, score, accuracy).

  Guo et al. 2017, arXiv 1706.04599, section 3: bin m of M has the scores in
  ((m - 1) / M, m / M]. Without NaNs.
  """
  predicted = rows["classes"][:, 0]
  sound = predicted != evaluate.NO_CLASS
  # A probability may be rounded to a little more than 1.
  scores = np.clip(rows["scores"][sound, 0].astype(np.float64), 0, 1)
  right = (predicted == rows["label"])[sound]
  edges = np.linspace(0, 1, _BINS + 1)
  place = np.searchsorted(edges[1:-1], scores, side="left")
  weights = np.ones_like(scores), scores, right
  sums = np.stack([np.bincount(place, w, minlength=_BINS) for w in weights])
  used = sums[0] > 0
  count, score, accuracy = sums[:, used]
  score, accuracy = score / count, accuracy / count
  ece = (count / max(count.sum(), 1) * np.abs(accuracy - score)).sum()
  bins = np.stack([edges[:-1][used], edges[1:][used], count, score, accuracy])
  return {"ece": float(ece) if len(count) else None, "bins": bins.T.tolist()}


def thumbnail(image: np.ndarray) -> str:
  """A data URI of an image, uint8 `[H, W, 3]`."""
  pil = Image.fromarray(image)
  if max(pil.size) <= _EXACT:
    return _uri(pil, "png", optimize=True)
  pil.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
  return _uri(pil, "jpeg", quality=_QUALITY)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
  return f"data:image/{kind};base64,{encoded}"


def _shown_weights(params: Any, mesh: Mesh) -> dict[str, Any]:
  """Brings to every host the few weights that are shown, and no more.

  Kernels of the stem, and of the token mixing of three blocks.
  """
  shown: dict[str, Any] = {"stem": {"kernel": params["stem"]["kernel"]}}
  count = sum(name.startswith("MixerBlock_") for name in params)
  for i in sorted({0, count // 2, count - 1}) if count else ():
    mlp = params[f"MixerBlock_{i}"]["token_mixing"]
    kernel = mlp["Dense_0"]["kernel"]
    # An MLP for each channel can be larger than a host.
    if kernel.ndim == 2:
      block = {"token_mixing": {"Dense_0": {"kernel": kernel}}}
      shown[f"MixerBlock_{i}"] = block
  everywhere = sharding.replicated(mesh)
  return jax.device_get(jax.jit(lambda x: x, out_shardings=everywhere)(shown))


def _figures(
  params: Mapping[str, Any], config: config_lib.Config
) -> tuple[list[dict[str, Any]], list[str]]:
  """Figures 5 to 7 of the paper in small, and notes on what isn't drawn."""
  found, notes, data = [], [], config.data
  patch = params["stem"]["kernel"].shape[0]
  height, width = config_lib.image_size(config)
  grid = height // patch, width // patch
  if config.model.token_mixing != "shared":
    notes.append(
      "No token-mixing weights are drawn: each channel has an MLP of its own "
      f"(model.token_mixing={config.model.token_mixing})."
    )

  def draw(title: str, images: np.ndarray, what: str) -> None:
    # Pairs of a unit and its closest inverse stay together.
    shown = kernels.some_pairs(images, _UNITS)
    picture = kernels.montage(shown, min(8, len(images)))
    figure = {"title": title, "width": picture.shape[1]}
    figure["caption"] = f"{len(shown)} of {len(images):,} {what}"
    figure["image"] = _uri(Image.fromarray(picture), "png", optimize=True)
    found.append(figure)

  blocks = sorted(int(name.split("_")[1]) for name in params if name != "stem")
  for block in (None, *blocks):
    try:
      if block is None:
        draw(
          "Stem",
          kernels.stem_kernels(params),
          f"kernels of {patch} x {patch} pixels, low frequencies first; each "
          "scaled by its largest weight, mid-grey is 0.",
        )
        continue
      places = kernels.token_places(grid, data.permute, data.permute_seed)
      draw(
        f"Token mixing, block {block}",
        kernels.token_units(params, block, grid, places),
        f"hidden units: how each weighs the {grid[0]} x {grid[1]} tokens; red "
        "above 0, blue below, each scaled by its largest weight. Low "
        "frequencies first, each beside its closest inverse.",
      )
    except UserError as e:
      notes.append(f"Weights that are not drawn: {e}")
  return found, notes
