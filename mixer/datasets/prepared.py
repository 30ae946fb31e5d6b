"""Opens prepared TFDS data sets; prepares the shipped ones on first use."""

import contextlib
import fcntl
import importlib
import io
import pathlib
import shutil
import time
from typing import Any

from mixer.datasets import catalog, locate, records, vtab
from mixer.errors import UserError


def open_source(
  name: str, split: str, data_dir: str
) -> tuple[Any, tuple[str, ...]]:
  """Random access to the encoded records of a split.

  Args:
    name: of a TFDS data set, with `/config` and `:version` where it has any;
      or of a task of VTAB-1k, "vtab/...".
    split: TFDS split expression; of a task, one of `vtab.SPLITS`.
    data_dir: where data sets lie, "" for TFDS's default.

  Returns:
    A sequence of `{"image": bytes, "label": int}`, and the class names. Where
    several classes may be right, `label` is the one that was given first, and
    `valid_labels` a frozenset of the right ones.

  Raises:
    UserError: not prepared, not readable by index, not for classification, or
      without such a split.
  """
  # TFDS is imported late: tools that read no data start faster.
  import tensorflow_datasets as tfds

  builder, task, root = _open(name, data_dir)
  features = builder.info.features
  parse, label = _reading(name, task, features, root)
  sizes = {k: v.num_examples for k, v in builder.info.splits.items()}
  expression = task.expression(split, sizes) if task else split
  try:
    raw = builder.as_data_source(
      expression, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
  except NotImplementedError as e:
    folder = pathlib.Path(builder.data_dir)
    stored = task.data_set if task else name
    raise locate.not_by_index(folder, stored, data_dir) from e
  except (ValueError, KeyError) as e:
    raise UserError(
      f"data set {name} has no split {split!r}; it has "
      + ", ".join(f"{k} ({v:,} examples)" for k, v in sizes.items())
      + ', or parts of these as in "train[:98%]".'
    ) from e
  names = task.names if task else ()
  return records.Records(raw, parse), names or tuple(features[label].names)


def evaluation_split(name: str, data_dir: str) -> str:
  """The split of a set that a model is evaluated on: `test`, or `validation`.

  Raises:
    UserError: not prepared, or it has neither.
  """
  builder, task, _ = _open(name, data_dir)
  sizes = {k: v.num_examples for k, v in builder.info.splits.items()}
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
) -> tuple[Any, vtab.Task | None, pathlib.Path]:
  """A set's builder, the VTAB task that it is opened for, and its root."""
  root = locate.resolve_data_dir(data_dir)
  task = vtab.find(name) if name.startswith(vtab.PREFIX) else None
  stored = task.data_set if task else name
  if stored in catalog.SHIPPED:
    return shipped(stored, root), task, root
  try:
    return locate.open_builder(stored, root, data_dir), task, root
  except UserError as e:
    if not task:
      raise
    raise UserError(f"{name} is made of {stored}: {e}") from e


def _reading(
  name: str, task: vtab.Task | None, features: Any, root: pathlib.Path
) -> tuple[records.Parse, str]:
  """How its records are read, and the feature that has the class names.

  Raises:
    UserError: it isn't for classification.
  """
  has = set(features or ())
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


def shipped(name: str, root: pathlib.Path) -> Any:
  """The builder of a shipped data set, prepared if it wasn't."""
  module, class_name = catalog.SHIPPED[name]
  make = getattr(importlib.import_module(module), class_name)

  def builder() -> Any:
    try:
      return make(data_dir=str(root), file_format="array_record")
    except ValueError as e:  # Prepared by other means, in another format.
      raise UserError(
        f"data set {name} in {root} can't be used: {e}. Remove {root / name}: "
        "it is then prepared anew."
      ) from e

  try:
    root.mkdir(parents=True, exist_ok=True)
    if builder().is_prepared():
      return builder()
    # One process of this machine prepares, others wait; the lock goes with
    # the process, however that ends.
    with open(root / f".{name}.lock", "w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if not builder().is_prepared():
        _prepare(builder(), root)
  except (OSError, RuntimeError) as e:  # The latter from ArrayRecord.
    # Another host that shares the folder may have been faster.
    if not builder().is_prepared():
      raise UserError(
        f"data set {name} can't be prepared in {root}: "
        f"{str(e).splitlines()[0]}. "
        "Make room there or name another place with "
        "--config.data.data_dir=DIR."
      ) from e
  return builder()


def _prepare(builder: Any, root: pathlib.Path) -> None:
  import tensorflow_datasets as tfds

  here = pathlib.Path(builder.data_dir)
  if here.exists():
    # TFDS would take it as it is, and fail when reading.
    raise UserError(
      f"data set {builder.name}: the folder {here} is there, but has no "
      "dataset_info.json, so it is not whole; remove it and start again."
    )
  for leftover in here.parent.glob("incomplete.*"):
    # Of a run that was killed; younger ones may be another host's work.
    if time.time() - leftover.stat().st_mtime > 3600:
      shutil.rmtree(leftover, ignore_errors=True)
  print(f"preparing data set {builder.name} in {root} (once)", flush=True)
  # Its own lines and bars say less than the builders' single bar.
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(file_format="array_record")
