"""Few-shot evaluation: ridge regression on frozen features.

The protocol of the paper (section 3) in the form of the authors' code:
pre-logits of N labelled examples a class, whitened one by one, with a constant
feature of 100 for the bias; targets -1 and 1; the class with the highest
prediction counts.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_BIAS = 100.0


class Task:
  """A data set with its draws of labelled examples.

  Args:
    train: a `datasets.split.Split`; labelled examples are drawn from it.
    test: what accuracy is measured on.
    shots: numbers of labelled examples a class.
    seeds: how many draws of each number.
    l2: weight of the squared norm of the solution.

  Raises:
    UserError: a class has too few examples.
  """

  def __init__(
    self,
    train: Any,
    test: Any,
    shots: Sequence[int],
    seeds: int,
    l2: float,
  ):
    self.identity = train.identity
    self._train, self._test, self._l2 = train, test, l2
    self._draws = {
      n: [train.per_class(n, s, "fewshot.shots") for s in range(seeds)]
      for n in shots
    }

  def accuracies(
    self, extract: Callable[[Any], np.ndarray]
  ) -> dict[int, list[float]]:
    """Accuracy on the test split: shots -> one value a draw.

    Args:
      extract: gives the features `[N, C]` of a split, in its order.
    """
    drawn = [d.records for draws in self._draws.values() for d in draws]
    used = np.unique(np.concatenate(drawn))
    found = extract(dataclasses.replace(self._train, indices=used))
    test = extract(self._test)

    def accuracy(draw: Any) -> float:
      x = found[np.searchsorted(used, draw.records)]
      classes = ridge(
        x, draw.labels, test, len(self._train.class_names), self._l2
      )
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
    return np.pad(white, ((0, 0), (0, 1)), constant_values=_BIAS)

  x, targets = prepare(train_x), 2.0 * np.eye(num_classes)[train_y] - 1.0
  n, dim = x.shape
  # The smaller of the two systems that have the same solution.
  if n >= dim:
    w = np.linalg.solve(x.T @ x + l2 * np.eye(dim), x.T @ targets)
  else:
    w = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(n), targets)
  return (prepare(test_x) @ w).argmax(axis=1)
