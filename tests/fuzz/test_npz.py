"""Files of weights, as `--checkpoint=FILE.npz` reads them.

A zip has a CRC-32 of each of its arrays: whatever happens to a file, its
weights are the same or the damage is told; so it is with FILE.npz.json. Where a
member is forged, with its CRC, nothing but a sentence may come of it. Memory is
bound to `_MEMORY` beyond what the test itself holds; an input ends within
`_SECONDS`.
"""

import contextlib
import faulthandler
import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from mixer import metadata as metadata_lib
from mixer import npz, trained, weights
from mixer.errors import UserError
from tests import trained_files
from tests.fuzz import mutations

_INPUTS = 3_000
_MEMORY, _SECONDS = 2**25, 30


def _seeds(folder):
  """Files of the same weights, in every form that there is of them."""
  flat = trained_files.npz(folder / "stored.npz", 5)
  np.savez_compressed(folder / "deflated.npz", **flat)
  np.savez(folder / "big.npz", **{k: v.astype(">f4") for k, v in flat.items()})
  npz.save(weights.unflatten(flat), folder / "current.npz")
  np.savez(folder / "older.npz", **trained_files.older(flat))
  return [path.read_bytes() for path in sorted(folder.iterdir())], flat


def _forged(data, rng, others):
  """The same zip, but for a member or its name that is another."""
  with zipfile.ZipFile(io.BytesIO(data)) as file:
    members = [[info.filename, file.read(info)] for info in file.infolist()]
  chosen = members[rng.integers(len(members))]
  if rng.random() < 0.9:
    chosen[1] = mutations.mutated(chosen[1], rng, [m[1] for m in members])
  else:
    name = mutations.mutated(chosen[0].encode(), rng)
    chosen[0] = name[:99].decode("latin-1")
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w", int(rng.choice((0, 8)))) as file:
    for name, content in members:
      file.writestr(zipfile.ZipInfo(name), content, file.compression)
  return out.getvalue()


@contextlib.contextmanager
def _bounded(i):
  """Holds what is done with input number i to its time and memory."""
  before = tracemalloc.get_traced_memory()[0]
  tracemalloc.reset_peak()
  faulthandler.dump_traceback_later(_SECONDS, exit=True)
  try:
    yield
  finally:
    faulthandler.cancel_dump_traceback_later()
  peak = tracemalloc.get_traced_memory()[1] - before
  assert peak < _MEMORY, f"input {i}: {peak:,} bytes"


@pytest.fixture
def traced():
  tracemalloc.start()
  yield
  tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_damage_is_told_or_changes_nothing(tmp_path):
  (tmp_path / "seeds").mkdir()
  seeds, flat = _seeds(tmp_path / "seeds")
  rng = np.random.default_rng(15)
  path = tmp_path / "weights.npz"
  told = 0
  for i in range(_INPUTS):
    forged = bool(rng.random() < 0.4)
    make = _forged if forged else mutations.mutated
    path.write_bytes(make(seeds[i % len(seeds)], rng, seeds))
    with _bounded(i):
      try:
        found = trained.load(str(path))
      except UserError as e:
        told += 1
        assert str(path) in str(e), f"input {i}"
        continue
    if not forged:
      for name, array in weights.flatten(found.params).items():
        np.testing.assert_array_equal(array, flat[name], f"input {i}")
  assert told > _INPUTS / 2


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_damaged_metadata_is_told_or_changes_nothing(tmp_path):
  path, beside = tmp_path / "weights.npz", tmp_path / "weights.npz.json"
  trained_files.npz(path, 5, classes=["Käse", "b", "c", "d", "e"])
  wanted, seed = metadata_lib.read_beside(path, 5), beside.read_bytes()
  rng = np.random.default_rng(16)
  told = 0
  for i in range(_INPUTS):
    beside.write_bytes(mutations.mutated(seed, rng, [seed]))
    with _bounded(i):
      try:
        found = metadata_lib.read_beside(path, 5)
      except UserError as e:
        told += 1
        assert str(beside) in str(e), f"input {i}"
        continue
    assert found == wanted, f"input {i}"
  assert told > _INPUTS / 2
