import dataclasses

import numpy as np
import pytest
from sklearn import linear_model

from mixer import fewshot
from mixer.datasets import split as split_lib
from mixer.errors import UserError


def clusters(n, dim, classes=4, seed=0):
  rng = np.random.default_rng(seed)
  centres = np.random.default_rng(99).standard_normal((classes, dim)) * 2
  labels = rng.integers(0, classes, n)
  features = centres[labels] + rng.standard_normal((n, dim)) * 2
  return features.astype(np.float32), labels


@pytest.mark.parametrize("n,dim", [(12, 40), (200, 20)])
def test_ridge_equals_scikit_learn(n, dim):
  # Both sides of "more examples than features", with sklearn's own solver.
  x, y = clusters(n, dim)
  test_x, test_y = clusters(300, dim, seed=1)
  mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5

  def prepare(features):
    white = (features - mean) / std
    return np.concatenate([white, np.full((len(white), 1), 100.0)], axis=1)

  ridge = linear_model.Ridge(alpha=1024.0, fit_intercept=False)
  ridge.fit(prepare(x), 2.0 * np.eye(4)[y] - 1.0)
  expected = np.mean(ridge.predict(prepare(test_x)).argmax(axis=1) == test_y)
  got = fewshot.ridge_accuracy(x, y, test_x, test_y, 4, 1024.0)
  assert got == pytest.approx(expected)
  assert got > 0.3  # Above chance: the comparison means something.


class Records:
  """A data source of labels, its images being the place of each record."""

  def __init__(self, labels):
    self._labels = labels

  def __len__(self):
    return len(self._labels)

  def __getitems__(self, indices):
    return [{"image": i, "label": self._labels[i]} for i in indices]


def make_split(labels):
  names = tuple("abcd")
  return split_lib.Split("fake", "train", Records(labels), names)


def test_task_draws_and_looks_features_up_by_record():
  x, y = clusters(120, 30)
  test_x, test_y = clusters(80, 30, seed=1)
  features = {"train": x, "test": test_x}
  train = make_split(y)
  test = dataclasses.replace(make_split(test_y), expression="test")
  task = fewshot.Task(train, test, (1, 5), 3, 16.0)

  def extract(split):
    assert len(split) <= len(y)
    return features[split.expression][split.records]

  got = task.accuracies(extract)
  assert got.keys() == {1, 5}
  for shots, values in got.items():
    for seed, value in enumerate(values):
      draw = train.per_class(shots, seed)
      assert len(draw) == 4 * shots
      expected = fewshot.ridge_accuracy(
        x[draw.records], y[draw.records], test_x, test_y, 4, 16.0
      )
      assert value == expected
  assert np.mean(got[5]) > np.mean(got[1])


def test_too_few_examples_are_refused_before_training():
  split = make_split([0, 1, 2, 3, 0, 1, 2])
  with pytest.raises(UserError, match="1 examples of class 'd' and 2"):
    fewshot.Task(split, split, (2,), 1, 1.0)
