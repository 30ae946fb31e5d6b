"""Exact sums over the predictions of a split: metrics and confusions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

# Examples with a NaN among their logits are predicted to be of none.
_NO_CLASS = -1


class ClassRow(NamedTuple):
  """A class in the table.

  Attributes:
    label: its number.
    examples: of it.
    correct: those that were predicted to be of it.
    confused_with: the wrong class that was predicted most often, the lower one
      of equals; None where nothing was wrong.
    confused: how often.
  """

  label: int
  examples: int
  correct: int
  confused_with: int | None
  confused: int


class Tally:
  """Exact sums over what `evaluate.examples` yields.

  Memory depends on the number of classes and of different confusions, not on
  that of examples.

  Attributes:
    confusion: sparse int64 `[K, K]`, rows true, columns predicted; without
      examples that have a NaN among their logits.
  """

  def __init__(
    self,
    num_classes: int,
    valid_labels: Sequence[frozenset[int]] | None = None,
  ):
    """Starts at zero.

    Args:
      num_classes: K.
      valid_labels: for each example of the split, in its order, the labels
        that count as right for `real_accuracy`.
    """
    self._valid = valid_labels
    self._examples = np.zeros(num_classes, np.int64)
    self._top5 = self._not_numbers = 0
    self._real_examples = self._real_correct = 0
    self._loss = 0.0
    self.confusion: Any = scipy.sparse.csr_array(
      (num_classes, num_classes), dtype=np.int64
    )

  def add(self, rows: Mapping[str, np.ndarray]) -> None:
    """Counts the next examples of the split, as `evaluate.examples` gives."""
    label, classes = rows["label"], rows["classes"]
    first = classes[:, 0]
    k = len(self._examples)
    if self._valid is not None:
      start = int(self._examples.sum())
      for place, predicted in enumerate(first.tolist(), start):
        valid = self._valid[place]
        self._real_examples += bool(valid)
        self._real_correct += predicted in valid
    self._examples += np.bincount(label, minlength=k)
    self._top5 += int((classes[:, :5] == label[:, None]).sum())
    self._loss += float(rows["loss"].sum(dtype=np.float64))
    sound = first != _NO_CLASS
    self._not_numbers += int((~sound).sum())
    pairs = label[sound], first[sound]
    ones = np.ones(len(pairs[0]), np.int64)
    # Duplicates are summed on the way to rows.
    found = scipy.sparse.coo_array((ones, pairs), shape=(k, k)).tocsr()
    self.confusion = self.confusion + found

  def metrics(self) -> dict[str, float]:
    """Of the examples so far, at least one.

    Returns:
      `accuracy` and `accuracy_top5` in [0, 1]; the mean `loss` in nats;
      `examples`. If there are valid labels, `real_accuracy`: the share of the
      `real_examples`, those with any valid label, whose predicted class is one
      of these (arXiv 2006.07159). `not_numbers`, the examples that had a NaN
      among their logits, if there are any.
    """
    count = int(self._examples.sum())
    found: dict[str, float] = {
      "accuracy": int(self.confusion.diagonal().sum()) / count,
      "accuracy_top5": self._top5 / count,
      "loss": self._loss / count,
      "examples": count,
    }
    if self._real_examples:
      found["real_accuracy"] = self._real_correct / self._real_examples
      found["real_examples"] = self._real_examples
    if self._not_numbers:
      found["not_numbers"] = self._not_numbers
    return found

  def classes(self) -> Iterator[ClassRow]:
    """The table of the classes, in the order of their labels."""
    matrix = self.confusion
    correct = matrix.diagonal()
    for k, examples in enumerate(self._examples.tolist()):
      row = slice(matrix.indptr[k], matrix.indptr[k + 1])
      wrong = {
        int(p): int(n)
        for p, n in zip(matrix.indices[row], matrix.data[row], strict=True)
        if p != k
      }
      most = min(wrong, key=lambda p: (-wrong[p], p), default=None)
      yield ClassRow(
        k, examples, int(correct[k]), most, 0 if most is None else wrong[most]
      )
