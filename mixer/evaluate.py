"""Exact evaluation of a whole split: predictions, features, metrics.

Each host brings its own part of the batches and gets the whole result, example
by example; whatever is counted is counted from these.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.sparse

from mixer import loader, notebook, preprocess, sharding, train_step
from mixer.errors import UserError

Batches = Iterable[dict[str, np.ndarray]]
# Share of a data set's classes that a head may lack: the released 21,843-way
# one lacks ImageNet-1k's teddy bear.
_MAY_LACK = 0.01
# The class that is predicted for an example with a NaN among its logits.
NO_CLASS = -1


def batches(
  split: Any,
  image_size: tuple[int, int],
  short_side: int,
  batch_size: int,
  threads: int = 16,
  prefetch: int = 2,
  interpolation: str = "",
) -> loader.Loader[loader.Batch]:
  """This host's parts of batches that hold every example exactly once.

  `image` uint8 `[B / P, H, W, 3]`, `label` int32, `mask` bool `[B / P]`; the
  last batch is filled up with black images whose `mask` is False, so that all P
  hosts see equally many. `next` raises UserError if a record can't be decoded.
  """
  length = batch_size // jax.process_count()
  start, places = jax.process_index() * length, range(len(split))

  def prepare(k: int, image: Any, out: np.ndarray) -> None:
    how = image_size, short_side, interpolation
    out[...] = preprocess.evaluation(image, *how)

  def finish(images: np.ndarray, labels: list[int]) -> loader.Batch:
    label, mask = np.zeros(length, np.int32), np.arange(length) < len(labels)
    label[mask] = labels
    return {"image": images, "label": label, "mask": mask}

  return loader.Loader(
    (places[n:][start : start + length] for n in places[::batch_size]),
    lambda some, images: loader.fill(split, some, images, prepare),
    finish,
    (length, *image_size),
    threads,
    prefetch,
  )


def examples(
  model: train_step.Inference, params: Any, batches: Batches
) -> Iterator[dict[str, np.ndarray]]:
  """What is predicted for the N real examples of each batch, in order.

  `classes` int32 and `scores` float32 `[N, top]`, see `train_step.Inference`;
  with labels also `label` int32 and `loss` float32 `[N]`.
  """
  for result in _one_late(model, model.examples, params, batches):
    mask = result.pop("mask")
    yield {name: value[mask] for name, value in result.items()}


def features(
  model: train_step.Inference, params: Any, batches: Batches
) -> np.ndarray:
  """Pre-logits float32 `[N, C]` of a split, in its order."""
  found = _one_late(model, model.features, params, batches)
  return np.concatenate([rows[mask] for rows, mask in found])


def _one_late(
  model: train_step.Inference, step: Any, params: Any, batches: Batches
) -> Iterator[Any]:
  """Results on the host: each is read after the next batch has been started."""
  pending = []
  for batch in batches:
    pending.append(step(params, sharding.put_batch(model.mesh, batch)))
    if len(pending) > 1:
      yield jax.device_get(pending.pop(0))
  yield from map(jax.device_get, pending)


def evaluate(
  model: train_step.Inference, params: Any, batches: Batches
) -> dict[str, float]:
  """`ConfusionCounts.metrics` of a split."""
  counts = ConfusionCounts(model.num_classes)
  for rows in examples(model, params, batches):
    counts.add(rows)
  return counts.metrics()


class ConfusionCounts:
  """Exact sums over what `examples` yields, for K classes.

  `valid_labels` are the labels of each example of the split, in its order, that
  count as right for `real_accuracy`; `names` are of the classes, for notebooks.
  """

  def __init__(
    self,
    num_classes: int,
    valid_labels: Sequence[frozenset[int]] | None = None,
    names: Sequence[str] = (),
  ):
    self._valid = valid_labels
    self._names = names or [str(k) for k in range(num_classes)]
    self.examples = np.zeros(num_classes, np.int64)  # Of each class.
    # [K, K], rows true, columns predicted; without NaNs.
    shape = num_classes, num_classes
    self.confusion: Any = scipy.sparse.csr_array(shape, dtype=np.int64)
    self._loss, self._top5, self._not_numbers = 0.0, 0, 0
    self._real_examples = self._real_correct = 0

  def add(self, rows: Mapping[str, np.ndarray]) -> None:
    """Counts the next examples of the split."""
    label, classes = rows["label"], rows["classes"]
    first, start = classes[:, 0], int(self.examples.sum())
    if self._valid is not None:
      for place, predicted in enumerate(first.tolist(), start):
        self._real_examples += bool(self._valid[place])
        self._real_correct += predicted in self._valid[place]
    self.examples += np.bincount(label, minlength=len(self.examples))
    self._top5 += int((classes[:, :5] == label[:, None]).sum())
    self._loss += float(rows["loss"].sum(dtype=np.float64))
    sound = first != NO_CLASS
    self._not_numbers += int((~sound).sum())
    # Duplicates are summed on the way to rows.
    cells = np.ones(sound.sum(), np.int64), (label[sound], first[sound])
    shape = self.confusion.shape
    self.confusion += scipy.sparse.coo_array(cells, shape=shape).tocsr()

  def metrics(self) -> dict[str, float]:
    """Of the examples so far, at least one.

    `balanced_accuracy` is the mean recall of classes with examples, `macro_f1`
    the mean F1 of those with examples or predictions, `imbalance` the size of
    the largest class over that of the smallest. `real_accuracy` is the share of
    those with any valid label whose predicted class is one of these (arXiv
    2006.07159).
    """
    count, sizes = int(self.examples.sum()), self.examples
    right, there = self.confusion.diagonal(), sizes > 0
    either = sizes + self.confusion.sum(axis=0)  # True or predicted.
    f1 = 2 * right[either > 0] / either[either > 0]
    found: dict[str, float] = {
      "accuracy": int(right.sum()) / count,
      "accuracy_top5": self._top5 / count,
      "balanced_accuracy": float(np.mean(right[there] / sizes[there])),
      "macro_f1": float(np.mean(f1)),
      "loss": self._loss / count,
      "examples": count,
      "imbalance": float(sizes.max() / sizes[there].min()),
    }
    if self._real_examples:
      found["real_accuracy"] = self._real_correct / self._real_examples
      found["real_examples"] = self._real_examples
    if self._not_numbers:
      found["not_numbers"] = self._not_numbers
    return found

  def confused(self) -> tuple[np.ndarray, np.ndarray]:
    """int `[K]`: the wrong class that each is taken for most, and how often.

    Of equals it is the first; without mistakes its number means nothing.
    """
    correct = self.confusion.diagonal()
    correct = scipy.sparse.diags_array(correct, dtype=np.int64)
    wrong = (self.confusion - correct).tocsr()
    times = wrong.max(axis=1).toarray()
    return np.ravel(wrong.argmax(axis=1)), np.ravel(times)

  def _repr_html_(self) -> str:
    """The metrics, and the classes, those with most mistakes first."""
    if not self.examples.any():
      return "no examples"
    correct, (other, times) = self.confusion.diagonal(), self.confused()
    order = np.argsort(correct - self.examples, kind="stable")
    rows = (
      (self._names[k], self.examples[k], correct[k])
      + (self._names[int(other[k])] if times[k] else "", times[k])
      for k in order[: notebook.ROWS].tolist()
    )
    head = "class", "examples", "correct", "most often taken for", "times"
    metrics = ((k, f"{v:,.7g}") for k, v in self.metrics().items())
    return notebook.table(metrics) + notebook.table(rows, head)


def match(
  model: Any, classes: Sequence[str], data: str, *, same: bool = False
) -> np.ndarray | None:
  """Finds a `Trained` model's output of each class, by name or WordNet id.

  int32 `[K]`, -1 for a class without one; None: class k is output k, which
  `same` says whatever the names. Raises UserError if they don't match.
  """
  count, head = model.num_classes, tuple(model.class_ids or ())
  if count and (count == len(classes) if same else head == tuple(classes)):
    return None
  place: dict[str, int] = {n: k for k, n in enumerate(head) if not same}
  columns = np.array([place.get(name, -1) for name in classes], np.int32)
  lacking = [repr(c) for c in classes if c not in place]
  if len(lacking) > int(_MAY_LACK * len(classes)):
    shown = ", ".join(lacking[:5]) + ", ..." * (len(lacking) > 5)
    kind = "outputs" if model.class_ids else "outputs of unknown classes"
    raise UserError(
      f"the checkpoint {model.origin} has {count:,} {kind}, and data set "
      f"{data} {len(classes):,} classes, {len(lacking):,} of them no outputs "
      f"({shown}). Name the data set that it was trained on; or add "
      "--same_classes if outputs are classes, in order; or --fewshot."
    )
  return columns


class Fewshot:
  """Few-shot evaluation: ridge regression on frozen features.

  The protocol of the paper (section 3) as in the authors' code: whitened
  pre-logits, a constant feature of 100 for the bias, targets -1 and 1.
  """

  def __init__(
    self, train: Any, test: Any, shots: Sequence[int], seeds: int, l2: float
  ):
    """Draws of `train`, `seeds` times, as many examples a class as `shots` say.

    `l2` weighs the squared norm. UserError if a class has too few examples.
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
