"""When something is due; which updates are dispatched together."""

import itertools
import json
import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from mixer import config as config_lib
from mixer import durations

INTERVALS = st.just(0) | st.integers(1, 40) | st.fractions(1, 40)
PLANS = st.builds(
  durations.Plan,
  total=st.integers(1, 60),
  warmup=st.just(0),
  log_every=INTERVALS,
  eval_every=INTERVALS,
  checkpoint_every=INTERVALS,
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
    due = (s for s in range(plan.total + 1) if durations.is_due(every, s))
    assert {*due} <= {*found}
  assert all(b - a in (1, most) for a, b in itertools.pairwise(found))


@given(INTERVALS, st.integers(1, 500))
def test_what_is_due(every, last):
  found = [s for s in range(last + 1) if durations.is_due(every, s)]
  if not every:
    assert found == []
  elif isinstance(every, int):
    assert found == [*range(every, last + 1, every)]
  else:
    nearest = (math.floor(k * every + Fraction(1, 2)) for k in range(1, 501))
    assert found == [s for s in nearest if s <= last]


@given(st.integers(1, 10**6), st.integers(1, 20))
def test_equal_parts_end_with_the_run(total, parts):
  # None of them just before the end, which has its own.
  every = max(Fraction(total, parts), Fraction(1))
  assert durations.is_due(every, total)
  due = [
    s for s in range(max(0, total - 99), total) if durations.is_due(every, s)
  ]
  assert all(total - s >= every // 1 for s in due)


def test_half_of_an_odd_run():
  config = config_lib.default()
  config.batch_size, config.total = 1, "5 steps"
  config.schedule.warmup = config.log_every = config.checkpoint_every = "0"
  config.eval_every, config.keep_every = "50%", "1.25 steps"
  plan = durations.plan(config, 7)
  assert [s for s in range(6) if durations.is_due(plan.eval_every, s)] == [3, 5]
  assert json.dumps(plan.to_json()) == (
    '{"total": 5, "warmup": 0, "log_every": 0, "eval_every": 2.5, '
    '"checkpoint_every": 0, "keep_every": 1.25}'
  )


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
