"""Data sets that TFDS prepares, and those that it has written as TFRecord."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import shutil
import struct
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import google_crc32c
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from mixer import files
from mixer.datasets import catalog, stored
from mixer.datasets.prepare import build
from mixer.errors import UserError
from mixer.progress import Progress

_HEADER = struct.Struct("<QI")


def check(name: str, manual: pathlib.Path, given: bool) -> None:
  """Refuses what TFDS can't prepare, before anything happens.

  Args:
    name: with config and version, if any.
    manual: the folder with what was fetched by hand.
    given: the user has named it.
  """
  base = catalog.base_name(name)
  if not catalog.known(name):
    raise UserError(
      f"There is no data set {name!r}. {catalog.how_to(name)} "
      "`python -m mixer prepare --list` lists the sets with hints."
    )
  entry = catalog.ENTRIES.get(base, catalog.Entry(""))
  if lacking := catalog.missing(base):
    also = base in catalog.ALSO_TFDS
    raise UserError(
      f"TFDS's builder of {base} needs {catalog.requirement(lacking)}; then "
      "give the same command again."
      + (f" Without it: {catalog.how_to(name)}" if also else "")
    )
  if absent := [f for f in entry.files if not (manual / f).exists()]:
    raise UserError(
      f"{base} isn't downloaded by TFDS, and {manual} has no "
      f"{' and no '.join(absent)}. Name with --source=PATH {entry.by_hand} "
      f"(from {entry.where})."
    )
  if given and not manual.is_dir():
    raise UserError(
      f"--source={manual} is no folder; name the one with the files that were "
      "fetched by hand."
    )


def prepare(name: str, root: pathlib.Path, manual: pathlib.Path) -> None:
  """Prepares a set by TFDS's builder; the caller holds its lock.

  Downloads stay in `root/downloads`, so that the next start goes on with them.
  What TFDS would download is taken from `manual` if it is there by its name.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import registered

  base, config, version = catalog.split_name(name)
  entry = catalog.ENTRIES.get(base, catalog.Entry(""))
  # It works on the host alone, and TensorFlow takes all of a GPU's memory.
  os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
  with _explained(base, manual):
    if importlib.util.find_spec("tensorflow"):
      importlib.import_module("tensorflow")
    make: Any = registered.imported_builder_cls(base)
    options = {"version": version or None, "file_format": "array_record"}
    options |= {"config": config} if config else {}
    # It would look for the set in TFDS's bucket, and leave a folder behind.
    with mock.patch.object(tfds.core.DatasetInfo, "initialize_from_bucket"):
      builder = make(data_dir=str(root), **options)
    here = pathlib.Path(builder.data_dir)
    unpacked = root / "downloads" / "extracted" / base
    if here.exists():  # TFDS would take it as it is, and fail when reading.
      raise UserError(
        f"The folder {here} is there, but is no whole data set that TFDS 4 can "
        "read; remove it and give the same command again."
      )
    # Of a preparation that was killed.
    left = [*here.parent.glob(f"{stored.UNFINISHED}*")]
    left += unpacked.glob(f"{stored.UNFINISHED}*")
    left += (root / "downloads" / base).glob("*.tmp.*")
    for path in left:
      shutil.rmtree(path, ignore_errors=True)
    fetched = [path for f in entry.files if (path := manual / f).is_file()]
    # The archives, their content, and the records twice, as TFDS sorts them on
    # disk. Where TFDS knows better, it says so itself.
    by_hand = 3 * sum(path.stat().st_size for path in fetched)
    build.check_room(root, 4 * entry.downloads + by_hand)
    if not sys.stderr.isatty():
      tfds.disable_progress_bar()
    downloads = tfds.download.DownloadConfig(
      manual_dir=manual if manual.is_dir() else None,
      extract_dir=unpacked,
      try_download_gcs=False,  # Those are TFRecord files.
    )
    # What it prints says less than we do; its bars go to stderr.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(
        download_config=downloads, file_format="array_record"
      )
    stored.seal(here)
    shutil.rmtree(unpacked, ignore_errors=True)


@contextlib.contextmanager
def _explained(base: str, manual: pathlib.Path) -> Iterator[None]:
  """Sentences in place of what TFDS raises."""
  import requests
  from tensorflow_datasets.core.download import download_manager, extractor
  from tensorflow_datasets.core.download import util as download_util

  advice: list[tuple[tuple[type[BaseException], ...], str]] = [
    (
      (download_manager.NonMatchingChecksumError,),
      "The copy is damaged, or the site has changed the file. Fetch it anew; "
      "if it stays so, a newer TFDS may know the new one",
    ),
    (
      (download_util.DownloadError, requests.exceptions.RequestException),
      "What was fetched before is kept: give the same command again when the "
      "site can be reached. Or fetch the file by other means, and name its "
      "folder with --source=DIR",
    ),
    ((OSError,), "Mend that, or name another place with --data_dir=DIR"),
    (
      (AssertionError, ValueError, extractor.ExtractError),
      f"What was fetched by hand is looked for in {manual}; --source=DIR names "
      "another folder",
    ),
  ]
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    chain: list[BaseException] = [e]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
      chain.append(cause)
    # TFDS wraps those in others that don't name the module.
    if lacking := [c.name for c in chain if isinstance(c, ImportError)]:
      needed = catalog.requirement([str(lacking[-1]).split(".")[0]])
      raise UserError(
        f"TFDS's builder of {base} needs {needed}; then give the same command "
        "again."
      ) from e
    for kinds, then in advice:
      for cause in chain:
        if isinstance(cause, kinds):
          why = " ".join(str(cause).split()).rstrip(".")[:600]
          raise UserError(
            f"{base} can't be prepared by TFDS: {why}. {then}."
          ) from e
    raise


def convert(
  folder: pathlib.Path, data_dir: pathlib.Path, progress: Progress
) -> pathlib.Path:
  """Gives a TFRecord data set ArrayRecord files, record by record.

  TFDS's own converter needs TensorFlow and Apache Beam, and goes on after an
  error. A set that is in its place in `data_dir` gets the new files beside its
  own, and names both formats then. Any other is written to its place; the old
  folder isn't touched. Started again after a kill it goes on with the first
  file that isn't whole. The caller holds the lock.

  Args:
    folder: of the version.
    data_dir: where data sets are.
    progress: shows records.

  Returns:
    The folder that has the ArrayRecord files.
  """
  folder = folder.resolve()
  old = stored.read(folder)
  if old.formats[0] != "tfrecord":
    raise UserError(
      f"{folder} is stored as {old.formats[0]}; only tfrecord is converted."
    )
  work = final = (data_dir / old.path).resolve()  # Through links, too.
  if final != folder:
    work = final.with_name(f"{stored.UNFINISHED}TFRECORD_{final.name}")
    if final.exists():
      raise UserError(
        f"{final} is there already; remove it, or name another place with "
        "--data_dir=DIR."
      )
  shards = [
    shard
    for split, lengths in old.splits.items()
    for shard in zip(
      old.files(split, "tfrecord"),
      old.files(split, "array_record", work),
      lengths,
      strict=True,
    )
  ]
  if missing := [source.name for source, *_ in shards if not source.exists()]:
    raise UserError(
      f"{folder}: {len(missing)} of {len(shards)} files are missing, the first "
      f"is {missing[0]}. Fetch them, or prepare the data set anew."
    )
  with build.disk(work):
    work.mkdir(parents=True, exist_ok=True)
    # Some bytes a record more than TFRecord takes, and whole blocks of 64 KiB.
    todo = [s for s in shards if not s[1].exists()]
    need = sum(s[0].stat().st_size + 64 * s[2] + 2**17 for s in todo)
    build.check_room(work, need)
    done, total = 0, sum(records for *_, records in shards)
    for source, path, records in shards:
      if not path.exists():  # It gets its name when it is whole.
        _convert(source, path, records)
      done += records
      progress.show(old.name, done, total, done)
    info = stored.read_json(folder / stored.INFO)
    if work == final:
      others = [f for f in old.formats[1:] if f != "array_record"]
      info["alternativeFileFormats"] = [*others, "array_record"]
    else:
      info["fileFormat"] = "array_record"
      info.pop("alternativeFileFormats", None)
      for path in folder.iterdir():  # Features, names of the labels, ...
        if path.is_file() and ".tfrecord" not in path.name:
          shutil.copyfile(path, work / path.name)
    # One step that can't be half done.
    with files.atomic_write(work / stored.INFO, "w") as f:
      json.dump(info, f, indent=2)
    stored.seal(work)
    if work != final:
      work.rename(final)
  return final


def _convert(source: pathlib.Path, target: pathlib.Path, records: int) -> None:
  # TFDS takes files of that prefix away after preparing anything here.
  half = target.with_name(stored.UNFINISHED + target.name)
  writer = array_record_module.ArrayRecordWriter(str(half), build.WRITER)
  count = 0
  try:
    for record in read_tfrecord(source):
      writer.write(record)
      count += 1
  finally:
    writer.close()
  if count != records:
    half.unlink()
    raise UserError(
      f"{source} has {count} records, and dataset_info.json says {records}. "
      "Fetch or prepare the data set anew."
    )
  build.sync(half)
  half.rename(target)


def read_tfrecord(path: pathlib.Path) -> Iterator[bytes]:
  """The records of a TFRecord file, in their order.

  A record is its length (8 bytes, little-endian), the masked CRC-32C of those
  bytes (4), the data, and the data's masked CRC-32C (4).
  """
  with path.open("rb", buffering=2**20) as f:
    left, number = os.fstat(f.fileno()).st_size, 0
    while left:
      header = f.read(_HEADER.size)
      whole = len(header) == _HEADER.size
      length, crc = _HEADER.unpack(header) if whole else (0, 0)
      left -= _HEADER.size + length + 4
      # Asked before reading: no memory for a length that can't be.
      data = f.read(length) if whole and left >= 0 else b""
      checks = crc, int.from_bytes(f.read(4), "little")
      if left < 0 or checks != (_masked(header[:8]), _masked(data)):
        raise UserError(
          f"{path} is damaged at record {number} (counted from 0): it is cut "
          "short, or has a wrong checksum. Fetch or prepare that file anew."
        )
      yield data
      number += 1


def _masked(data: bytes) -> int:
  """The CRC-32C of some bytes, as TFRecord stores it."""
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
