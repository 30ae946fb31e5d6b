"""Which checkpoints stay."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.storage import retention


@pytest.mark.parametrize(
  ("keep", "keep_every", "metrics", "stay"),
  [
    (1, 0, {}, {50}),
    (2, 0, {}, {40, 50}),
    (9, 0, {}, {10, 20, 30, 40, 50}),
    (1, 20, {}, {20, 40, 50}),
    (1, 0, {10: 0.5, 30: 0.7, 40: 0.6}, {30, 50}),
    (1, 0, {10: 0.7, 30: 0.7}, {30, 50}),
    (1, 0, {10: -3.0, 20: math.nan, 30: math.inf}, {10, 50}),
    (1, 0, {35: 0.9, 10: 0.1}, {10, 50}),
    (2, 20, {10: 0.9}, {10, 20, 40, 50}),
  ],
)
def test_examples(keep, keep_every, metrics, stay):
  steps = [10, 20, 30, 40, 50]
  assert retention.kept(steps, keep, keep_every, metrics) == stay


@given(
  st.lists(st.integers(1, 60), unique=True).map(sorted),
  st.integers(1, 5),
  st.integers(0, 20),
  st.dictionaries(st.integers(0, 60), st.floats()),
)
def test_laws(steps, keep, keep_every, metrics):
  stay = retention.kept(steps, keep, keep_every, metrics)
  assert stay <= {*steps}
  assert stay >= {*steps[-keep:]}
  for step in steps:
    if keep_every and step % keep_every == 0:
      assert step in stay
  known = {
    s: metrics[s] for s in steps if math.isfinite(metrics.get(s, math.nan))
  }
  if known:
    assert max(known.values()) in {known.get(s) for s in stay}
  more = [s for s in stay if not (keep_every and s % keep_every == 0)]
  assert len(more) <= keep + 1
