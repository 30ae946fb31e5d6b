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


def everything(data_dir: str, expression: str, size: int) -> dict[str, Any]:
  """All that evaluation computes of a split, in batches of a size."""
  module, params = tiny()
  mesh = sharding.make_mesh()
  split = split_lib.open_split("digits", expression, data_dir)
  counts, found = evaluate.ConfusionCounts(10), {}
  for prefix, columns in (("", None), ("chosen_", COLUMNS)):
    functions = train_step.Inference(
      module, "softmax", 10, mesh, columns=columns
    )
    given_ = list(evaluate.batches(split, (16, 16), 16, size))
    rows = list(evaluate.examples(functions, params, given_))
    for name in rows[0]:
      found[prefix + name] = np.concatenate([row[name] for row in rows])
    if columns is None:
      for row in rows:
        counts.add(row)
      found |= counts.metrics() | {"confusion": counts.confusion.toarray()}
      features = evaluate.features(functions, params, given_)
      found["features"] = features
      assert counts.metrics() == evaluate.evaluate(functions, params, given_)
  return {name: np.asarray(value) for name, value in found.items()}


@pytest.mark.parametrize("size", [8, 32, 104])
def test_everything_is_numpys_at_any_batch_size(data_dir, size):
  split = split_lib.open_split("digits", "test[:100]", data_dir)
  module, params = tiny()
  images = [preprocess.evaluation(r["image"], 16, 16) for r in split]
  scaled = model.scale(jnp.asarray(np.stack(images)), jnp.dtype("float32"))
  logits = np.asarray(model.apply(module, params, scaled), np.float64)
  labels, log_p = split.labels, logits - logits.max(axis=-1, keepdims=True)
  log_p -= np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
  order = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
  loss = -log_p[np.arange(100), labels]
  got = everything(data_dir, "test[:100]", size)
  np.testing.assert_array_equal(got["label"], labels)
  np.testing.assert_array_equal(got["classes"], order)
  chosen = np.exp(np.take_along_axis(log_p, order, axis=-1))
  np.testing.assert_allclose(got["scores"], chosen, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(got["loss"], loss.mean(), rtol=1e-5)
  assert got["accuracy"] == np.mean(order[:, 0] == labels)
  assert got["accuracy_top5"] == (order == labels[:, None]).any(-1).mean()
  assert got["examples"] == 100
  lacked = np.where(COLUMNS < 0, -np.inf, logits[:, COLUMNS])
  order = np.argsort(-lacked, axis=-1, kind="stable")[:, :5]
  np.testing.assert_array_equal(got["chosen_classes"], order)
  again = got["features"] @ params["head"]["kernel"] + params["head"]["bias"]
  np.testing.assert_allclose(again, logits, atol=1e-3)


def test_batches_without_labels(data_dir):
  split = split_lib.open_split("digits", "test[:100]", data_dir)
  module, params = tiny()
  functions = train_step.Inference(module, "softmax", 10, sharding.make_mesh())
  labelled = list(evaluate.batches(split, (16, 16), 16, 32))
  bare = [{k: b[k] for k in ("image", "mask")} for b in labelled]
  both = (evaluate.examples(functions, params, b) for b in (labelled, bare))
  for a, b in zip(*both, strict=True):
    assert b.keys() == {"classes", "scores"}
    np.testing.assert_array_equal(a["classes"], b["classes"])


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
  sound = rng.random(n) < 0.9
  classes[~sound] = evaluate.NO_CLASS
  valid = [
    frozenset(rng.permutation(k)[: rng.integers(0, 4)].tolist())
    for _ in range(n)
  ]
  rows = {
    "label": labels.astype(np.int32),
    "classes": classes.astype(np.int32),
    "loss": np.full(n, 0.25, np.float32),
  }
  counts = evaluate.ConfusionCounts(k, valid)
  bounds = [0, *sorted(min(c, n) for c in cuts), n]
  for a, b in itertools.pairwise(bounds):
    counts.add({name: value[a:b] for name, value in rows.items()})
  matrix, first = counts.confusion.toarray(), classes[:, 0]
  cells = np.zeros((k, k), np.int64)
  if sound.any():
    cells = sklearn_metrics.confusion_matrix(
      labels[sound], first[sound], labels=np.arange(k)
    )
  assert matrix.dtype == np.int64
  np.testing.assert_array_equal(matrix, cells)
  # A NaN is no class.
  either = np.union1d(labels, first[sound])
  sizes = np.unique(labels, return_counts=True)[1]
  # As in arXiv 2006.07159: of the images with valid labels, those with a
  # prediction among these.
  real = [p in v for p, v in zip(first, valid, strict=True) if v]
  assert counts.metrics() == {
    "accuracy": sklearn_metrics.accuracy_score(labels, first),
    "accuracy_top5": (classes == labels[:, None]).any(axis=-1).mean(),
    "balanced_accuracy": pytest.approx(
      sklearn_metrics.recall_score(
        labels, first, labels=np.unique(labels), average="macro"
      )
    ),
    "macro_f1": pytest.approx(
      sklearn_metrics.f1_score(labels, first, labels=either, average="macro")
    ),
    "imbalance": sizes.max() / sizes.min(),
    "examples": n,
    "loss": 0.25,
    **({"real_accuracy": np.mean(real)} if real else {}),
    **({"real_examples": len(real)} if real else {}),
    **({} if sound.all() else {"not_numbers": n - sound.sum()}),
  }
  np.testing.assert_array_equal(counts.examples, np.bincount(labels, None, k))
  np.fill_diagonal(matrix, 0)
  other, times = counts.confused()
  np.testing.assert_array_equal(times, matrix.max(axis=1))
  # Of equals numpy's argmax takes the first.
  some = times > 0
  np.testing.assert_array_equal(other[some], matrix.argmax(axis=1)[some])


@pytest.mark.parametrize("n,dim", [(12, 40), (200, 20)])
def test_ridge_equals_scikit_learn(n, dim):
  # Both sides of "more examples than features", with sklearn's own solver.
  rng = np.random.default_rng(0)
  y, test_y = rng.integers(0, 4, n), rng.integers(0, 4, 300)
  centres = rng.standard_normal((4, dim)) * 2
  x, test_x = (
    (centres[k] + rng.standard_normal((len(k), dim)) * 2).astype(np.float32)
    for k in (y, test_y)
  )

  def prepare(features):
    white = (features - x.mean(axis=0)) / (x.std(axis=0) + 1e-5)
    return np.concatenate([white, np.full((len(white), 1), 100.0)], axis=1)

  ridge = linear_model.Ridge(alpha=1024.0, fit_intercept=False)
  ridge.fit(prepare(x), 2.0 * np.eye(4)[y] - 1.0)
  expected = ridge.predict(prepare(test_x)).argmax(axis=1)
  got = evaluate.ridge(x, y, test_x, 4, 1024.0)
  assert np.mean(got != expected) < 0.01
  assert np.mean(got == test_y) > 0.3  # Above chance.


HEAD, IMAGENET = wordnet.classes("head"), wordnet.classes("imagenet1k")


def match(ids, classes: Any, count=None, same=False):
  count = len(ids or ()) if count is None else count
  head = types.SimpleNamespace(class_ids=ids, num_classes=count, origin="it")
  return evaluate.match(head, classes, "letters", same=same)


@given(st.permutations("abcdefg"), st.integers(1, 7))
def test_columns_lead_to_the_same_names(order, count):
  head, classes = tuple("abcdefg"), tuple(order[:count])
  columns = match(head, classes)
  assert (columns is None) == (classes == head)
  if columns is not None:
    assert tuple(head[i] for i in columns) == classes


def test_heads_that_serve_other_classes():
  # The released one lacks one class of ImageNet-1k.
  expected = wordnet.head_indices("imagenet1k", allow_missing=True)
  np.testing.assert_array_equal(match(HEAD, IMAGENET), expected)
  assert IMAGENET[int(np.argmin(expected))] == "n04399382"
  # Outputs may be said to be the classes.
  assert match(None, ["a", "b"], 2, same=True) is None
  assert match(("c", "d"), ["a", "b"], same=True) is None


@pytest.mark.parametrize(
  ("head", "classes", "count", "same", "words"),
  [
    (HEAD, [*IMAGENET[:49], "n04399382"], None, 0, "1 of them .*('n04399382')"),
    (tuple("abc"), ["a", "c", "d"], None, 0, "3 outputs, .* 3 classes, 1 of"),
    (None, ["a"], 0, 0, "0 outputs .* --fewshot"),
    (None, ["a", "b"], 2, 0, "of unknown classes.* add --same_classes"),
    (None, ["a", "b", "c"], 2, 1, "2 outputs .* 3 classes"),
  ],
)
def test_other_classes_are_refused(head, classes, count, same, words):
  with pytest.raises(UserError, match=words):
    match(head, classes, count, bool(same))


@pytest.mark.slow
def test_two_processes_find_what_one_finds(data_dir, tmp_path):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  outs = [str(tmp_path / f"{rank}.npz") for rank in range(2)]
  env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
  command = [sys.executable, "-m", "tests.test_evaluate"]
  processes = [
    subprocess.Popen(
      [*command, str(rank), "2", str(port), data_dir, out],
      cwd=ROOT,
      env=dict(os.environ) | env,
    )
    for rank, out in enumerate(outs)
  ]
  try:
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
  finally:
    for process in processes:
      process.kill()
  one, other = (dict(np.load(out)) for out in outs)
  for expression in _PARTS:
    for name, value in everything(data_dir, expression, 32).items():
      key = f"{expression}/{name}"
      np.testing.assert_array_equal(one[key], other[key], err_msg=key)
      near = name.endswith(("scores", "loss", "features"))
      rtol, atol = (1e-4, 1e-6) if near else (0, 0)
      np.testing.assert_allclose(one[key], value, rtol, atol, err_msg=key)


# The last batch leaves the second of two hosts without examples; the other
# split gives it none at all.
_PARTS = ("test[:100]", "test[:5]")

if __name__ == "__main__":
  rank, count, port, data_dir, out = sys.argv[1:]
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    f"127.0.0.1:{port}", int(count), int(rank), initialization_timeout=120
  )
  assert jax.process_count() == int(count)
  parts = {part: everything(data_dir, part, 32) for part in _PARTS}
  found = {f"{p}/{k}": v for p, some in parts.items() for k, v in some.items()}
  np.savez(out, allow_pickle=False, **found)
