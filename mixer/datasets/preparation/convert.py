"""Turns a data set's TFRecord files into ArrayRecord files, record by record.

TFDS's own `convert_format` does the same, but needs TensorFlow and Apache Beam,
and goes on after an error. Records are copied unchanged.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from mixer.datasets import stored as stored_lib
from mixer.datasets.locate import UNFINISHED
from mixer.datasets.preparation import tfrecord
from mixer.errors import UserError

Progress = Callable[[int, int], None]  # Told records done, and in all.


@dataclasses.dataclass(frozen=True)
class _Shard:
  source: pathlib.Path
  target: pathlib.Path
  records: int


def convert(
  folder: pathlib.Path,
  data_dir: pathlib.Path,
  progress: Progress = lambda done, total: None,
) -> pathlib.Path:
  """Gives a TFRecord data set ArrayRecord files.

  A set that lies in `data_dir` already, where it belongs, gets them beside its
  TFRecord files, and names both formats then, as TFDS's own converter has it.
  Any other is written to its place in `data_dir`; the old folder isn't
  touched. Started again after a kill it goes on with the first file that isn't
  whole. The caller holds the lock.

  Args:
    folder: of the version.
    data_dir: where data sets lie.
    progress: told the records done and those in all.

  Returns:
    The folder that has the ArrayRecord files.

  Raises:
    UserError: something is in the way, missing or damaged; no room.
  """
  folder = folder.resolve()
  stored = stored_lib.read(folder)
  if stored.formats[0] != "tfrecord":
    raise UserError(
      f"{folder} is stored as {stored.formats[0]}; only tfrecord is converted."
    )
  final = data_dir.resolve() / stored.path
  beside = final.resolve() == folder  # Through links, too.
  if final.exists() and not beside:
    raise UserError(
      f"{final} is there already; remove it, or name another place with "
      "--data_dir=DIR."
    )
  work = (
    final if beside else final.with_name(f"{UNFINISHED}TFRECORD_{final.name}")
  )
  try:
    work.mkdir(parents=True, exist_ok=True)
    _check(stored, work)
    _records(stored, work, progress)
    _finish(stored, work, final)
  except OSError as e:
    hint = "Make room there" if beside else "Make room there, or go elsewhere"
    raise UserError(
      f"{e.filename or work} can't be written or read: {e.strerror or e}. "
      f"{hint}: --source={folder} --data_dir=DIR."
    ) from e
  return final


def _shards(stored: stored_lib.Stored, work: pathlib.Path) -> list[_Shard]:
  return [
    _Shard(*shard)
    for split, lengths in stored.splits.items()
    for shard in zip(
      stored.files(split, "tfrecord"),
      stored.files(split, "array_record", work),
      lengths,
      strict=True,
    )
  ]


def _check(stored: stored_lib.Stored, work: pathlib.Path) -> None:
  """All files are there, and there is room for the new ones."""
  shards = _shards(stored, work)
  missing = [s.source.name for s in shards if not s.source.exists()]
  if missing:
    raise UserError(
      f"{stored.folder}: {len(missing)} of {len(shards)} files are missing, "
      f"the first is {missing[0]}. Fetch them, or prepare the data set anew."
    )
  # Some bytes a record more than TFRecord takes, and whole blocks of 64 KiB.
  todo = [s for s in shards if not s.target.exists()]
  need = sum(s.source.stat().st_size + 64 * s.records + 2**17 for s in todo)
  free = shutil.disk_usage(work).free
  if need > free:
    raise UserError(
      f"{work} needs {need / 1e9:.1f} GB for the ArrayRecord files and "
      f"{free / 1e9:.1f} GB are free. Make room, or write elsewhere with "
      f"--source={stored.folder} --data_dir=DIR."
    )


def _records(
  stored: stored_lib.Stored, work: pathlib.Path, progress: Progress
) -> None:
  """Writes the files that aren't there yet."""
  shards = _shards(stored, work)
  total, done = sum(s.records for s in shards), 0
  for shard in shards:
    if not shard.target.exists():  # It got its name when it was whole.
      _convert_file(shard, lambda n, before=done: progress(before + n, total))
    done += shard.records
    progress(done, total)


def _convert_file(shard: _Shard, progress: Callable[[int], None]) -> None:

  # TFDS takes files of that prefix away after preparing anything here.
  half = shard.target.with_name(UNFINISHED + shard.target.name)
  # One record a group is TFDS's choice too. The images are compressed already:
  # doing it again gains nothing and takes four times as long.
  writer = array_record_module.ArrayRecordWriter(
    str(half), "group_size:1,uncompressed"
  )
  count = 0
  try:
    for record in tfrecord.read(shard.source):
      writer.write(record)
      count += 1
      if count % 256 == 0:
        progress(count)
  finally:
    writer.close()
  if count != shard.records:
    half.unlink()
    raise UserError(
      f"{shard.source} has {count} records, and dataset_info.json says "
      f"{shard.records}. Fetch or prepare the data set anew."
    )
  with half.open("rb") as f:
    os.fsync(f.fileno())
  half.rename(shard.target)


def _finish(
  stored: stored_lib.Stored, work: pathlib.Path, final: pathlib.Path
) -> None:
  """Makes it a data set, in one step that can't be half done."""
  info = stored_lib.read_info(stored.folder / stored_lib.INFO)
  if work == final:
    others = [f for f in stored.formats[1:] if f != "array_record"]
    info["alternativeFileFormats"] = [*others, "array_record"]
  else:
    info["fileFormat"] = "array_record"
    info.pop("alternativeFileFormats", None)
    records = {
      path.name
      for kind in stored.formats
      for split in stored.splits
      for path in stored.files(split, kind)
    }
    for path in stored.folder.iterdir():  # Features, names of the labels, ...
      if path.is_file() and path.name not in records:
        shutil.copyfile(path, work / path.name)
  half = work / f"{UNFINISHED}dataset_info.json"
  half.write_text(json.dumps(info, indent=2) + "\n", "utf-8")
  half.rename(work / stored_lib.INFO)
  stored_lib.seal(work)
  if work != final:
    work.rename(final)
