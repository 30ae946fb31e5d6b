"""What a report shows of the predictions for a split.

Taken in example by example, in memory that grows with the classes and with
the different confusions among them, not with the examples.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mixer import evaluate

# How many there are at most: rows of the confusion matrix, pairs of classes,
# examples of a kind; and classes in the table, where not all are in it.
_MATRIX, _PAIRS, _EXAMPLES, _WORST_CLASSES = 30, 30, 24, 100
# Up to so many classes the table and the list of names have all.
_ALL_CLASSES = 1_000
_BINS = 15
# Examples that are looked at in one go.
_CHUNK = 8192


class Collector:
  """Takes what `evaluate.examples` yields; gives what the report shows.

  Attributes:
    counts: of the examples taken so far.
    examples: taken so far.
  """

  def __init__(self, class_names: Sequence[str], num_examples: int):
    """Starts with nothing.

    Args:
      class_names: of all K classes, for people.
      num_examples: that there will be, so that samples are spread evenly.
    """
    self._names = tuple(class_names)
    self._total = num_examples
    self.counts = evaluate.ConfusionCounts(len(self._names))
    self._waiting: list[dict[str, np.ndarray]] = []
    self._since = self.examples = 0
    spread = np.linspace(0, num_examples - 1, min(_EXAMPLES, num_examples))
    self._spread = np.round(spread).astype(np.int64)
    self._samples: list[dict[str, np.ndarray]] = []
    self._worst: dict[str, np.ndarray] | None = None
    self._bins = np.zeros((3, _BINS))

  def add(self, rows: Mapping[str, np.ndarray]) -> None:
    """Takes the next examples of the split.

    Args:
      rows: `classes`, `scores` `[N, top]`, `label`, `loss` `[N]`.
    """
    self.counts.add(rows)
    count = len(rows["label"])
    rows = {
      "index": np.arange(self.examples, self.examples + count),
      **{k: rows[k] for k in ("label", "loss", "classes", "scores")},
    }
    self.examples += count
    self._waiting.append(rows)
    self._since += count
    if self._since >= _CHUNK:
      self._settle()

  def _settle(self) -> None:
    """Looks at what is waiting."""
    if not self._waiting:
      return
    rows = _joined(self._waiting)
    self._waiting, self._since = [], 0
    self._samples.append(_chosen(rows, np.isin(rows["index"], self._spread)))
    wrong = _chosen(rows, rows["classes"][:, 0] != rows["label"])
    if self._worst is not None:
      wrong = _joined([self._worst, wrong])
    self._worst = _chosen(wrong, _worst_first(wrong)[:_EXAMPLES])
    self._bins += _calibration(rows)

  def places(self) -> list[int]:
    """Of the examples that are shown, in the split; once all are in."""
    self._settle()
    kinds = [self._worst, *self._samples]
    return sorted({int(i) for rows in kinds if rows for i in rows["index"]})

  def notes(self) -> list[str]:
    """What is to be said of them beside `result`; once all are in."""
    self._settle()
    broken = self.counts.metrics().get("not_numbers")
    if not broken:
      return []
    return [
      f"{broken:,} of the {self.examples:,} examples have a NaN among "
      "their logits: they count as wrong, as no class, and leave no mean loss."
    ]

  def result(
    self,
    images: Mapping[int, str],
    split: str,
    step: int,
    loss: str,
    names: Mapping[int, str],
  ) -> dict[str, Any]:
    """All of it, as JSON; once at least one example is in.

    Args:
      images: a data URI for each of `places`; an example that has none is
        left out.
      split: its expression, for people.
      step: updates that the weights have seen.
      loss: its name, "softmax" or "sigmoid".
      names: of the files of `places`; "" where there is none.

    Returns:
      What the page takes for `predictions`. Numbers that aren't finite are
      None.
    """
    self._settle()
    metrics = self.counts.metrics()
    table = list(self.counts.classes())
    pairs = self._pairs()
    matrix = self._matrix(pairs)
    by_class = [(r.label, r.examples, r.correct) for r in _listed(table)]
    worst = list(_examples(self._worst, images, names))
    samples = [
      e for rows in self._samples for e in _examples(rows, images, names)
    ]
    classes: Any = list(self._names)
    if len(classes) > _ALL_CLASSES:
      shown = {k for k, _, _ in by_class}
      shown |= {k for a, b, _ in pairs[:_PAIRS] for k in (a, b)}
      shown |= set(matrix)
      for example in worst + samples:
        shown |= {example["label"], *(k for k, _ in example["top"])}
      classes = {str(k): self._names[k] for k in sorted(shown)}
    dense = self.counts.confusion[matrix][:, matrix].toarray()
    totals = np.array([table[k].examples for k in matrix], np.int64)
    return {
      "split": split,
      "step": step,
      "examples": metrics["examples"],
      "loss": loss,
      "classes": classes,
      "accuracy": metrics["accuracy"],
      "accuracy_top5": metrics["accuracy_top5"],
      "mean_loss": _finite(metrics["loss"]),
      "confusion": {
        "classes": matrix,
        "counts": dense.tolist(),
        "elsewhere": (totals - dense.sum(axis=1)).tolist(),
      },
      "pairs": [list(pair) for pair in pairs[:_PAIRS]],
      "by_class": [list(row) for row in by_class],
      "calibration": self._calibrated(),
      "worst": worst,
      "samples": samples,
    }

  def _pairs(self) -> list[tuple[int, int, int]]:
    """(label, predicted, count) of all confusions, the most frequent first."""
    found = self.counts.confusion.tocoo()
    wrong = (found.row != found.col) & (found.data > 0)
    row, col, count = (x[wrong] for x in (found.row, found.col, found.data))
    order = np.lexsort((col, row, -count))
    return [(int(row[i]), int(col[i]), int(count[i])) for i in order]

  def _matrix(self, pairs: Sequence[tuple[int, int, int]]) -> list[int]:
    """The classes of the confusion matrix, in order."""
    if len(self._names) <= _MATRIX:
      return list(range(len(self._names)))
    both: dict[tuple[int, int], int] = {}
    for a, b, count in pairs:
      key = (min(a, b), max(a, b))
      both[key] = both.get(key, 0) + count
    # Those that are mistaken for each other: a matrix of classes that are
    # merely mistaken often would be empty beside its diagonal.
    chosen: set[int] = set()
    for key in sorted(both, key=lambda k: (-both[k], k)):
      if len(chosen | set(key)) <= _MATRIX:
        chosen |= set(key)
    return sorted(chosen) or list(range(_MATRIX))

  def _calibrated(self) -> dict[str, Any]:
    count, scores, correct = self._bins
    edges = np.linspace(0, 1, _BINS + 1)
    bins, ece = [], 0.0
    for i in np.flatnonzero(count):
      mean, accuracy = scores[i] / count[i], correct[i] / count[i]
      ece += count[i] / count.sum() * abs(accuracy - mean)
      low, high = edges[i], edges[i + 1]
      bins.append(
        [*map(float, (low, high)), int(count[i]), float(mean), float(accuracy)]
      )
    return {"ece": float(ece) if bins else None, "bins": bins}


def _listed(table: list[evaluate.ClassRow]) -> list[evaluate.ClassRow]:
  """All classes, or of many the worst of those that have examples."""
  if len(table) <= _ALL_CLASSES:
    return table
  some = [row for row in table if row.examples]
  # Of equal shares the one of more examples says more.
  some.sort(key=lambda r: (r.correct / r.examples, -r.examples, r.label))
  return some[:_WORST_CLASSES]


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


def _chosen(
  rows: Mapping[str, np.ndarray], which: np.ndarray
) -> dict[str, np.ndarray]:
  return {k: v[which] for k, v in rows.items()}


def _worst_first(rows: Mapping[str, np.ndarray]) -> np.ndarray:
  """The order in which mistakes are shown.

  By the loss, highest first, then as they come. An example with NaN among its
  logits comes before all; behind all one whose loss is infinite, as its class
  has no output: no image could have been right.
  """
  loss = rows["loss"].astype(np.float64)
  loss = np.where(np.isfinite(loss), loss, -np.inf)
  loss = np.where(rows["classes"][:, 0] == evaluate.NO_CLASS, np.inf, loss)
  return np.lexsort((rows["index"], -loss))


def _calibration(rows: Mapping[str, np.ndarray]) -> np.ndarray:
  """Of each bin the examples, and the sums of scores and right predictions.

  Guo et al. 2017, arXiv 1706.04599, section 3: bin m of M has the scores in
  ((m - 1) / M, m / M].

  Returns:
    float64 `[3, bins]`, without examples that have a NaN among their logits.
  """
  predicted = rows["classes"][:, 0]
  sound = predicted != evaluate.NO_CLASS
  # A probability may be rounded to a little more than 1.
  scores = np.clip(rows["scores"][sound, 0].astype(np.float64), 0, 1)
  right = (predicted == rows["label"])[sound].astype(np.float64)
  inner = np.linspace(0, 1, _BINS + 1)[1:-1]
  place = np.searchsorted(inner, scores, side="left")
  return np.stack(
    [
      np.bincount(place, weight, minlength=_BINS)
      for weight in (np.ones_like(scores), scores, right)
    ]
  )


def _examples(
  rows: Mapping[str, np.ndarray] | None,
  images: Mapping[int, str],
  names: Mapping[int, str],
) -> Iterator[dict[str, Any]]:
  """The examples that have an image, as JSON."""
  for i in range(len(rows["index"]) if rows else 0):
    row = {k: v[i].tolist() for k, v in (rows or {}).items()}
    if row["index"] in images:
      top = zip(row["classes"], row["scores"], strict=True)
      yield {
        "index": row["index"],
        "file": names.get(row["index"], ""),
        "image": images[row["index"]],
        "label": row["label"],
        "loss": _finite(row["loss"]),
        "top": [[k, score] for k, score in top if k != evaluate.NO_CLASS],
      }


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None
