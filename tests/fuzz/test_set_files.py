"""The files of a prepared data set, as every run opens them.

Of a set with a manifest, whatever happens to one of its files, the examples and
the names of their classes are the same or the damage is told. Of one without,
names and features can't be held against anything, but the examples can. Of
records that were forged before they were stored, nothing but a sentence may
come. The shards are read by C++: a process of its own opens the sets, and its
end is a failure like any other. It has `_MEMORY` bytes of address space more
than it begins with, and `_SECONDS` for an input.
"""

import collections
import multiprocessing
import os
import pathlib
import resource
import shutil
import traceback

import numpy as np
import pytest
from array_record.python import array_record_module

from mixer.datasets import split as split_lib
from mixer.datasets import stored
from mixer.errors import UserError
from tests.datasets import tfrecords
from tests.fuzz import mutations

_INPUTS = int(os.environ.get("FUZZ_INPUTS", "10000"))
_MEMORY, _SECONDS = 2**30, 60
_COUNTS = {"train": (11, 9), "test": (8,)}


def _make(folder: pathlib.Path) -> None:
  """A set with a manifest, of noise that no shard can store smaller."""
  made = tfrecords.make(folder.parent / "old", shards=_COUNTS["train"], test=8)
  folder.mkdir(parents=True)
  for path in made.iterdir():
    if "tfrecord" not in path.name:
      shutil.copyfile(path, folder / path.name)
  info = folder / stored.INFO
  text = info.read_text("utf-8")
  info.write_text(text.replace('"tfrecord"', '"array_record"'), "utf-8")
  rng = np.random.default_rng(0)
  found = stored.read(folder)
  for split, lengths in found.splits.items():
    for path, count in zip(
      found.files(split, "array_record"), lengths, strict=True
    ):
      writer = array_record_module.ArrayRecordWriter(
        str(path), "group_size:1,uncompressed"
      )
      for _ in range(count):
        image = rng.bytes(int(rng.integers(5000, 30000)))
        writer.write(tfrecords.example(image, int(rng.integers(10))))
      writer.close()
  stored.seal(folder)


def _read(root: pathlib.Path):
  """Examples and class names of both splits."""
  found = {}
  for split in _COUNTS:
    part = split_lib.open_split("others", split, str(root))
    found[split] = part.read(range(len(part))), part.class_names
  return found


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
  folder = work / "others" / "2.1.0"
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
    return "told"
  if forged:
    return "forged"
  for split, (records, names) in right.items():
    assert found[split][0] == records, f"{path.name}: other examples"
    assert not sealed or found[split][1] == names, f"{path.name}: other names"
  return "same"


def _serve(connection, sets: pathlib.Path, work: pathlib.Path) -> None:
  """Goes through the inputs from a given one on, and tells what came of it."""
  start = connection.recv()
  shutil.copytree(sets, work / "others" / "2.1.0", dirs_exist_ok=True)
  right = _read(work)
  _, most = resource.getrlimit(resource.RLIMIT_AS)
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  limit = pages * resource.getpagesize() + _MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (limit, most))
  for number in range(start, _INPUTS):
    try:
      what = _one(number, sets, work, right)
    except BaseException:
      what = traceback.format_exc()
    connection.send((number, what))


@pytest.mark.slow
def test_damage_is_told_or_changes_nothing(tmp_path):
  sets = tmp_path / "sets" / "others" / "2.1.0"
  _make(sets)
  context = multiprocessing.get_context("spawn")
  counts, wrong = collections.Counter(), {}
  number = 0
  while number < _INPUTS and len(wrong) < 20:
    here, there = context.Pipe()
    process = context.Process(
      target=_serve, args=(there, sets, tmp_path / "work"), daemon=True
    )
    process.start()
    there.close()
    here.send(number)
    try:
      while number < _INPUTS:
        if not here.poll(_SECONDS):
          wrong[number] = f"has not ended after {_SECONDS} s"
          break
        number, what = here.recv()
        counts[what if len(what) < 30 else "wrong"] += 1
        if len(what) >= 30:
          wrong[number] = what
        number += 1
    except EOFError:
      process.join()
      wrong[number] = f"ended the process: {process.exitcode}"
    number += number in wrong
    process.kill()
    process.join()
    here.close()
  for i, what in wrong.items():
    print(f"input {i}: {what}")
  print(dict(counts))
  assert not wrong
  assert counts["told"] > 0.5 * _INPUTS and counts["same"] > 0.01 * _INPUTS
