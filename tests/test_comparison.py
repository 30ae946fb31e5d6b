"""How far apart two checkpoints are, against numpy on whole vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer import comparison, description


def described(params, **facts):
  facts = {"sha256": description.digest(params)} | facts
  return description.Described(facts, params)


_VALUES = st.floats(-100, 100, width=32)


@given(st.lists(st.tuples(_VALUES, _VALUES), min_size=2, max_size=12))
def test_a_module_is_one_vector(pairs):
  a, b = np.array(pairs, np.float32).T
  trees = [{"head": {"kernel": x[1:, None], "bias": x[:1]}} for x in (a, b)]
  got = comparison.compare(*map(described, trees))
  a, b = a.astype(np.float64), b.astype(np.float64)
  (found,) = got["modules"].values()
  assert found["largest"] == np.abs(b - a).max()
  assert found["changed"] == pytest.approx(np.mean(a != b))
  if np.linalg.norm(a):
    wanted = np.linalg.norm(b - a) / np.linalg.norm(a)
    assert found["relative"] == pytest.approx(wanted)
  else:
    assert found["relative"] is None
  if np.linalg.norm(a) and np.linalg.norm(b):
    wanted = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert found["cosine"] == pytest.approx(wanted, abs=1e-9)
  else:
    assert found["cosine"] is None


def test_what_only_one_has():
  a = described({"stem": {"bias": np.zeros(2)}, "head": {"bias": np.ones(3)}})
  b = described({"stem": {"bias": np.zeros(2)}, "head": {"bias": np.ones(4)}})
  got = comparison.compare(a, b)
  assert list(got["modules"]) == ["stem"]
  assert got["shapes"] == ["head/bias is (3,) there and (4,) here"]
  assert not got["same_weights"]


def test_only_what_differs_is_told():
  params = {"stem": {"bias": np.zeros(2)}}
  same = {"model": "B/16", "class_names": ["a"]}
  a = described(
    params,
    **same,
    step=3,
    config={"seed": 0, "model": {"variant": "B/16"}},
    environment={"host": "x", "versions": {"jax": "1", "flax": "2"}},
    metrics={"eval/accuracy": 0.5},
  )
  b = described(
    params,
    **same,
    step=4,
    config={"seed": 1, "model": {"variant": "B/16"}},
    environment={"host": "x", "versions": {"jax": "3", "flax": "2"}},
  )
  got = comparison.compare(a, b)
  assert got["same_weights"]
  assert got["facts"] == {"step": [3, 4]}
  assert got["config"] == {"seed": [0, 1]}
  assert got["environment"] == {"jax": ["1", "3"]}
  assert got["metrics"] == {"eval/accuracy": [0.5, None]}
