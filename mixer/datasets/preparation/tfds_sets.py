"""Prepares what TFDS has a builder for, by that builder, as ArrayRecord."""

import contextlib
import importlib
import io
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

from mixer.datasets import catalog, locate, stored
from mixer.datasets.preparation import tfds_errors
from mixer.errors import UserError


def check(
  name: str, root: pathlib.Path, source: pathlib.Path | None = None
) -> None:
  """Refuses what can't be prepared, before anything happens.

  Args:
    name: with config and version, if any.
    root: where data sets lie.
    source: a folder with what was fetched by hand.

  Raises:
    UserError: no such set; packages or files are missing.
  """
  base = catalog.base_name(name)
  if not catalog.known(name):
    raise UserError(
      f"There is no data set {name!r}. {catalog.how_to(name)} "
      "`python -m mixer prepare --list` lists the sets with hints."
    )
  entry = catalog.ENTRIES.get(base, catalog.Entry(base, "", needs=()))
  lacking = catalog.missing(entry.needs)
  if lacking:
    raise UserError(
      f"TFDS's builder of {base} needs {catalog.requirement(lacking)}; then "
      "give the same command again."
      + (
        f" Without it: {catalog.how_to(name)}"
        if base in catalog.ALSO_TFDS
        else ""
      )
    )
  _check_files(entry, _manual(root, source), given=source is not None)


def _manual(root: pathlib.Path, source: pathlib.Path | None) -> pathlib.Path:
  return source or root / "downloads" / "manual"


def prepare(
  name: str,
  root: pathlib.Path,
  source: pathlib.Path | None = None,
  bars: bool = False,
) -> None:
  """Prepares a set; the caller holds its lock.

  Downloads stay in `root/downloads`, so that the next start goes on with them;
  what was unpacked of them goes when the set is prepared.

  Args:
    name: with config and version, if any.
    root: where data sets lie.
    source: a folder with what was fetched by hand; files that TFDS would
      download are taken from there, too, if they have their names.
    bars: whether TFDS shows its progress.

  Raises:
    UserError: everything that the user can mend.
  """
  base = catalog.base_name(name)
  entry = catalog.ENTRIES.get(base, catalog.Entry(base, "", needs=()))
  manual = _manual(root, source)
  # It works on the host alone, and TensorFlow takes all of a GPU's memory.
  os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
  if not catalog.missing(["tensorflow"]):
    _load_tensorflow()
  with tfds_errors.explained(base, manual):
    builder = _builder(name, root)
    here = pathlib.Path(builder.data_dir)
    unpacked = root / "downloads" / "extracted" / base
    _clear(here, root / "downloads" / base, unpacked)
    _check_room(builder, root, manual, entry)
    _run(builder, manual, unpacked, bars)
    stored.seal(here)
    shutil.rmtree(unpacked, ignore_errors=True)


def _load_tensorflow() -> None:
  """Imports it without what its C++ code says of GPUs and of oneDNN."""
  # That comes before its settings are heard, once ArrayRecord is loaded.
  sys.stderr.flush()
  stderr = os.dup(2)
  try:
    with open(os.devnull, "w") as nowhere:
      os.dup2(nowhere.fileno(), 2)
      importlib.import_module("tensorflow")
  except ImportError as e:
    raise UserError(
      f"TensorFlow is installed, but can't be loaded: {tfds_errors.line(e)}. "
      f"Install it anew: {catalog.TENSORFLOW}."
    ) from e
  finally:
    os.dup2(stderr, 2)
    os.close(stderr)


def _check_files(
  entry: catalog.Entry, folder: pathlib.Path, given: bool
) -> None:
  """What has to be fetched by hand is there."""
  absent = [f for f in entry.files if not (folder / f).exists()]
  if absent:
    there = f"{folder} has no {' and no '.join(absent)}"
    if not given:
      there = f"{entry.name} isn't downloaded by TFDS, and {there}"
    raise UserError(
      f"{there}. Name with --source=PATH {entry.by_hand} (from {entry.where})."
    )
  if given and not folder.is_dir():
    raise UserError(
      f"--source={folder} is no folder; name the one with the files that were "
      "fetched by hand."
    )


def _builder(name: str, root: pathlib.Path) -> Any:
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import registered

  base, config, version = locate.split_name(name)
  make: Any = registered.imported_builder_cls(base)
  kwargs = {"config": config} if config else {}
  if config and config not in make.builder_configs:
    known = ", ".join(f"{base}/{c}" for c in make.builder_configs)
    raise UserError(
      f"Data set {base} has no config {config!r}"
      + (f"; it has {known}." if known else "; leave it out.")
    )
  try:
    # It would look for the set in TFDS's bucket, and leave a folder behind.
    with mock.patch.object(tfds.core.DatasetInfo, "initialize_from_bucket"):
      return make(
        data_dir=str(root),
        file_format="array_record",
        version=version or None,
        **kwargs,
      )
  except (AssertionError, ValueError) as e:
    raise UserError(
      f"Data set {name} can't be prepared in {root}: {tfds_errors.line(e)}. "
      "Leave the version out, or choose another place with --data_dir=DIR."
    ) from e


def _clear(
  here: pathlib.Path, downloads: pathlib.Path, unpacked: pathlib.Path
) -> None:
  """Takes away what a preparation left that was killed."""
  if here.exists():
    # TFDS would take it as it is, and fail when reading.
    raise UserError(
      f"The folder {here} is there, but is no whole data set that TFDS 4 can "
      "read; remove it and give the same command again."
    )
  half = f"{locate.UNFINISHED}*"
  for path in (*here.parent.glob(half), *unpacked.glob(half)):
    shutil.rmtree(path, ignore_errors=True)
  for path in downloads.glob("*.tmp.*"):
    shutil.rmtree(path, ignore_errors=True)


def _check_room(
  builder: Any,
  root: pathlib.Path,
  manual: pathlib.Path,
  entry: catalog.Entry,
) -> None:
  """Refuses at once what would fill the disk after hours."""
  done = root / "downloads" / entry.name
  fetched = sum(p.stat().st_size for p in done.glob("*") if p.is_file())
  by_hand = [p for p in (manual / f for f in entry.files) if p.is_file()]
  content = sum(p.stat().st_size for p in by_hand) + entry.downloads
  # The archives, their content, and the records twice, as TFDS sorts them on
  # disk. Where TFDS knows better, it says so itself.
  need = max(entry.downloads - fetched, 0) + 3 * content
  free = shutil.disk_usage(root).free
  if need > free:
    raise UserError(
      f"{root} has {free / 1e9:.1f} GB free, and preparing {builder.name} "
      f"takes up to {need / 1e9:.1f} GB there. Make room, or name another "
      "place with --data_dir=DIR."
    )


def _run(
  builder: Any, manual: pathlib.Path, unpacked: pathlib.Path, bars: bool
) -> None:
  import tensorflow_datasets as tfds

  if not bars:
    tfds.disable_progress_bar()
  config = tfds.download.DownloadConfig(
    manual_dir=manual if manual.is_dir() else None,
    extract_dir=unpacked,
    try_download_gcs=False,  # Those are TFRecord files.
  )
  # What it prints says less than we do; its bars go to stderr.
  quiet = contextlib.redirect_stdout(io.StringIO())
  with quiet, _told(builder, bars), tfds_errors.retries_told():
    builder.download_and_prepare(
      download_config=config, file_format="array_record"
    )


@contextlib.contextmanager
def _told(builder: Any, bars: bool) -> Iterator[None]:
  """A line a minute, where no bars are shown, about what lies on the disk."""
  ended = threading.Event()
  root, folder = pathlib.Path(builder.data_dir_root), builder.data_path.parent
  places = {
    "downloaded": root / "downloads" / builder.name,
    "unpacked": root / "downloads" / "extracted" / builder.name,
    "written": pathlib.Path(folder),
  }

  def tell() -> None:
    while not ended.wait(60):
      sizes = [f"{_size(p) / 1e9:.2f} GB {what}" for what, p in places.items()]
      print(f"{builder.name}: {', '.join(sizes)}", file=sys.stderr, flush=True)

  if not bars:
    threading.Thread(target=tell, daemon=True).start()
  try:
    yield
  finally:
    ended.set()


def _size(folder: pathlib.Path) -> int:
  total = 0
  for path in folder.rglob("*"):
    with contextlib.suppress(OSError):  # It may just have been renamed.
      total += path.stat().st_size if path.is_file() else 0
  return total
