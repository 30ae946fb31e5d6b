"""Searching the largest batch."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from configs import smoke
from mixer import durations
from mixer.planning import batch_search, compiling, formulas, hardware


@given(st.integers(0, 2**20), st.integers(-5, 2**21))
@example(0, 1)
@example(2**20, 1)
def test_the_largest_that_fits(most, guess):
  tried = []

  def fits(number):
    tried.append(number)
    return number <= most

  low, high = batch_search.largest(fits, guess)
  assert low <= most < high
  # Neighbours: no more than an eighth apart, but for small numbers.
  assert high <= max(low + 1, low * 9 / 8) or high > 2**20
  assert len(tried) == len(set(tried)) <= 16


def test_a_good_guess_is_cheap():
  tried = []

  def fits(number):
    tried.append(number)
    return number < 300

  assert batch_search.largest(fits, 290) == (288, 320)
  assert len(tried) == 2


def test_of_a_config(monkeypatch, capsys):
  """In batches of the slice, each of the parts that a batch is cut into."""
  config = smoke.get_config()
  config.batch_size, config.optimizer.accumulate = 64, 2
  target = hardware.parse("v5e-8")
  plan = durations.plan(config, 1400)
  predicted = formulas.predict(config, target, 1400, 10)

  def compile_step(config, plan, num_classes, target):
    assert num_classes == 10
    fits = config.batch_size <= 1000
    reason = "" if fits else "Used 20G of 16G"
    return compiling.Compiled("x", fits, reason, peak=2**30), ""

  monkeypatch.setattr(compiling, "compile_step", compile_step)
  found = batch_search.largest_batch(config, predicted, plan, target)
  assert found == (960, 1024)
  assert config.batch_size == 64
  assert "batch 1024: Used 20G of 16G" in capsys.readouterr().err


@pytest.mark.parametrize("guess", [1, 10**9])
def test_nothing_fits(guess):
  assert batch_search.largest(lambda _: False, guess) == (0, 1)
