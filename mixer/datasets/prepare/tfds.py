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
from collections.abc import Iterator, Sequence
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


def check(name: str, manual: pathlib.Path) -> None:
  """Refuses what TFDS can't prepare, before anything happens.

  `manual` is the folder with what was fetched by hand.
  """
  base = catalog.base_name(name)
  if not catalog.known(name):
    raise UserError(
      f"There is no data set {name!r}. {catalog.how_to(name)} "
      "`python -m mixer prepare --list` lists the sets with hints."
    )
  entry = catalog.ENTRIES.get(base, catalog.Entry(""))
  if lacking := catalog.missing(base):
    raise UserError(
      _needs(base, lacking)
      + f" Without it: {catalog.how_to(name)}" * (base in catalog.ALSO_TFDS)
    )
  if absent := [f for f in entry.files if not (manual / f).exists()]:
    raise UserError(
      f"{base} isn't downloaded by TFDS, and {manual} has no "
      f"{' and no '.join(absent)}. Name with --source=PATH {entry.by_hand} "
      f"(from {entry.where})."
    )


def _needs(base: str, modules: Sequence[str]) -> str:
  return (
    f"TFDS's builder of {base} needs {catalog.requirement(modules)}; then give "
    "the same command again."
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
  """Sentences in place of what TFDS raises, but for defects of its code."""
  from tensorflow_datasets.core.download import download_manager, extractor
  from tensorflow_datasets.core.download import util as download_util

  # Of the disk, the network, files that aren't what the builder expects.
  kinds = (
    *(OSError, AssertionError, ValueError, extractor.ExtractError),
    *(download_manager.NonMatchingChecksumError, download_util.DownloadError),
  )
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
      raise UserError(_needs(base, [str(lacking[-1]).split(".")[0]])) from e
    if not (causes := [cause for cause in chain if isinstance(cause, kinds)]):
      raise
    why = " ".join(str(causes[0]).split()).rstrip(".")[:600]
    raise UserError(
      f"{base} can't be prepared by TFDS: {why}. Mend that and give the same "
      "command again: what was fetched is kept. What you fetch by other means, "
      f"since a site is down or has changed a file, is taken from {manual}, or "
      "from another folder that --source=DIR names."
    ) from e


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
  work = final = (data_dir / old.path).resolve()  # Through links, too.
  if final != folder:
    work = final.with_name(f"{stored.UNFINISHED}TFRECORD_{final.name}")
  if old.formats[0] != "tfrecord" or (work != final and final.exists()):
    raise UserError(
      f"{folder}, stored as {old.formats[0]}, can't be converted to {final}: "
      "it has to be tfrecord, and nothing there already. Name another place "
      "with --data_dir=DIR."
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
  with contextlib.closing(writer):
    count = 0
    for record in read_tfrecord(source):
      writer.write(record)
      count += 1
  if count != records:
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
