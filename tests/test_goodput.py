"""Where a run's time went."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer import goodput


class Clock:
  def __init__(self):
    self.now = 50.0

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(goodput, "time", clock)
  return clock


def test_time_goes_to_what_is_innermost(clock):
  spent = goodput.Goodput(40.0)
  clock.now += 2
  spent.begin()
  with spent.spend("data"):
    clock.now += 3
  clock.now += 5
  with spent.spend("evaluation"):
    clock.now += 7
    with spent.spend("saving"):
      clock.now += 11
    clock.now += 13
  clock.now += 17
  assert spent.seconds() == {
    "start": 12.0,
    "compile": 0.0,
    "data": 3.0,
    "step": 22.0,
    "evaluation": 20.0,
    "saving": 11.0,
    "lost": 0.0,
  }
  assert spent.record()["goodput/evaluation"] == 20.0
  lines = spent.table().splitlines()
  assert lines[1].split() == ["22.0", "32.4%", "updates"]
  assert lines[-1].split() == ["68.0", "in", "all"]
  assert len(lines) == 7  # None for what took no time.


def test_an_exception_ends_what_it_leaves(clock):
  spent = goodput.Goodput(50.0)
  spent.begin()
  with pytest.raises(ValueError), spent.spend("data"):
    clock.now += 2
    raise ValueError
  clock.now += 1
  assert spent.seconds()["data"] == 2.0
  assert spent.seconds()["step"] == 1.0


kinds = st.sampled_from([k for k in goodput.KINDS if k != "lost"])
pieces = st.lists(st.tuples(kinds, st.integers(0, 1000)), max_size=12)


# A start: what it spent up to its checkpoint, what after, in vain.
@given(st.lists(st.tuples(pieces, pieces), min_size=1, max_size=5))
def test_over_restarts_every_second_is_counted_once(starts):
  clock = Clock()
  kept, dropped = [], []
  total = 0.0
  in_vain = 0.0
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(goodput, "time", clock)
    for step, (good, bad) in enumerate(starts):
      clock.now += 1e6  # Down, or set by hand: not counted.
      spent = goodput.Goodput(clock.now, kept, dropped)
      kept, dropped = [*kept], []
      for records, some in ((kept, good), (dropped, bad)):
        for kind, seconds in some:
          with spent.spend(kind):
            clock.now += seconds
          total += seconds
        records.append({"step": step} | spent.record())
      assert sum(spent.seconds().values()) == pytest.approx(total)
      assert spent.seconds()["lost"] == pytest.approx(in_vain)
      in_vain += sum(seconds for _, seconds in bad)


def test_records_of_before_there_was_goodput_count_nothing(clock):
  old = [{"step": 1, "train/loss": 2.0}]
  spent = goodput.Goodput(50.0, old, old)
  assert set(spent.seconds().values()) == {0.0}
