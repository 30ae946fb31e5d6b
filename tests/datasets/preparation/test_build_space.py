"""Estimates of the room that a preparation needs."""

import pytest

from mixer.datasets.preparation import build_space
from mixer.datasets.preparation.build_journal import Totals
from mixer.datasets.preparation.build_options import Options

TB = 10**12


def needed(totals=None, **options) -> float:
  """In TB, of a source of one."""
  found = build_space.needed(TB, totals or Totals(), Options(**options))
  return pytest.approx(found / TB, rel=0.001)


def test_images_that_are_kept_take_what_they_took():
  assert needed() == 1.02


def test_a_fraction_that_is_held_out_lies_there_twice_at_the_end():
  assert needed(hold_out={"test": 0.1, "validation": 0.1}) == 1.02 * 1.2


def test_all_of_it_lies_there_twice_while_it_is_shuffled():
  assert needed(shuffle=True, hold_out={"test": 5}) == 1.02 * 2


def test_the_first_chunk_tells_how_much_smaller_images_take():
  first = Options().chunk_bytes
  assert needed(short_side=256) == first / TB
  totals = Totals(1, 1000, TB // 10, 1000, TB // 50)
  assert needed(totals, short_side=256) == 1.02 * 0.9 / 5


def test_counts_are_estimated_from_the_first_chunk():
  totals = Totals(1, 32768, TB // 400, 32768, TB // 400)
  # 51,200 (1 + ln(13.1 million / 51,200)) of 13.1 million: a fortieth.
  hold_out = {"test": 25_600, "validation": 25_600}
  assert needed(totals, hold_out=hold_out) == 1.02 * (1 - 1 / 400 + 0.02557)


def test_what_is_done_needs_no_more():
  assert needed(Totals(400, 10, TB, 10, TB)) == 0
