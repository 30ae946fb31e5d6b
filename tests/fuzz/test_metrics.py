"""Damaged metrics.jsonl: what comes back was written, what is lost is told.

Only a last line that was cut off, and whole lines behind it, may be missing
without a word; where a checkpoint knows how many there were, not even those.
Memory grows by `_MEMORY` at most; an input ends within `_SECONDS`.
"""

import faulthandler
import resource

import numpy as np
import pytest

from mixer import metrics
from tests.fuzz import mutations

_INPUTS = 10_000
_SECONDS, _MEMORY = 10, 256 << 20


def _write(folder):
  """A run's records, as they are written."""
  rng = np.random.default_rng(0)
  writer = metrics.Writer(folder, 0)
  for step in range(1, 31):
    values = {"train/loss": float(rng.exponential()), "data/wait": np.nan}
    writer.write(step, values)
    if step % 10 == 0:
      writer.write(step, {"eval/accuracy": rng.random(), "eval/examples": 397})
  writer.close()
  return writer.records


@pytest.mark.slow
def test_what_comes_back_was_written_and_what_is_lost_is_told(tmp_path):
  written = _write(tmp_path)
  path = tmp_path / metrics.FILE
  seed = path.read_bytes()
  rng = np.random.default_rng(15)
  told = 0
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for i in range(_INPUTS):
    data = mutations.mutated(seed, rng)
    path.write_bytes(data)
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    for least in (0, len(written)):
      found = metrics.examine(tmp_path, least)
      # Where hardly a line is left, it may look like one from before there
      # were checks; a checkpoint knows better.
      if least or b'"check"' in data:
        for n, record in found.records.items():
          assert record == written[n], f"input {i}"
      lost = len(written) - len(found.records)
      if not found.damage:
        assert [*found.records] == [*range(len(found.records))], f"input {i}"
        assert not (least and lost), f"input {i}"
    told += bool(lost)
    if i % 20 == 0:  # As a run that goes on does.
      again = metrics.Writer(tmp_path, 30, len(written))
      again.close()
      assert again.records == list(found.records.values())
      assert bool(again.damage) == bool(found.damage)
      after = metrics.examine(tmp_path, len(written))
      assert after.records == found.records
      for copy in tmp_path.glob(f"{metrics.FILE}.damaged.*"):
        copy.unlink()
    faulthandler.cancel_dump_traceback_later()
  assert told > _INPUTS / 2
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert (after - before) * 1024 < _MEMORY
