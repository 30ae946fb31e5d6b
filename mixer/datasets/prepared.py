"""Opens prepared TFDS data sets; prepares the shipped ones on first use."""

import contextlib
import fcntl
import importlib
import io
import os
import pathlib
import shutil
import time
from typing import Any

from mixer.datasets import records
from mixer.errors import UserError

# Built from what the installed packages contain, without a network:
# data set -> (module, class).
SHIPPED = {
  "digits": ("mixer.datasets.digits", "Digits"),
  "glyphs": ("mixer.datasets.glyphs", "Glyphs"),
}

# What a user has to know to prepare a set that the recipes name.
_HOW_TO = {
  "imagenet2012": (
    "Get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
    "image-net.org and run `tfds build imagenet2012 --file_format=array_record "
    "--manual_dir=DIR` (needs TensorFlow: pip install "
    '-e ".[tensorflow]").'
  ),
  "imagenet21k": (
    "TFDS has no builder for ImageNet-21k: docs/data.md shows how to write "
    "your copy as a TFDS data set of that name."
  ),
}


def resolve_data_dir(data_dir: str) -> pathlib.Path:
  """The folder that holds data sets, TFDS's own default for ""."""
  default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  return pathlib.Path(data_dir or default).expanduser()


def open_source(
  name: str, split: str, data_dir: str
) -> tuple[Any, tuple[str, ...]]:
  """Random access to the encoded records of a split.

  Args:
    name: of a TFDS data set, with `/config` and `:version` where it has any.
    split: TFDS split expression.
    data_dir: where data sets lie, "" for TFDS's default.

  Returns:
    A sequence of `{"image": bytes, "label": int}`, and the class names.

  Raises:
    UserError: not prepared, not readable by index, not for classification, or
      without such a split.
  """
  # TFDS is imported late: tools that read no data start faster.
  import tensorflow_datasets as tfds

  root = resolve_data_dir(data_dir)
  if name in SHIPPED:
    builder = _shipped(name, root)
  else:
    builder = _prepared(name, root)
  features = builder.info.features
  if not features or not {"image", "label"} <= features.keys():
    raise UserError(
      f"data set {name} in {root} has no features `image` and `label`; name "
      "one for image classification in data.name."
    )
  try:
    raw = builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
  except NotImplementedError as e:
    kind = builder.info.file_format
    raise UserError(
      f"data set {name} in {root} is stored as {kind.value if kind else '?'}, "
      "which can't be read by index; convert it to array_record with `python "
      "-m tensorflow_datasets.scripts.convert_format "
      f"--dataset_dir={builder.data_dir} --out_file_format=array_record "
      "--out_dir=NEW_DIR`."
    ) from e
  except (ValueError, KeyError) as e:
    sizes = {k: v.num_examples for k, v in builder.info.splits.items()}
    raise UserError(
      f"data set {name} has no split {split!r} ({str(e).splitlines()[0]}); it "
      "has "
      + ", ".join(f"{k} ({v:,} examples)" for k, v in sizes.items())
      + ', or parts of these as in "train[:98%]".'
    ) from e
  return records.Records(raw), tuple(features["label"].names)


def _prepared(name: str, root: pathlib.Path) -> Any:
  from tensorflow_datasets.core import (
    dataset_info,
    read_only_builder,
    registered,
  )

  try:
    return read_only_builder.builder_from_files(name, data_dir=str(root))
  except (
    registered.DatasetNotFoundError,
    dataset_info.DatasetInfoFileError,  # A folder that is not whole.
    ValueError,
  ) as e:
    base = name.split("/")[0].split(":")[0]
    half = isinstance(e, dataset_info.DatasetInfoFileError)
    raise UserError(
      f"data set {name} is not prepared in {root}"
      + (f" ({e})" if half else "")
      + ". "
      + _HOW_TO.get(
        base,
        f"If TFDS knows it: `tfds build {name} --file_format=array_record "
        f"--data_dir={root}`; docs/data.md says more.",
      )
      + " If it lies elsewhere, name the place with --config.data.data_dir=DIR."
      + f" Without any preparation: {', '.join(SHIPPED)}."
    ) from e


def _shipped(name: str, root: pathlib.Path) -> Any:
  """The builder of a shipped data set, prepared if it wasn't."""
  module, class_name = SHIPPED[name]
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
