"""Evaluation against numpy and scikit-learn, on one process and on two.

As a program it evaluates on one of several processes:

  python -m tests.test_evaluate RANK COUNT PORT DATA_DIR OUT
"""

import itertools
import os
import socket
import subprocess
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import linear_model
from sklearn import metrics as sklearn_metrics

from mixer import evaluate, model, preprocess, sharding, train_step
from mixer.datasets import split as split_lib
from mixer.datasets import wordnet
from mixer.errors import UserError
from tests.conftest import ROOT

# Columns of the head, for labels of other classes than the head's.
COLUMNS = np.array([9, 8, 7, 6, 5, 4, 3, 2, -1, 0], np.int32)


def tiny():
  """A model of 16 px and 10 classes, and weights that are not special."""
  module = model.MlpMixer(4, 2, 32, 16, 64, num_classes=10)
  images = np.zeros((1, 16, 16, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
  rng = np.random.default_rng(0)
  params: Any = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes
  )
  return module, params


@pytest.fixture(scope="module")
def whole(data_dir):
  """A split, functions, weights; logits one after the other, labels."""
  split = split_lib.open_split("digits", "test[:100]", data_dir)
  module, params = tiny()
  mesh = sharding.make_mesh()
  functions = train_step.Inference(module, "softmax", 10, mesh)
  images = [preprocess.evaluation(r["image"], 16, 16) for r in split]
  scaled = model.scale(jnp.asarray(np.stack(images)), jnp.dtype("float32"))
  logits = np.asarray(model.apply(module, params, scaled), np.float64)
  return split, functions, params, mesh, logits


def batches(split, batch_size):
  return evaluate.batches(split, (16, 16), 16, batch_size)


@pytest.mark.parametrize("batch_size", [8, 32, 104])
def test_everything_is_numpys_at_any_batch_size(whole, batch_size):
  split, functions, params, mesh, logits = whole
  labels, log_p = split.labels, logits - logits.max(axis=-1, keepdims=True)
  log_p -= np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
  order = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
  loss = -log_p[np.arange(100), labels]
  rows = list(
    evaluate.examples(functions, params, batches(split, batch_size), mesh)
  )
  got = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
  np.testing.assert_array_equal(got["label"], labels)
  np.testing.assert_array_equal(got["classes"], order)
  chosen = np.exp(np.take_along_axis(log_p, order, axis=-1))
  np.testing.assert_allclose(got["scores"], chosen, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(got["loss"], loss, rtol=1e-4, atol=1e-5)
  metrics = evaluate.evaluate(
    functions, params, batches(split, batch_size), mesh
  )
  assert metrics == {
    "accuracy": np.mean(order[:, 0] == labels),
    "accuracy_top5": np.mean((order == labels[:, None]).any(axis=-1)),
    "loss": pytest.approx(loss.mean(), rel=1e-5),
    "examples": 100,
  }
  features = evaluate.features(
    functions, params, batches(split, batch_size), mesh
  )
  assert features.shape == (100, 32)
  again = features @ params["head"]["kernel"] + params["head"]["bias"]
  np.testing.assert_allclose(again, logits, atol=1e-3)


def test_batches_without_labels_and_interruptions(whole):
  split, functions, params, mesh, _ = whole
  given_ = list(batches(split, 32))
  bare = [{k: b[k] for k in ("image", "mask")} for b in given_]
  calls = []

  def interrupt():
    calls.append(1)
    if len(calls) == 3:
      raise KeyboardInterrupt

  both = (
    evaluate.examples(functions, params, some, mesh) for some in (given_, bare)
  )
  for a, b in zip(*both, strict=True):
    assert b.keys() == {"classes", "scores"}
    np.testing.assert_array_equal(a["classes"], b["classes"])
  with pytest.raises(KeyboardInterrupt):
    evaluate.evaluate(functions, params, given_, mesh, interrupt)


def rows_of(labels, classes):
  return {
    "label": np.array(labels, np.int32),
    "classes": np.array(classes, np.int32),
    "loss": np.full(len(labels), 0.25, np.float32),
  }


@given(
  st.integers(5, 9),
  st.integers(1, 30),
  st.lists(st.integers(0, 30), max_size=4),
  st.integers(0, 2**32 - 1),
)
def test_counts_are_scikit_learns_for_any_batches(k, n, cuts, seed):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, k, n)
  classes = np.array([rng.permutation(k)[:5] for _ in range(n)])
  valid = [
    frozenset(rng.permutation(k)[: rng.integers(0, 4)].tolist())
    for _ in range(n)
  ]
  counts = evaluate.ConfusionCounts(k, valid)
  bounds = [0, *sorted(min(c, n) for c in cuts), n]
  for a, b in itertools.pairwise(bounds):
    counts.add(rows_of(labels[a:b], classes[a:b].reshape(-1, 5)))
  matrix = counts.confusion.toarray()
  wanted = sklearn_metrics.confusion_matrix(
    labels, classes[:, 0], labels=np.arange(k)
  )
  assert matrix.dtype == np.int64
  np.testing.assert_array_equal(matrix, wanted)
  top5 = [label in row for label, row in zip(labels, classes, strict=True)]
  # As in arXiv 2006.07159: of the images with valid labels, those with a
  # prediction among these.
  real = [classes[i, 0] in v for i, v in enumerate(valid) if v]
  found = {
    "real_accuracy": sum(real) / max(1, len(real)),
    "real_examples": len(real),
  }
  assert counts.metrics() == {
    "accuracy": sklearn_metrics.accuracy_score(labels, classes[:, 0]),
    "accuracy_top5": np.mean(top5),
    "examples": n,
    "loss": 0.25,
    **(found if real else {}),
  }
  for label, row in enumerate(counts.classes()):
    wrong = matrix[label].copy()
    wrong[label] = 0
    # Of equals numpy's argmax takes the first.
    other = wrong.argmax() if wrong.any() else None
    sums = (label, matrix[label].sum(), matrix[label, label])
    assert row == (*sums, other, wrong.max())


def test_not_a_number_is_wrong_and_told():
  counts = evaluate.ConfusionCounts(6)
  nothing = [-1] * 5
  counts.add(rows_of([0, 0, 5], [[0, 1, 2, 3, 4], nothing, nothing]))
  got = counts.metrics()
  assert got["accuracy"] == got["accuracy_top5"] == 1 / 3
  assert (got["examples"], got["not_numbers"]) == (3, 2)
  assert counts.confusion.sum() == 1
  assert [r.examples for r in counts.classes()] == [2, 0, 0, 0, 0, 1]


# Few-shot.


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
  expected = ridge.predict(prepare(test_x)).argmax(axis=1)
  got = evaluate.ridge(x, y, test_x, 4, 1024.0)
  assert np.mean(got != expected) < 0.01
  assert np.mean(got == test_y) > 0.3  # Above chance.


def test_too_few_examples_are_refused_before_training():
  class Labels(list):
    def __getitems__(self, indices):
      return [{"image": b"", "label": self[i]} for i in indices]

  labels = Labels([0, 1, 2, 3, 0, 1, 2])
  split = split_lib.Split("fake", "train", labels, tuple("abcd"))
  with pytest.raises(UserError, match="1 examples of class 'd' and 2"):
    evaluate.Fewshot(split, split, (2,), 1, 1.0)


# Classes of a head and of a data set.

HEAD, IMAGENET = wordnet.classes("head"), wordnet.classes("imagenet1k")


def match(ids, classes: Any, count=None, same=False):
  count = len(ids or ()) if count is None else count
  head = types.SimpleNamespace(class_ids=ids, num_classes=count, origin="it")
  return evaluate.match(head, classes, "letters", same=same)


@given(st.permutations("abcdefg"), st.integers(1, 7))
def test_columns_lead_to_the_same_names(order, count):
  head, classes = tuple("abcdefg"), tuple(order[:count])
  found = match(head, classes)
  if classes == head:
    assert found == evaluate.Matching()
  else:
    columns = found.columns
    assert columns is not None
    assert tuple(head[i] for i in columns) == classes
    assert "letters" in found.sentence and found.missing == ()


def test_the_released_head_lacks_one_class_of_imagenet_1k():
  found = match(HEAD, IMAGENET)
  expected = wordnet.head_indices("imagenet1k", allow_missing=True)
  np.testing.assert_array_equal(found.columns, expected)
  assert found.missing == ("n04399382",)
  assert "of the 21,843 outputs" in found.sentence


@pytest.mark.parametrize(
  ("head", "classes", "words"),
  [
    (HEAD, [*IMAGENET[:49], "n04399382"], "1 of them .*('n04399382')"),
    (("a", "b", "c"), ["a", "c", "d"], "3 outputs, 3 classes, 1 of them"),
    (None, ["a"], "has no head.* --fewshot"),
  ],
)
def test_other_classes_are_refused(head, classes, words):
  with pytest.raises(UserError, match=words):
    match(head, classes)


def test_unknown_classes_are_refused_unless_they_are_said_to_be_the_same():
  with pytest.raises(UserError, match="add --same_classes"):
    match(None, ["a", "b"], 2)
  found = match(None, ["a", "b"], 2, same=True)
  assert found.columns is None and found.sentence
  with pytest.raises(UserError, match="2 outputs, 3 classes"):
    match(None, ["a", "b", "c"], 2, same=True)


# On several processes.


def everything(data_dir: str) -> dict[str, np.ndarray]:
  """All that evaluation computes, of two splits, named."""
  module, params = tiny()
  mesh = sharding.make_mesh()
  plain = train_step.Inference(module, "softmax", 10, mesh)
  chosen = train_step.Inference(module, "softmax", 10, mesh, columns=COLUMNS)
  found: dict[str, Any] = {}
  # The last batch leaves the second of two hosts without examples; the other
  # split gives it none at all.
  for expression in ("test[:100]", "test[:5]"):
    split = split_lib.open_split("digits", expression, data_dir)
    counts = evaluate.ConfusionCounts(10)
    rows = list(evaluate.examples(plain, params, batches(split, 32), mesh))
    for row in rows:
      counts.add(row)
    all_ = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
    rows = evaluate.examples(chosen, params, batches(split, 32), mesh)
    all_["chosen"] = np.concatenate([r["classes"] for r in rows])
    all_["confusion"] = counts.confusion.toarray()
    all_["features"] = evaluate.features(
      plain, params, batches(split, 32), mesh
    )
    for name, value in (counts.metrics() | all_).items():
      found[f"{expression}/{name}"] = np.asarray(value)
  return found


@pytest.mark.slow
def test_two_processes_find_what_one_finds(data_dir, tmp_path):
  expected = everything(data_dir)
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  outs = [tmp_path / f"{rank}.npz" for rank in range(2)]
  flags = "--xla_force_host_platform_device_count=2"
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "tests.test_evaluate"),
        *(str(rank), "2", str(port), data_dir, str(out)),
      ],
      cwd=ROOT,
      env=dict(os.environ) | {"XLA_FLAGS": flags},
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank, out in enumerate(outs)
  ]
  try:
    for process in processes:
      _, err = process.communicate(timeout=300)
      assert process.returncode == 0, err
  finally:
    for process in processes:
      process.kill()
  one, other = (dict(np.load(out)) for out in outs)
  assert one.keys() == other.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    if name.split("/")[1] in ("scores", "loss", "features"):
      np.testing.assert_allclose(one[name], value, rtol=1e-4, atol=1e-6)
    else:
      np.testing.assert_array_equal(one[name], value, err_msg=name)


if __name__ == "__main__":
  rank, count, port, data_dir, out = sys.argv[1:]
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    f"127.0.0.1:{port}", int(count), int(rank), initialization_timeout=120
  )
  assert jax.process_count() == int(count)
  np.savez(out, allow_pickle=False, **everything(data_dir))
