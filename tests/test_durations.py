"""Which updates are dispatched together."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mixer import durations

PLANS = st.builds(
  durations.Plan,
  total=st.integers(1, 60),
  warmup=st.just(0),
  log_every=st.integers(1, 20),
  eval_every=st.integers(1, 40),
  checkpoint_every=st.integers(1, 40),
)


def ends(plan, start, most):
  """The steps at which something can happen between dispatches."""
  step, found = start, [start]
  while step < plan.total:
    step += durations.at_once(plan, step, most)
    found.append(step)
  return found


@given(PLANS, st.integers(1, 12))
def test_nothing_that_is_due_is_passed(plan, most):
  found = ends(plan, 0, most)
  assert found[-1] == plan.total
  for every in (plan.log_every, plan.eval_every, plan.checkpoint_every):
    assert {*range(0, plan.total + 1, every)} <= {*found}
  assert all(b - a in (1, most) for a, b in itertools.pairwise(found))


@given(PLANS, st.integers(1, 12), st.data())
def test_a_run_that_was_interrupted_goes_on_alike(plan, most, data):
  whole = ends(plan, 0, most)
  stop = data.draw(st.sampled_from(whole))
  assert ends(plan, stop, most) == whole[whole.index(stop) :]


def test_as_many_as_asked_where_nothing_is_due():
  plan = durations.Plan(100, 0, 50, 100, 100)
  # 48 to 50 and 98 to 100 one by one.
  assert ends(plan, 0, 8) == [
    *range(0, 49, 8),
    *range(49, 57),
    *range(64, 97, 8),
    97,
    98,
    99,
    100,
  ]
  assert ends(plan, 0, 1) == [*range(101)]
