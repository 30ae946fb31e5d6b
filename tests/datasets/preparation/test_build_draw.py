"""The draw of held-out images: exact, and the same in any order."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.datasets.preparation import build_draw
from mixer.errors import UserError

HOLD_OUTS = st.sampled_from(
  [{"a": 3}, {"b": 2, "a": 4}, {"a": 0.2}, {"a": 0.1, "b": 0.3}]
)


def keys_of(count: int) -> list[bytes]:
  return [
    build_draw.key(build_draw.digest(b"%d" % i, 0), "x") for i in range(count)
  ]


def stream(keys, hold_out, chunk: int):
  """Draws in one pass; also tells how many candidates there were."""
  candidates = build_draw.Candidates(hold_out)
  pool = []
  for start in range(0, len(keys), chunk):
    entered = [k for k in keys[start : start + chunk] if candidates.enters(k)]
    pool += entered
    candidates.commit(entered)
  kept = [k for k in pool if candidates.may_be_chosen(k)]
  return build_draw.divide(kept, hold_out), len(pool)


@settings(deadline=None)
@given(HOLD_OUTS, st.randoms(use_true_random=False), st.integers(1, 50))
def test_one_pass_in_any_order_draws_the_same(hold_out, rng, chunk):
  keys = keys_of(60)
  whole = build_draw.divide(keys, hold_out)
  rng.shuffle(keys)
  assert stream(keys, hold_out, chunk)[0] == whole


def test_counts_are_exact_and_take_the_smallest():
  keys = keys_of(1000)
  drawn, _ = stream(keys, {"a": 100, "b": 50}, 32)
  assert drawn == {"a": sorted(keys)[:100], "b": sorted(keys)[100:150]}


def test_fractions_are_met_to_within_chance():
  drawn, _ = stream(keys_of(10_000), {"a": 0.1, "b": 0.25}, 32)
  assert abs(len(drawn["a"]) - 1000) < 4 * math.sqrt(1000)
  assert abs(len(drawn["b"]) - 2500) < 4 * math.sqrt(2500)
  assert drawn["a"] == sorted(drawn["a"]) and drawn["a"][-1] < drawn["b"][0]


def test_with_a_fraction_no_image_changes_sides_when_others_come():
  before, _ = stream(keys_of(500), {"a": 0.2}, 32)
  after, _ = stream(keys_of(800), {"a": 0.2}, 32)
  assert set(before["a"]) == set(after["a"]) & set(keys_of(500))


def test_few_are_ever_candidates():
  keys = keys_of(20_000)
  random.Random(0).shuffle(keys)
  _, candidates = stream(keys, {"a": 200}, 50)
  expected = 200 * (1 + math.log(20_000 / 200))
  assert candidates < 1.3 * expected


def test_nothing_held_out_has_no_candidates():
  assert stream(keys_of(50), {}, 10) == ({}, 0)


def test_equal_images_lie_together_and_ties_go_by_name():
  digest = build_draw.digest(b"image", 0)
  keys = [build_draw.key(digest, name) for name in ("b", "c", "a")]
  assert sorted(keys) == [keys[2], keys[0], keys[1]]
  for fraction in (0.1, 0.3, 0.5, 0.7, 0.9):
    candidates = build_draw.Candidates({"a": fraction})
    assert len({candidates.enters(key) for key in keys}) == 1


def test_another_seed_draws_others():
  def drawn(seed):
    keys = {build_draw.digest(b"%d" % i, seed): i for i in range(100)}
    return {keys[k] for k in sorted(keys)[:20]}

  assert drawn(0) != drawn(1) != drawn(-1)
  # Another hash would draw other splits for everybody.
  assert build_draw.digest(b"image", 0).hex() == (
    "cae8a2274f10a86a29b4ed54f406bec6"
  )


def test_names_that_are_no_text_have_keys():
  assert build_draw.key(b"d" * 16, "caf\udce9") == b"d" * 16 + b"caf\xe9"


@pytest.mark.parametrize("hold_out", [{"a": 5, "b": 2}, {"a": 7}], ids=str)
def test_too_few(hold_out):
  with pytest.raises(UserError, match="ask for fewer, with --restart"):
    stream(keys_of(6), hold_out, 4)
