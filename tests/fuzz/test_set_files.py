"""The files of a prepared data set, as every run opens them.

Of a set with a manifest, whatever happens to one of its files, the examples and
the names of their classes are the same or the damage is refused. Of one
without, names can't be compared with anything, but the examples can. Of records
that were forged before they were stored, nothing but a sentence may come.
"""

import collections
import os
import pathlib
import shutil

import numpy as np
import pytest
from array_record.python import array_record_module

from mixer.datasets import shipped, split, stored
from mixer.errors import UserError
from tests.fuzz import mutations

_INPUTS = int(os.environ.get("FUZZ_INPUTS", "5000"))
_SIZES = {"train": 10, "test": 8}


def _read(root: pathlib.Path):
  """Examples and class names of both splits."""
  parts = [split.open_split("others", name, str(root)) for name in _SIZES]
  return [(part.read(range(len(part))), part.class_names) for part in parts]


def _forge(path: pathlib.Path, rng: np.random.Generator) -> None:
  """Stores other records, in a whole file."""
  reader = array_record_module.ArrayRecordReader(str(path))
  records = reader.read_all()
  reader.close()
  chosen = int(rng.integers(len(records)))
  records[chosen] = mutations.mutated(records[chosen], rng, records)
  options = ("group_size:1", "group_size:1,uncompressed")[rng.integers(2)]
  path.unlink()
  writer = array_record_module.ArrayRecordWriter(str(path), options)
  for record in records:
    writer.write(record)
  writer.close()


def _one(number: int, sets: pathlib.Path, work: pathlib.Path, right) -> str:
  """What comes of an input."""
  rng = np.random.default_rng((15, number))
  shutil.rmtree(work, ignore_errors=True)
  folder = work / "others" / "1.0.0"
  sealed = bool(rng.random() < 0.6)
  shutil.copytree(sets, folder, copy_function=os.link)
  if not sealed:
    (folder / stored.MANIFEST).unlink()
  paths = sorted(folder.iterdir())
  small = [p for p in paths if "array_record" not in p.name]
  chosen = small if rng.random() < 0.5 else [p for p in paths if p not in small]
  path = chosen[rng.integers(len(chosen))]
  forged = not sealed and path not in small and rng.random() < 0.5
  if forged:
    _forge(path, rng)
  else:
    others = [p.read_bytes() for p in chosen]
    data = mutations.mutated(path.read_bytes(), rng, others)
    path.unlink()
    path.write_bytes(data)
  try:
    found = _read(work)
  except UserError as e:
    assert str(e).endswith("."), str(e)
    return "refused"
  if forged:
    return "forged"
  for (records, names), there in zip(right, found, strict=True):
    assert there[0] == records, f"input {number}: other examples"
    assert not sealed or there[1] == names, f"input {number}: other names"
  return "same"


@pytest.mark.slow
def test_damage_is_refused_or_changes_nothing(tmp_path):
  sets = tmp_path / "sets" / "others" / "1.0.0"
  sets.mkdir(parents=True)
  # Noise that no shard can store smaller, of other sizes: without a manifest
  # that tells the splits apart.
  rng = np.random.default_rng(0)
  examples = {
    name: [(rng.bytes(int(rng.integers(5000, 30000))), i) for i in range(size)]
    for name, size in _SIZES.items()
  }
  shipped.write(sets, "others", [f"class {i}" for i in range(10)], 8, examples)
  right = _read(tmp_path / "sets")
  counts = collections.Counter(
    _one(i, sets, tmp_path / "work", right) for i in range(_INPUTS)
  )
  print(dict(counts))
  assert counts["refused"] > 0.5 * _INPUTS and counts["same"] > 0.01 * _INPUTS
