"""Exact evaluation of a whole split: predictions, features, metrics.

Everything works on one process and on many: each host brings its own part of
the batches and gets the whole result, example by example; whatever is counted
is counted from these.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse
from jax.sharding import Mesh

from mixer import loader, preprocess, sharding, train_step

Batches = Iterable[dict[str, np.ndarray]]
# The class that is predicted for an example with a NaN among its logits.
NO_CLASS = -1


def batches(
  split: Any,
  image_size: tuple[int, int],
  short_side: int,
  batch_size: int,
  threads: int = 16,
  prefetch: int = 2,
  process_index: int | None = None,
  process_count: int | None = None,
) -> loader.Loader[loader.Batch]:
  """This host's parts of batches that hold every example exactly once.

  The last batch is filled up with black images whose `mask` is False, so that
  all hosts see equally many batches of equal size.

  Args:
    split: a `datasets.split.Split`.
    image_size: (height, width), see `preprocess.evaluation`.
    short_side: likewise.
    batch_size: B, of all P hosts together.
    threads: that decode.
    prefetch: batches made ahead.
    process_index: p, this host; None: as JAX says.
    process_count: P; None: as JAX says.

  Returns:
    An iterator over `image` uint8 `[B / P, H, W, 3]`, `label` int32, `mask`
    bool `[B / P]`. Its `next` raises UserError if a record can't be decoded.
  """
  p = jax.process_index() if process_index is None else process_index
  count = jax.process_count() if process_count is None else process_count
  length = batch_size // count
  places = range(len(split))

  def make(some: range, images: np.ndarray) -> list[int]:
    records = split.read(some)
    for record, out in zip(records, images, strict=True):
      try:
        out[...] = preprocess.evaluation(
          record["image"], image_size, short_side
        )
      except ValueError as e:
        raise split.decode_error(record["index"], e) from e
    return [record["label"] for record in records]

  def finish(images: np.ndarray, labels: list[int]) -> loader.Batch:
    label = np.zeros(length, np.int32)
    label[: len(labels)] = labels
    mask = np.arange(length) < len(labels)
    return {"image": images, "label": label, "mask": mask}

  return loader.Loader(
    (
      places[first + p * length : first + (p + 1) * length]
      for first in range(0, len(split), batch_size)
    ),
    make,
    finish,
    (length, *image_size),
    threads,
    prefetch,
  )


def examples(
  model: train_step.Inference,
  params: Any,
  batches: Batches,
  mesh: Mesh,
  interrupt: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, np.ndarray]]:
  """What is predicted for every example of a split, a batch at a time.

  Args:
    model: its functions.
    params: to be evaluated.
    batches: this host's, of the function of this name; without `label` they do
      as well.
    mesh: of all devices.
    interrupt: called before each batch; may raise.

  Yields:
    Arrays over the N real examples of a batch, in the split's order:
    `classes` int32 and `scores` float32 `[N, top]`, see
    `train_step.Inference`; and, if the batches have labels, `label` int32 and
    `loss` float32 `[N]`.
  """
  for result in _one_late(model.examples, params, batches, mesh, interrupt):
    mask = result.pop("mask")
    yield {name: value[mask] for name, value in result.items()}


def features(
  model: train_step.Inference,
  params: Any,
  batches: Batches,
  mesh: Mesh,
  interrupt: Callable[[], None] = lambda: None,
) -> np.ndarray:
  """Pre-logits float32 `[N, C]` of a split, in its order; see `examples`."""
  found = _one_late(model.features, params, batches, mesh, interrupt)
  return np.concatenate([rows[mask] for rows, mask in found])


def _one_late(
  step: Callable[[Any, train_step.Batch], Any],
  params: Any,
  batches: Batches,
  mesh: Mesh,
  interrupt: Callable[[], None],
) -> Iterator[Any]:
  """Results of every batch, on the host.

  Each is read after the next one has been started, so that the device always
  has work, and never holds more than two batches.
  """
  pending = None
  for batch in batches:
    interrupt()
    result = step(params, sharding.put_batch(mesh, batch))
    if pending is not None:
      yield jax.device_get(pending)
    pending = result
  if pending is not None:
    yield jax.device_get(pending)


def evaluate(
  model: train_step.Inference,
  params: Any,
  batches: Batches,
  mesh: Mesh,
  interrupt: Callable[[], None] = lambda: None,
) -> dict[str, float]:
  """`ConfusionCounts.metrics` of a split; see `examples`."""
  counts = ConfusionCounts(model.num_classes)
  for rows in examples(model, params, batches, mesh, interrupt):
    counts.add(rows)
  return counts.metrics()


class ClassRow(NamedTuple):
  """A class in the table."""

  label: int
  examples: int
  correct: int
  confused_with: int | None  # The most frequent wrong class, the first of them.
  confused: int  # How often.


class ConfusionCounts:
  """Exact sums over what `examples` yields.

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
    """Starts at zero, for K classes.

    `valid_labels` are the labels of each example of the split, in its order,
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
    """Counts the next examples of the split."""
    label, classes = rows["label"], rows["classes"]
    first, k = classes[:, 0], len(self._examples)
    if self._valid is not None:
      start = int(self._examples.sum())
      for place, predicted in enumerate(first.tolist(), start):
        valid = self._valid[place]
        self._real_examples += bool(valid)
        self._real_correct += predicted in valid
    self._examples += np.bincount(label, minlength=k)
    self._top5 += int((classes[:, :5] == label[:, None]).sum())
    self._loss += float(rows["loss"].sum(dtype=np.float64))
    sound = first != NO_CLASS
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
    for k, count in enumerate(self._examples.tolist()):
      row = slice(matrix.indptr[k], matrix.indptr[k + 1])
      pairs = zip(
        matrix.indices[row].tolist(), matrix.data[row].tolist(), strict=True
      )
      wrong = {p: n for p, n in pairs if p != k}
      most = min(wrong, key=lambda p: (-wrong[p], p), default=None)
      confused = 0 if most is None else wrong[most]
      yield ClassRow(k, count, int(correct[k]), most, confused)
