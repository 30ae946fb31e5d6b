"""Damaged files of a workdir: they are as they were written, or it is told.

For an input memory grows by `_MEMORY` at most, and it ends within `_SECONDS`.
(Orbax keeps 0.6 MB of each checkpoint that it opens: docs/log.md, 2026-11-23.)
"""

import faulthandler
import json
import resource

import numpy as np
import pytest
from etils import epath

from configs import smoke
from mixer import config as config_lib
from mixer import runtime, workdir
from mixer.errors import UserError
from mixer.report import files, runs
from mixer.storage import owner, saved
from tests import trained_files
from tests.fuzz import mutations

_INPUTS = 10_000
_SECONDS, _MEMORY = 10, 64 << 20
_RESOLVED = {
  "total": 60,
  "train_examples": 1400,
  "eval_examples": 397,
  "num_classes": 10,
}
_KEPT = {
  "step": 60,
  "predictions": {"accuracy": 0.5, "samples": [{"index": 3, "file": "a.png"}]},
  "weights": None,
  "notes": ["A note."],
}


_peak = 0


def _damage(path, i, rng, seed):
  global _peak
  before, _peak = _peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert not i or (_peak - before) * 1024 < _MEMORY, f"input {i - 1}"
  path.write_bytes(mutations.mutated(seed, rng))
  faulthandler.dump_traceback_later(_SECONDS, exit=True)


@pytest.mark.slow
def test_the_config_is_as_it_was_written_or_it_is_told(tmp_path):
  config = config_lib.to_json(smoke.get_config())
  workdir.claim(tmp_path, config, _RESOLVED)
  path = tmp_path / "config.json"
  seed, rng, told = path.read_bytes(), np.random.default_rng(15), 0
  for i in range(_INPUTS):
    _damage(path, i, rng, seed)
    try:
      found = workdir.read_config(tmp_path)
    except UserError as e:
      told += 1
      assert str(path) in str(e), f"input {i}"
      with pytest.raises(UserError):
        runs.read(tmp_path, "x")
    else:
      assert found == {"config": config, "resolved": _RESOLVED}, f"input {i}"
  faulthandler.cancel_dump_traceback_later()
  assert told > _INPUTS / 2


@pytest.mark.slow
def test_what_is_kept_is_as_it_was_written_or_it_is_told(tmp_path):
  files.keep(tmp_path, _KEPT)
  path = tmp_path / files.KEPT
  seed, rng, told = path.read_bytes(), np.random.default_rng(15), 0
  for i in range(_INPUTS):
    _damage(path, i, rng, seed)
    found, damage = files.kept(tmp_path)
    told += bool(damage)
    assert bool(damage) == (found is None), f"input {i}"
    assert found is None or found == {"format": 1, **_KEPT}, f"input {i}"
  faulthandler.cancel_dump_traceback_later()
  assert told > _INPUTS / 2


@pytest.mark.slow
def test_an_owner_is_somebody_or_cannot_be_made_out(tmp_path):
  path = tmp_path / ".owner.json"
  seed = json.dumps(owner.this_process() | {"beats": 3}, indent=1).encode()
  rng = np.random.default_rng(15)
  for i in range(_INPUTS):
    _damage(path, i, rng, seed)
    found = owner.parse(path.read_bytes())
    assert owner.describe(found).isprintable(), f"input {i}"
    assert owner.is_alive(found) in (True, False, None)
    assert owner.is_suspended(found) in (True, False)
  faulthandler.cancel_dump_traceback_later()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "files.json"])
def test_what_a_checkpoint_says_is_as_it_was_or_it_is_told(tmp_path, name):
  runtime.quiet_libraries()
  trained_files.save(tmp_path, smoke.get_config())
  where = epath.Path(tmp_path / "checkpoints" / "4")
  whole = saved.look(where, ()).metadata
  # Else the list of files knows it before it is read.
  if name != "files.json":
    (where / "files.json").unlink()
  path = where / name
  seed, rng, told = path.read_bytes(), np.random.default_rng(15), 0
  for i in range(_INPUTS):
    _damage(path, i, rng, seed)
    try:
      found = saved.look(where, ())
    except UserError as e:
      told += 1
      assert str(where) in str(e), f"input {i}"
    else:
      assert found.metadata == whole, f"input {i}"
  faulthandler.cancel_dump_traceback_later()
  assert told > _INPUTS / 4
