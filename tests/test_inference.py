"""What a model's outputs come to: classes, scores, losses, columns."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import model, sharding, train_step

_K = 7
_MODULE = model.MlpMixer(4, 1, 8, 4, 8, num_classes=_K)
_BATCH = {
  "image": np.zeros((8, 8, 8, 3), np.uint8),
  "label": np.arange(8, dtype=np.int32) % 3,
  "mask": np.ones(8, bool),
}
# 3, 0 and 5 in that order, and a class that the head lacks.
_COLUMNS = np.array([3, 0, 5, -1], np.int32)


@pytest.fixture(scope="module")
def functions():
  """Of a tiny model whose logits are the bias of its head; and its weights."""
  images = np.zeros((1, 8, 8, 3), np.float32)
  params = _MODULE.init(jax.random.key(0), images)["params"]
  mesh = sharding.make_mesh()

  def make(loss, columns=None):
    k = _K if columns is None else len(columns)
    return train_step.Inference(_MODULE, loss, k, mesh, columns=columns, top=5)

  made = {
    "softmax": make("softmax"),
    "sigmoid": make("sigmoid"),
    "columns": make("softmax", _COLUMNS),
  }

  def run(which, name, logits):
    bias = np.asarray(logits, np.float32)
    params["head"] = dict(params["head"]) | {"bias": bias}
    batch = sharding.put_batch(mesh, _BATCH)
    return jax.device_get(getattr(made[which], name)(params, batch))

  return run


# Few values, so that ties are the rule.
_LOGIT = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.5])
_ANY = st.one_of(_LOGIT, st.sampled_from([np.nan, np.inf, -np.inf]))


def by_numpy(logits):
  """Classes from the highest logit on; of equal ones the lower class first."""
  return np.argsort(-np.asarray(logits), kind="stable")


@settings(max_examples=30)
@given(st.lists(_ANY, min_size=_K, max_size=_K))
def test_classes_scores_and_losses(functions, logits):
  found = functions("softmax", "examples", logits)
  assert (found["label"] == _BATCH["label"]).all()
  order = by_numpy(logits)[:5]
  if np.isnan(logits).any():
    assert (found["classes"] == -1).all()
  elif np.isfinite(logits).all():
    assert (found["classes"] == order).all()
    p = np.exp(np.array(logits)) / np.exp(logits).sum()
    wanted = np.broadcast_to(p[order], (8, 5))
    np.testing.assert_allclose(found["scores"], wanted, rtol=1e-5)
    losses = -np.log(p[_BATCH["label"]])
    np.testing.assert_allclose(found["loss"], losses, rtol=1e-5, atol=1e-6)
    sigmoids = functions("sigmoid", "examples", logits)["scores"]
    wanted = 1 / (1 + np.exp(-np.array(logits)[order]))
    wanted = np.broadcast_to(wanted, (8, 5))
    np.testing.assert_allclose(sigmoids, wanted, rtol=1e-5)


@settings(max_examples=30)
@given(st.lists(_LOGIT, min_size=_K, max_size=_K))
def test_columns_select_and_order_the_outputs(functions, logits):
  chosen = np.append(np.array(logits)[_COLUMNS[:3]], -np.inf)
  got, _ = functions("columns", "logits", logits)
  assert (got == chosen).all()
  top = functions("columns", "examples", logits)
  assert top["classes"].shape == (8, 4)
  assert (top["classes"] == by_numpy(chosen)).all()
  # What the head lacks comes last and is impossible.
  assert (top["classes"][:, -1] == 3).all()
  assert (top["scores"][:, -1] == 0).all()
  np.testing.assert_allclose(top["scores"].sum(axis=1), 1, rtol=1e-5)
