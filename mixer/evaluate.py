"""Exact evaluation of a whole split: predictions, features, metrics.

Everything works on one process and on many: each host brings its own part of
the batches and gets the whole result, example by example; whatever is counted
is counted from these.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse
from jax.sharding import Mesh

from mixer import loader, preprocess, sharding, train_step
from mixer.errors import UserError

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
  all P hosts see equally many batches: `image` uint8 `[B / P, H, W, 3]`,
  `label` int32, `mask` bool `[B / P]`. See `preprocess.evaluation` for the
  sizes. `next` raises UserError if a record can't be decoded.
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

  Of the N real examples of each batch, in the split's order: `classes` int32
  and `scores` float32 `[N, top]`, see `train_step.Inference`; and, if the
  batches have labels, `label` int32 and `loss` float32 `[N]`. `interrupt` is
  called before each batch, and may raise.
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

  `confusion` is sparse int64 `[K, K]`, rows true, columns predicted; without
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

    `real_accuracy` is the share of the `real_examples`, those with any valid
    label, whose predicted class is one of these (arXiv 2006.07159);
    `not_numbers` had a NaN among their logits.
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


# Of a data set's classes so many may be missing in a head: the released
# 21,843-way one lacks ImageNet-1k's teddy bear.
_MAY_LACK = 0.01


class Matching(NamedTuple):
  """Which outputs of a head belong to the classes of a data set."""

  # int32 `[K]`, the output for each class, -1 for one that has none; None
  # where class k is output k.
  columns: np.ndarray | None = None
  missing: tuple[str, ...] = ()  # The classes that have none.
  sentence: str = ""  # What was done; "" where classes and outputs are equal.


def match(
  model: Any, classes: Sequence[str], data: str, *, same: bool = False
) -> Matching:
  """Finds a `Trained` model's output of each class, by name or WordNet id.

  `same` says that the outputs are these classes, in order, whatever their
  names. Raises UserError if they can't be found.
  """
  where, count = f"the checkpoint {model.origin}", model.num_classes
  if not count:
    raise UserError(f"{where} has no head: add --fewshot.")
  if same and count == len(classes):
    return Matching(sentence="outputs are taken for the classes, in order")
  if model.class_ids is None and not same:
    raise UserError(
      f"{where} doesn't say which classes its {count:,} outputs stand for. If "
      f"they are the {len(classes):,} classes of {data}, in order, add "
      "--same_classes; a released file is known by its name, as "
      "--checkpoint=imagenet1k/Mixer-B_16; --fewshot needs no classes."
    )
  head: tuple[str, ...] = tuple(model.class_ids or ())
  if head == tuple(classes) and not same:
    return Matching()
  place: dict[str, int] = {name: k for k, name in enumerate(head)}
  columns = np.array([place.get(name, -1) for name in classes], np.int32)
  missing = tuple(c for c in classes if c not in place)
  if same or len(missing) > int(_MAY_LACK * len(classes)):
    shown = ", ".join(map(repr, missing[:5]))
    raise UserError(
      f"{where} and data set {data} have different classes: {count:,} outputs, "
      f"{len(classes):,} classes, {len(missing):,} of them among no outputs "
      f"({shown}{', ...' if len(missing) > 5 else ''}). Name the data set that "
      "it was trained on, or one with a part of those classes; or try its "
      "features with --fewshot."
    )
  sentence = f"{len(classes):,} of the {count:,} outputs, in {data}'s order"
  if missing:
    sentence += (
      f"; no output: {', '.join(missing)}, whose examples count as wrong, and "
      "no loss is given"
    )
  return Matching(columns, missing, sentence)


class Fewshot:
  """Few-shot evaluation: ridge regression on frozen features.

  The protocol of the paper (section 3) in the form of the authors' code:
  pre-logits of N labelled examples a class, whitened one by one, with a
  constant feature of 100 for the bias; targets -1 and 1; the class with the
  highest prediction counts.
  """

  def __init__(
    self, train: Any, test: Any, shots: Sequence[int], seeds: int, l2: float
  ):
    """Draws `seeds` times as many examples a class as each of `shots` says.

    Of `train`, to be measured on `test`; `l2` is the weight of the squared norm
    of the solution. Raises UserError if a class has too few examples.
    """
    self.identity = train.identity
    self._train, self._test, self._l2 = train, test, l2
    self._draws = {
      n: [train.per_class(n, s, "fewshot.shots") for s in range(seeds)]
      for n in shots
    }

  def accuracies(
    self, extract: Callable[[Any], np.ndarray]
  ) -> dict[int, list[float]]:
    """Shots -> accuracy of each draw; `extract` gives a split's features."""
    drawn = [d.records for draws in self._draws.values() for d in draws]
    used = np.unique(np.concatenate(drawn))
    found = extract(dataclasses.replace(self._train, indices=used))
    test, count = extract(self._test), len(self._train.class_names)

    def accuracy(draw: Any) -> float:
      x = found[np.searchsorted(used, draw.records)]
      classes = ridge(x, draw.labels, test, count, self._l2)
      return float(np.mean(classes == self._test.labels))

    return {n: list(map(accuracy, draws)) for n, draws in self._draws.items()}


def ridge(
  train_x: np.ndarray,
  train_y: np.ndarray,
  test_x: np.ndarray,
  num_classes: int,
  l2: float,
) -> np.ndarray:
  """Classes `[M]` of features `[M, C]`, by those `[N, C]` of classes `[N]`."""
  mean = train_x.mean(axis=0, dtype=np.float64)
  std = train_x.std(axis=0, dtype=np.float64) + 1e-5

  def prepare(x: np.ndarray) -> np.ndarray:
    white = (x - mean) / std
    return np.pad(white, ((0, 0), (0, 1)), constant_values=100.0)

  x, targets = prepare(train_x), 2.0 * np.eye(num_classes)[train_y] - 1.0
  n, dim = x.shape
  # The smaller of the two systems that have the same solution.
  if n >= dim:
    w = np.linalg.solve(x.T @ x + l2 * np.eye(dim), x.T @ targets)
  else:
    w = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(n), targets)
  return (prepare(test_x) @ w).argmax(axis=1)
