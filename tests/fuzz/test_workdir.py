"""Damaged files of a workdir: they are as they were written, or it is told.

For all inputs memory grows by `_MEMORY` at most; each ends within `_SECONDS`.
"""

import faulthandler
import json
import resource

import numpy as np
import pytest
from etils import epath

from configs import smoke
from mixer import checkpoints, lock, metrics, runtime, workdir
from mixer import config as config_lib
from mixer.errors import UserError
from mixer.report import collect
from tests import states
from tests.fuzz import mutations

_INPUTS, _SECONDS, _MEMORY = 5_000, 10, 64 << 20


def damaged(path, count=_INPUTS):
  """Numbers of inputs, of which each is in the file."""
  seed, rng = path.read_bytes(), np.random.default_rng(15)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for i in range(count):
    path.write_bytes(mutations.mutated(seed, rng))
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    yield i
    faulthandler.cancel_dump_traceback_later()
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert (after - before) * 1024 < _MEMORY


@pytest.mark.slow
def test_the_config(tmp_path):
  config, told = config_lib.to_json(smoke.get_config()), 0
  workdir.write_config(tmp_path, config, {"total": 60})
  for i in damaged(tmp_path / "config.json"):
    try:
      found = workdir.read_config(tmp_path)
    except UserError as e:
      told += 1
      assert str(tmp_path / "config.json") in str(e), i
    else:
      assert found == {"config": config, "resolved": {"total": 60}}, i
  assert told > _INPUTS / 2


@pytest.mark.slow
def test_the_metrics(tmp_path):
  rng, told = np.random.default_rng(0), 0
  writer = metrics.Writer(tmp_path, 0)
  for step in range(1, 31):
    values = {"train/loss": float(rng.exponential()), "data/wait": np.nan}
    writer.write(step, values)
  writer.close()
  for i in damaged(tmp_path / metrics.FILE):
    for least in (0, 30):
      found = metrics.examine(tmp_path, least)
      assert all(r == writer.records[n] for n, r in found.records.items()), i
      if not found.damage:
        assert [*found.records] == [*range(len(found.records))], i
        assert len(found.records) == 30 or not least, i
    told += len(found.records) < 30
    if i % 20 == 0:  # As a run that goes on does.
      again = metrics.Writer(tmp_path, 30, 30)
      again.close()
      assert again.records == list(found.records.values()), i
      assert metrics.examine(tmp_path, 30).records == found.records, i
      for copy in tmp_path.glob(f"{metrics.FILE}.damaged.*"):
        copy.unlink()
  assert told > _INPUTS / 2


@pytest.mark.slow
def test_what_a_report_keeps(tmp_path):
  kept = {"step": 60, "predictions": {"accuracy": 0.5}, "weights": []}
  kept |= {"notes": ["A note."]}
  collect.keep(tmp_path, kept)
  for i in damaged(tmp_path / collect.KEPT):
    found, damage = collect.kept(tmp_path)
    assert bool(damage) == (found is None), i
    assert found is None or found == {"format": 2, **kept}, i


@pytest.mark.slow
def test_what_a_checkpoint_says(tmp_path):
  runtime.quiet_libraries()
  states.save_tiny(tmp_path, 4)
  where, told = epath.Path(tmp_path / "checkpoints" / "4"), 0
  whole = checkpoints.header(where)
  for i in damaged(tmp_path / "checkpoints" / "4" / "_CHECKPOINT_METADATA"):
    try:
      assert checkpoints.header(where) == whole, i
    except checkpoints.Damaged as e:
      told += 1
      assert str(where) in str(e), i
  assert told > _INPUTS / 4


@pytest.mark.slow
def test_what_an_owner_says(tmp_path):
  record = {"name": "process 1 on x", "boot": "b", "token": "t", "beats": 3}
  (tmp_path / "owner").write_text(json.dumps(record))
  for i in damaged(tmp_path / "owner"):
    assert lock._name((tmp_path / "owner").read_bytes()).isprintable(), i
