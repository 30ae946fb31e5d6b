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
from mixer.datasets.prepare import journal
from mixer.errors import UserError, first_line
from mixer.progress import Progress

_HEADER = struct.Struct("<QI")
_ANEW = "Fetch or prepare that file anew."


def check(name: str) -> None:
  """Refuses what TFDS can't prepare."""
  base = catalog.base_name(name)
  if not catalog.known(name):
    raise UserError(f"There is no data set {name!r}. {catalog.how_to(name)}")
  if lacking := catalog.missing(base):
    raise UserError(
      f"TFDS's builder of {base} needs {catalog.requirement(lacking)}."
      + f" Without it: {catalog.how_to(name)}" * (base in catalog.ALSO_TFDS)
    )


def prepare(
  name: str, root: pathlib.Path, manual: pathlib.Path
) -> pathlib.Path:
  """Prepares a set by TFDS's builder; the caller holds its lock.

  Downloads stay in `root/downloads`, so that the next start continues with
  them. What is in `manual` by its name isn't downloaded.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import registered

  base, config, version = catalog.split_name(name)
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
        f"{here} is no whole data set that TFDS 4 can read; move it"
      )
    # Of a preparation that was killed.
    left = [*here.parent.glob(f"{stored.UNFINISHED}*"), unpacked]
    for path in [*left, *(root / "downloads" / base).glob("*.tmp.*")]:
      shutil.rmtree(path, ignore_errors=True)
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
  return here


@contextlib.contextmanager
def _explained(base: str, manual: pathlib.Path) -> Iterator[None]:
  """A sentence in place of what TFDS and its builders raise."""
  try:
    yield
  except Exception as e:
    chain: list[BaseException] = [e]  # It wraps what tells the reason.
    while cause := chain[-1].__cause__ or chain[-1].__context__:
      chain.append(cause)
    lacking = [c.name for c in chain if isinstance(c, ImportError) and c.name]
    lines = [f"{type(c).__name__}: {first_line(c)[:300]}" for c in chain]
    why = "; ".join(dict.fromkeys(lines))
    if lacking:
      why = f"it needs {catalog.requirement([lacking[-1].split('.')[0]])}"
    raise UserError(
      f"{base} can't be prepared by TFDS: {why}. Mend that and give the same "
      "command again: what was fetched is kept. What you fetch by other means "
      f"is taken from {manual}, or from a folder that --source=DIR names."
    ) from e


def convert(
  folder: pathlib.Path, data_dir: pathlib.Path, progress: Progress
) -> pathlib.Path:
  """Gives a TFRecord data set ArrayRecord files; returns their folder.

  TFDS's own converter needs TensorFlow and Apache Beam, and goes on after an
  error. The new files go to the set's place in `data_dir`, which may be the
  folder itself; they count when dataset_info.json names them, in one step. The
  caller holds the lock.
  """
  folder = folder.resolve()
  old = stored.read(folder)
  final = (data_dir / old.path).resolve()  # Through links, too.
  is_there = final != folder and (final / stored.INFO).exists()
  if old.formats[0] != "tfrecord" or is_there:
    raise UserError(
      f"{folder}, stored as {old.formats[0]}, can't be converted to {final}: "
      "it has to be tfrecord, and no data set there already."
    )
  final.mkdir(parents=True, exist_ok=True)
  done = 0
  with journal.disk(final):
    for split, lengths in old.splits.items():
      new = old.files(split, "array_record", final)
      for path, target, records in zip(
        old.files(split, "tfrecord"), new, lengths, strict=True
      ):
        if not target.exists():  # It gets its name when it is whole.
          _convert(path, target, records)
        done += records
        progress.show(old.name, done, sum(old.sizes.values()), done)
    info = stored.read_json(folder / stored.INFO)
    formats = [f for f in old.formats[1:] if f != "array_record"]
    info["alternativeFileFormats"] = [*formats, "array_record"]
    if final != folder:
      info["fileFormat"] = "array_record"
      del info["alternativeFileFormats"]
      for path in folder.iterdir():  # Features, names of the labels, ...
        is_data = ".tfrecord" in path.name or path.name == stored.INFO
        if path.is_file() and not is_data:
          shutil.copyfile(path, final / path.name)
    with files.atomic_write(final / stored.INFO, "w") as f:
      json.dump(info, f, indent=2)
    stored.seal(final)
  return final


def _convert(source: pathlib.Path, target: pathlib.Path, records: int) -> None:
  # TFDS takes files of that prefix away after preparing anything here.
  half = target.with_name(stored.UNFINISHED + target.name)
  writer = array_record_module.ArrayRecordWriter(str(half), journal.WRITER)
  count = 0
  with contextlib.closing(writer):
    for record in read_tfrecord(source):
      writer.write(record)
      count += 1
  if count != records:
    raise UserError(f"{source} has {count} records, not {records}. {_ANEW}")
  journal.sync(half)
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
        what = f"record {number} (from 0) is cut off or has a wrong checksum"
        raise UserError(f"{path} is damaged: {what}. {_ANEW}")
      yield data
      number += 1


def _masked(data: bytes) -> int:
  """The CRC-32C of some bytes, as TFRecord stores it."""
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
