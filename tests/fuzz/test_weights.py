"""Files of weights, as `--checkpoint=FILE.npz` reads them.

A zip has a CRC-32 of each of its arrays: whatever happens to a file, its
weights are the same or the damage is reported; so it is with FILE.npz.json.
Where a member is forged, with its CRC, nothing but a sentence may come of it.
An input takes at most `_MEMORY` and `_SECONDS`.
"""

import faulthandler
import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from mixer import trained, weights
from mixer.errors import UserError
from tests import trained_files
from tests.fuzz import mutations

_INPUTS = 3_000
_MEMORY, _SECONDS = 2**25, 30


def _forged(data, rng):
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


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_damage_is_reported_or_changes_nothing(tmp_path, beside):
  path = tmp_path / "weights.npz"
  flat = trained_files.npz(path, 5, classes=["Käse", "b", "c", "d", "e"])
  wanted = trained.read_beside(path)
  changed, seeds = path.with_name("weights.npz.json"), []
  read = trained.read_beside if beside else lambda x: trained.load(str(x))
  if beside:
    seeds = [changed.read_bytes()]
  else:
    changed.unlink()
    changed, seed = path, tmp_path / "seed.npz"
    weights.save(weights.unflatten(flat), seed)
    seeds = [path.read_bytes(), seed.read_bytes()]
    for form in (flat, trained_files.older(flat)):
      np.savez_compressed(seed, **{k: v.astype(">f4") for k, v in form.items()})
      seeds.append(seed.read_bytes())
  rng, reported = np.random.default_rng(15), 0
  tracemalloc.start()
  for i in range(_INPUTS):
    forged, seed = not beside and rng.random() < 0.4, seeds[i % len(seeds)]
    more = () if forged else (seeds,)
    data = (_forged if forged else mutations.mutated)(seed, rng, *more)
    changed.write_bytes(data)
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    found = None
    try:
      found = read(path)
    except UserError as e:
      reported += 1
      assert str(path) in str(e), f"input {i}"
    faulthandler.cancel_dump_traceback_later()
    assert tracemalloc.get_traced_memory()[1] - before < _MEMORY, f"input {i}"
    if found and beside:
      assert found == wanted, f"input {i}"
    elif found and not forged:
      for name, array in weights.flatten(found.params).items():
        np.testing.assert_array_equal(array, flat[name], f"input {i}")
  tracemalloc.stop()
  assert reported > _INPUTS / 2
