"""What a report shows of a model: its predictions for a split, its weights."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from mixer import config as config_lib
from mixer import errors, evaluate, notebook, preprocess, sharding, trained
from mixer.datasets import split as split_lib
from mixer.errors import UserError
from mixer.insight import kernels

# At most: rows of the confusion matrix, pairs of classes, examples of a kind,
# units in a figure. A table of more than _ALL_CLASSES has the worst.
_MATRIX, _PAIRS, _EXAMPLES, _UNITS, _WORST_CLASSES = 30, 30, 24, 64, 100
_ALL_CLASSES, _BINS = 1_000, 15


def gather(
  step: int,
  model: Any,
  params: Any,
  batches: evaluate.Batches,
  split: split_lib.Split,
  config: config_lib.Config,
) -> tuple[dict[str, float], dict[str, Any]]:
  """Evaluates, as `evaluate.examples`: metrics, and JSON for `report.json`."""
  counts, parts = evaluate.ConfusionCounts(len(split.class_names)), []
  for part in evaluate.examples(model, params, batches):
    counts.add(part)
    parts.append(part)
  rows = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
  metrics = counts.metrics()
  figures, notes = _figures(params, config, model.mesh)
  if broken := metrics.get("not_numbers"):
    said = "examples have a NaN among their logits and count as wrong."
    notes.append(f"{broken:,} of the {metrics['examples']:,} {said}")

  def example(i: int) -> dict[str, Any]:
    (record,), data = split.read([i]), config.data
    image = preprocess.evaluation(
      record["image"], config_lib.image_size(config), data.eval_short_side
    )
    top = zip(rows["classes"][i], rows["scores"][i], strict=True)
    return {
      "index": i,
      "label": int(rows["label"][i]),
      "loss": _finite(rows["loss"][i]),
      "top": [[int(k), float(p)] for k, p in top if k != evaluate.NO_CLASS],
      "file": errors.printable(record.get("file_name", "")),
      "image": notebook.thumbnail(image),
    }

  samples = kernels.evenly(len(split), _EXAMPLES).tolist()
  predictions = {
    "split": split.expression,
    "step": step,
    "examples": metrics["examples"],
    "classes": list(trained.names_for_people(split.class_names)),
    **{k: v for k, v in metrics.items() if "accuracy" in k or "f1" in k},
    "mean_loss": _finite(metrics["loss"]),
    **_confusions(counts),
    "calibration": _calibration(rows),
    "worst": [example(i) for i in _worst(rows)],
    "samples": [example(i) for i in samples],
  }
  content = {"predictions": predictions, "weights": figures, "notes": notes}
  return metrics, {"step": step, **content}


def _finite(value: Any) -> float | None:
  return float(value) if math.isfinite(value) else None


def _worst(rows: Mapping[str, np.ndarray]) -> list[int]:
  """Wrong predictions: NaNs, then the highest loss, then infinite losses.

  A loss is infinite where the model has no output for the class.
  """
  first, loss = rows["classes"][:, 0], rows["loss"].astype(np.float64)
  rank = np.where(np.isfinite(loss), -loss, np.inf)
  rank[first == evaluate.NO_CLASS] = -np.inf
  wrong = np.flatnonzero(first != rows["label"])
  return wrong[np.argsort(rank[wrong], kind="stable")][:_EXAMPLES].tolist()


def _confusions(counts: evaluate.ConfusionCounts) -> dict[str, Any]:
  """The largest pairs of classes, a part of the matrix, a table of classes."""
  columns = counts.examples, counts.confusion.diagonal()
  table = np.stack([np.arange(len(counts.examples)), *columns], 1).tolist()
  cells = counts.confusion.tocoo()
  cells = np.stack([cells.row, cells.col, cells.data], 1).tolist()
  wrong = [cell for cell in cells if cell[0] != cell[1]]
  pairs = sorted(wrong, key=lambda cell: (-cell[2], cell[0], cell[1]))
  shown = [*range(len(table))]
  if len(table) > _MATRIX:  # Those that are confused most.
    confused = dict.fromkeys(k for pair in pairs for k in pair[:2])
    shown = sorted([*(confused or shown)][:_MATRIX])
  dense = counts.confusion[shown][:, shown].toarray()
  elsewhere = [table[k][1] for k in shown] - dense.sum(axis=1)
  if len(table) > _ALL_CLASSES:  # Of equal accuracy those of more examples.
    known = [row for row in table if row[1]]
    known.sort(key=lambda row: (row[2] / row[1], -row[1], row[0]))
    table = known[:_WORST_CLASSES]
  return {
    "confusion": {
      "classes": shown,
      "counts": dense.tolist(),
      "elsewhere": elsewhere.tolist(),
    },
    "pairs": pairs[:_PAIRS],
    "by_class": table,
  }


def _calibration(rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The expected error; bins of (low, high, examples, score, accuracy).

  Guo et al. 2017, arXiv 1706.04599, section 3: bin m of M has the scores in
  ((m - 1) / M, m / M]. Without NaNs.
  """
  sound = rows["classes"][:, 0] != evaluate.NO_CLASS
  right = (rows["classes"][:, 0] == rows["label"])[sound]
  # A probability may be rounded to a little more than 1.
  scores = np.clip(rows["scores"][sound, 0].astype(np.float64), 0, 1)
  edges = np.linspace(0, 1, _BINS + 1)
  place = np.searchsorted(edges[1:-1], scores, side="left")
  weights = np.ones_like(scores), scores, right
  sums = np.stack([np.bincount(place, w, minlength=_BINS) for w in weights])
  used = sums[0] > 0
  count, score, accuracy = sums[:, used]
  score, accuracy = score / count, accuracy / count
  ece = (count / max(len(scores), 1) * np.abs(accuracy - score)).sum()
  bins = np.stack([edges[:-1][used], edges[1:][used], count, score, accuracy])
  return {"ece": float(ece) if len(count) else None, "bins": bins.T.tolist()}


def _figures(
  params: Any, config: config_lib.Config, mesh: Mesh
) -> tuple[list[dict[str, Any]], list[str]]:
  """Figures 5 to 7 of the paper in small; notes on weights without one."""
  shown, figures, notes = {"Stem": params["stem"]["kernel"]}, [], []
  count, data = sum(name.startswith("Mixer") for name in params), config.data
  for i in sorted({0, count // 2, count - 1}) if count else ():
    kernel = params[f"MixerBlock_{i}"]["token_mixing"]["Dense_0"]["kernel"]
    if kernel.ndim == 2:  # An MLP for each channel can be larger than a host.
      shown[f"Token mixing, block {i}"] = kernel
  if len(shown) == 1:
    notes.append("Token mixing is not drawn: each channel has its own MLP.")
  everywhere = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
  fetched, patch = jax.device_get(everywhere(shown)), shown["Stem"].shape[0]
  height, width = config_lib.image_size(config)
  grid = height // patch, width // patch
  for title in shown:
    try:
      if title == "Stem":
        images = kernels.stem_kernels(fetched[title])
        what = f"kernels of {patch} x {patch} pixels; mid-grey is 0"
      else:
        places = kernels.token_places(grid, data.permute, data.permute_seed)
        images = kernels.token_units(fetched[title], grid, places)
        what = "hidden units beside their closest inverses; red is above 0"
    except UserError as e:
      notes.append(f"{title} is not drawn: {e}")
      continue
    some = kernels.some_pairs(images, _UNITS)
    picture = kernels.montage(some, min(8, len(images)))
    caption = (
      f"{len(some)} of {len(images):,} {what}. Low frequencies first, each "
      "scaled by its largest weight."
    )
    image = notebook.uri(Image.fromarray(picture), "png", optimize=True)
    figure = {"title": title, "width": picture.shape[1], "caption": caption}
    figures.append(figure | {"image": image})
  return figures, notes
