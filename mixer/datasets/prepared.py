"""Opens prepared data sets; prepares the shipped ones on first use."""

import contextlib
import dataclasses
import fcntl
import importlib
import io
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

from array_record.python import array_record_data_source

from mixer.datasets import (
  catalog,
  expression,
  locate,
  records,
  stored,
  vtab,
)
from mixer.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Piece:
  """A part of a shard, as `ArrayRecordDataSource` takes it."""

  filename: str
  skip: int
  take: int
  examples_in_shard: int


def open_source(
  name: str, split: str, data_dir: str
) -> tuple[Any, tuple[str, ...], dict[str, Any]]:
  """Random access to the encoded records of a split.

  Args:
    name: of a TFDS data set, with `/config` and `:version` where it has any;
      or of a task of VTAB-1k, "vtab/...".
    split: TFDS split expression; of a task, one of `vtab.SPLITS`.
    data_dir: where data sets lie, "" for TFDS's default.

  Returns:
    A sequence of `{"image": bytes, "label": int}`, the class names, and the
    data set's identity, JSON: what tells it from any other. Where several
    classes may be right, `label` is the one that was given first, and
    `valid_labels` a frozenset of the right ones.

  Raises:
    UserError: not prepared, damaged, not readable by index, not for
      classification, or without such a split.
  """
  found, task, root = _open(name, data_dir)
  parse, label = _reading(name, task, found, root)
  wanted = task.expression(split, found.sizes) if task else split
  try:
    parts = expression.parts(wanted, found.splits)
  except ValueError as e:
    why = f" ({e})" if {*"[+"} & {*split} else ""
    raise UserError(
      f"data set {name} has no split {split!r}; it has "
      + ", ".join(f"{k} ({v:,} examples)" for k, v in found.sizes.items())
      + f', or parts of these as in "train[:98%]"{why}.'
    ) from e
  found.check({part[0] for part in parts})
  pieces = _pieces(found, parts)
  if not pieces:
    raise UserError(
      f"data set {name}, split {split} is empty; choose another split."
    )
  take: Any = array_record_data_source.ArrayRecordDataSource
  raw = take(pieces)
  names = (task.names if task else ()) or found.class_names(label)
  identity = {
    "class_names": _summary(names),
    "examples": found.sizes,
    "fingerprint": found.fingerprint,
  }
  return records.Records(raw, parse), names, identity


def _pieces(
  found: stored.Stored, parts: Sequence[expression.Part]
) -> list[_Piece]:
  pieces = []
  for name, start, stop in parts:
    files = found.files(name, "array_record")
    before = 0
    for path, count in zip(files, found.splits[name], strict=True):
      skip = max(start - before, 0)
      take = min(stop - before, count) - skip
      if take > 0:
        pieces.append(_Piece(str(path), skip, take, count))
      before += count
  return pieces


def _summary(names: Sequence[str]) -> str:
  """Class names in a line that differs where they do."""
  if len(names) <= 6:
    return ", ".join(names)
  return (
    f"{len(names):,} names, {names[0]} to {names[-1]} "
    f"({stored.digest(names)[:12]})"
  )


def evaluation_split(name: str, data_dir: str) -> str:
  """The split of a set that a model is evaluated on: `test`, or `validation`.

  Raises:
    UserError: not prepared, or it has neither.
  """
  there, task, _ = _open(name, data_dir)
  sizes = there.sizes
  found = [s for s in ("test", "validation") if task or sizes.get(s)]
  if not found:
    raise UserError(
      f"data set {name} has neither a split `test` nor `validation` to "
      f"evaluate on, but {', '.join(sizes)}; hold a part out, as in "
      '--config.data.train_split="train[:90%]" '
      '--config.data.eval_split="train[90%:]".'
    )
  return found[0]


def _open(
  name: str, data_dir: str
) -> tuple[stored.Stored, vtab.Task | None, pathlib.Path]:
  """A set that is stored, the VTAB task that it is opened for, and its root."""
  root = locate.resolve_data_dir(data_dir)
  task = vtab.find(name) if name.startswith(vtab.PREFIX) else None
  base = task.data_set if task else name
  if base in catalog.SHIPPED:
    folder = shipped(base, root)
  else:
    try:
      folder = locate.find(base, root, data_dir)
    except UserError as e:
      if not task:
        raise
      raise UserError(f"{name} is made of {base}: {e}") from e
  found = stored.read(folder)
  if "array_record" not in found.formats:
    raise locate.not_by_index(found, base, data_dir)
  return found, task, root


def _reading(
  name: str, task: vtab.Task | None, found: stored.Stored, root: pathlib.Path
) -> tuple[records.Parse, str]:
  """How its records are read, and the feature that has the class names.

  Raises:
    UserError: it isn't for classification.
  """
  has = found.features.keys()
  if task and task.label:
    lacking = [f for f in task.features if f.split("/")[0] not in has]
    if lacking or "image" not in has:
      raise UserError(
        f"data set {task.data_set} in {root} has no {lacking or 'image'}, "
        f"which {name} needs; prepare it anew, by TFDS's builder."
      )
    return records.Derived(task.record), task.features[0]
  if {"image", "label"} <= has:
    return records.plain, "label"
  if {"image", "original_label", "real_label"} <= has:
    return records.real, "original_label"
  # Sets that have other labels than one an image.
  tasks = vtab.tasks_of(name)
  raise UserError(
    f"data set {name} in {root} has no features `image` and `label`; name "
    + (f"{' or '.join(tasks)}, or " if tasks else "")
    + "one for image classification in data.name."
  )


def shipped(name: str, root: pathlib.Path) -> pathlib.Path:
  """The folder of a shipped data set, prepared if it wasn't."""
  module, class_name, version = catalog.SHIPPED[name]
  folder = root / name / version
  info = folder / stored.INFO
  if not info.exists():
    make = getattr(importlib.import_module(module), class_name)
    try:
      root.mkdir(parents=True, exist_ok=True)
      # One process of this machine prepares, others wait; the lock goes with
      # the process, however that ends.
      with open(root / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not info.exists():
          _prepare(make, folder, root)
    except (OSError, RuntimeError) as e:  # The latter from ArrayRecord.
      # Another host that shares the folder may have been faster.
      if not info.exists():
        raise UserError(
          f"data set {name} can't be prepared in {root}: "
          f"{str(e).splitlines()[0]}. "
          "Make room there or name another place with "
          "--config.data.data_dir=DIR."
        ) from e
  if "array_record" not in stored.read(folder).formats:  # By other means.
    raise UserError(
      f"data set {name} in {root} can't be used: it is stored as "
      f"{stored.read(folder).formats[0]}. Remove {root / name}: it is then "
      "prepared anew."
    )
  return folder


def _prepare(make: Any, folder: pathlib.Path, root: pathlib.Path) -> None:
  import tensorflow_datasets as tfds

  name = folder.parent.name
  if folder.exists():
    # TFDS would take it as it is, and fail when reading.
    raise UserError(
      f"data set {name}: the folder {folder} is there, but has no "
      "dataset_info.json, so it is not whole; remove it and start again."
    )
  for leftover in folder.parent.glob("incomplete.*"):
    # Of a run that was killed; younger ones may be another host's work.
    if time.time() - leftover.stat().st_mtime > 3600:
      shutil.rmtree(leftover, ignore_errors=True)
  print(f"preparing data set {name} in {root} (once)", flush=True)
  # Its own lines and bars say less than the builders' single bar.
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    make(data_dir=str(root), file_format="array_record").download_and_prepare(
      file_format="array_record"
    )
  stored.seal(folder)
