"""What a report shows of a model: its predictions for a split, its weights.

Taken in example by example, in memory that grows with the classes and with
the different confusions among them, not with the examples.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
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


class Gathered:
  """What the model says of a split; the same on every host.

  Attributes:
    metrics: of the split.
  """

  def __init__(
    self,
    model: Any,
    params: Any,
    batches: evaluate.Batches,
    mesh: Mesh,
    split: split_lib.Split,
    config: config_lib.Config,
    interrupt: Callable[[], None] = lambda: None,
  ):
    """Evaluates the split, as `evaluate.examples`. All hosts call it."""
    self._split, self._config = split, config
    self._counts = evaluate.ConfusionCounts(len(split.class_names))
    self._seen = 0
    self._spread = kernels.evenly(len(split), _EXAMPLES)
    self._samples: list[dict[str, Any]] = []
    self._worst: list[tuple[float, dict[str, Any]]] = []
    self._bins = np.zeros((3, _BINS))
    for rows in evaluate.examples(model, params, batches, mesh, interrupt):
      self._add(rows)
    self.metrics = self._counts.metrics()
    self._params = _shown_weights(params, mesh)

  def _add(self, rows: Mapping[str, np.ndarray]) -> None:
    self._counts.add(rows)
    self._bins += _calibration(rows)
    label, first = rows["label"], rows["classes"][:, 0]
    # A NaN comes first; last an infinite loss, as its class has no output: no
    # image could have been right.
    loss = rows["loss"].astype(np.float64)
    rank = np.where(np.isfinite(loss), -loss, np.inf)
    rank = np.where(first == evaluate.NO_CLASS, -np.inf, rank)
    wrong = np.flatnonzero(first != label)
    wrong = wrong[np.argsort(rank[wrong], kind="stable")][:_EXAMPLES]
    self._worst += [
      (float(rank[i]), self._example(rows, i)) for i in wrong.tolist()
    ]
    self._worst.sort(key=lambda pair: pair[0])
    del self._worst[_EXAMPLES:]
    places = self._seen + np.arange(len(label))
    for i in np.flatnonzero(np.isin(places, self._spread)).tolist():
      self._samples.append(self._example(rows, i))
    self._seen += len(label)

  def _example(self, rows: Mapping[str, np.ndarray], i: int) -> dict[str, Any]:
    top = zip(rows["classes"][i], rows["scores"][i], strict=True)
    return {
      "index": self._seen + i,
      "label": int(rows["label"][i]),
      "loss": float(rows["loss"][i]),
      "top": [[int(k), float(p)] for k, p in top if k != evaluate.NO_CLASS],
    }

  def result(self, step: int) -> dict[str, Any]:
    """JSON for `report.json`: what the page shows of the model. For one host.

    Raises:
      UserError: an example can't be read.
    """
    figures, notes = _figures(self._params, self._config)
    broken = self.metrics.get("not_numbers")
    if broken:
      notes.append(
        f"{broken:,} of the {self._seen:,} examples have a NaN among their "
        "logits: they count as wrong, as no class, and leave no mean loss."
      )
    return {
      "step": step,
      "predictions": self._predictions(step),
      "weights": figures,
      "notes": notes,
    }

  def _predictions(self, step: int) -> dict[str, Any]:
    rows = self._counts.classes()
    table = np.array([(r.label, r.examples, r.correct) for r in rows])
    pairs = self._pairs()
    # All classes, or those that are mistaken most: others would leave it empty
    # beside its diagonal.
    matrix = list(range(len(table)))
    if len(table) > _MATRIX:
      mistaken = dict.fromkeys(k for pair in pairs for k in pair[:2])
      matrix = sorted(list(mistaken or matrix)[:_MATRIX])
    dense = self._counts.confusion[matrix][:, matrix].toarray()
    totals = table[matrix, 1]
    if len(table) > _ALL_CLASSES:
      # The worst; of equal shares those of more examples, which say more.
      table = table[table[:, 1] > 0]
      label, examples, correct = table.T
      order = np.lexsort((label, -examples, correct / examples))
      table = table[order[:_WORST_CLASSES]]
    worst, samples = [example for _, example in self._worst], self._samples
    self._add_images([*worst, *samples])
    shown = {*matrix, *table[:, 0].tolist()}
    shown |= {k for pair in pairs[:_PAIRS] for k in pair[:2]}
    for example in worst + samples:
      shown |= {example["label"], *(k for k, _ in example["top"])}
    names = trained.names_for_people(self._split.class_names)
    used = self._bins[0] > 0
    count, score, accuracy = self._bins[:, used]
    score, accuracy = score / count, accuracy / count
    ece = (count / count.sum() * np.abs(accuracy - score)).sum()
    edges = np.linspace(0, 1, _BINS + 1)
    bins = np.stack([edges[:-1][used], edges[1:][used], count, score, accuracy])
    return {
      "split": self._split.expression,
      "step": step,
      "examples": self.metrics["examples"],
      "classes": {str(k): names[k] for k in sorted(shown)},
      "accuracy": self.metrics["accuracy"],
      "accuracy_top5": self.metrics["accuracy_top5"],
      "mean_loss": self.metrics["loss"],
      "confusion": {
        "classes": matrix,
        "counts": dense.tolist(),
        "elsewhere": (totals - dense.sum(axis=1)).tolist(),
      },
      "pairs": pairs[:_PAIRS],
      "by_class": table.tolist(),
      "calibration": {
        "ece": float(ece) if len(count) else None,
        "bins": bins.T.tolist(),
      },
      "worst": worst,
      "samples": samples,
    }

  def _add_images(self, examples: Sequence[dict[str, Any]]) -> None:
    """Adds each example's image as the model sees it, and its file's name."""
    split, config = self._split, self._config
    size = config_lib.image_size(config)
    records = split.read([example["index"] for example in examples])
    for example, record in zip(examples, records, strict=True):
      try:
        image = preprocess.evaluation(
          record["image"], size, config.data.eval_short_side
        )
      except ValueError as e:
        raise split.decode_error(record["index"], e) from e
      example["file"] = errors.printable(record.get("file_name", ""))
      example["image"] = thumbnail(image)

  def _pairs(self) -> list[tuple[int, int, int]]:
    """(label, predicted, count) of all confusions, the most frequent first."""
    found = self._counts.confusion.tocoo()
    wrong = (found.row != found.col) & (found.data > 0)
    row, col, count = (x[wrong] for x in (found.row, found.col, found.data))
    order = np.lexsort((col, row, -count))
    return [(int(row[i]), int(col[i]), int(count[i])) for i in order]


def _calibration(rows: Mapping[str, np.ndarray]) -> np.ndarray:
  """Of each bin the examples, and sums of scores and of right predictions.

  Guo et al. 2017, arXiv 1706.04599, section 3: bin m of M has the scores in
  ((m - 1) / M, m / M]. float64 `[3, bins]`, without NaNs.
  """
  predicted = rows["classes"][:, 0]
  sound = predicted != evaluate.NO_CLASS
  # A probability may be rounded to a little more than 1.
  scores = np.clip(rows["scores"][sound, 0].astype(np.float64), 0, 1)
  right = (predicted == rows["label"])[sound]
  inner = np.linspace(0, 1, _BINS + 1)[1:-1]
  place = np.searchsorted(inner, scores, side="left")
  weights = np.ones_like(scores), scores, right
  return np.stack([np.bincount(place, w, minlength=_BINS) for w in weights])


def thumbnail(image: np.ndarray) -> str:
  """A data URI of an image, uint8 `[H, W, 3]`."""
  pil, kind, options = Image.fromarray(image), "png", {"optimize": True}
  if max(pil.size) > _EXACT:
    pil.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    kind, options = "jpeg", {"quality": _QUALITY}
  return _uri(pil, kind, **options)


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
  for i in {0, count // 2, count - 1} if count else ():
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
  blocks = [int(name.split("_")[1]) for name in params if name != "stem"]
  for block in (None, *sorted(blocks)):
    try:
      if block is None:
        images = kernels.stem_kernels(params)
        title = "Stem"
        what = (
          f"kernels of {patch} x {patch} pixels, low frequencies first; each "
          "scaled by its largest weight, mid-grey is 0."
        )
      else:
        places = kernels.token_places(grid, data.permute, data.permute_seed)
        images = kernels.token_units(params, block, grid, places)
        title = f"Token mixing, block {block}"
        what = (
          f"hidden units: how each weighs the {grid[0]} x {grid[1]} tokens; "
          "red above 0, blue below, each scaled by its largest weight. Low "
          "frequencies first, each beside its closest inverse."
        )
    except UserError as e:
      notes.append(f"Weights that are not drawn: {e}")
      continue
    # Pairs of a unit and its closest inverse stay together.
    shown = kernels.some_pairs(images, _UNITS)
    picture = kernels.montage(shown, min(8, len(images)))
    found.append(
      {
        "title": title,
        "caption": f"{len(shown)} of {len(images):,} {what}",
        "image": _uri(Image.fromarray(picture), "png", optimize=True),
        "width": picture.shape[1],
      }
    )
  return found, notes
