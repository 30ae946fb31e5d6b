"""What was seen is known, and takes little room."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixer.datasets.preparation.build_seen import Seen

NUMBERS = st.integers(0, 30) | st.integers(2**64 - 3, 2**64 - 1)


@given(st.lists(st.lists(NUMBERS, max_size=12), max_size=12))
def test_it_is_a_set(chunks):
  seen, reference = Seen(), set()
  for chunk in chunks:
    known = seen.known(np.array(chunk, np.uint64))
    for value, old in zip(chunk, known, strict=True):
      new = not old and seen.add(value)
      assert new == (value not in reference)
      reference.add(value)
    seen.commit(seen.take_chunk())
  assert len(seen) == len(reference)


def test_arrays_are_few():
  seen = Seen()
  rng = np.random.default_rng(0)
  for _ in range(400):
    for value in rng.integers(0, 2**63, 50, np.uint64).tolist():
      seen.add(value)
    seen.commit(seen.take_chunk())
  assert len(seen) == 20_000
  assert len(seen._runs) < 10
  assert sum(run.nbytes for run in seen._runs) == 160_000
