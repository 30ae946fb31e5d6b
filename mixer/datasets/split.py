"""A part of a data set: random access to its encoded records."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_data_source

from mixer import files
from mixer.datasets import (
  by_code,
  catalog,
  expression,
  locate,
  records,
  shipped,
  stored,
  vtab,
)
from mixer.errors import UserError, first_line

# Beside the seed, so that other uses of it draw other numbers.
_SUBSET = 102
# The split expression for `test`, or `validation` where there is no `test`.
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class Split:
  """Random access to the encoded records of a part of a data set.

  Attributes:
    name: of the data set.
    expression: TFDS split expression, such as "train[:98%]".
    source: a sequence of records of `image` (encoded bytes) and `label` (and
      `valid_labels`, if several may be right), read by `__getitems__(indices)`.
    class_names: in the order of the labels.
    indices: the records that belong to it, None for all.
    identity: of the whole data set, JSON: what tells it from any other.
  """

  name: str
  expression: str
  source: Any
  class_names: tuple[str, ...]
  indices: np.ndarray | None = None
  identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.source if self.indices is None else self.indices)

  def __getitem__(self, i: int) -> dict[str, Any]:
    (record,) = self.read([range(len(self))[i]])
    return record

  @property
  def records(self) -> np.ndarray:
    """int `[N]`: the place of each of its records in `source`."""
    return np.arange(len(self)) if self.indices is None else self.indices

  def read(self, places: Sequence[int]) -> list[dict[str, Any]]:
    """The records at some places, and at once: cheaper than one by one.

    Returns:
      For each its encoded `image`, its `label` and its `index` in the source;
      its `file_name`, where the set has those; with the ReaL labels of ImageNet
      also its `valid_labels`.

    Raises:
      UserError: a label is none of the classes', or a record can't be read.
    """
    if not places:
      return []
    indices = [
      int(i if self.indices is None else self.indices[i]) for i in places
    ]
    try:
      found = self.source.__getitems__(indices)
    except (OSError, RuntimeError, ValueError) as e:  # Of ArrayRecord.
      raise UserError(
        f"data set {self.name}, split {self.expression}: its files can't be "
        f"read: {first_line(e)}. Check the disk, or prepare the data set anew."
      ) from e
    for i, record in zip(indices, found, strict=True):
      for label in (record["label"], *record.get("valid_labels", ())):
        if not 0 <= label < len(self.class_names):
          raise UserError(
            f"{self._place(i)} has label {label}, outside the "
            f"{len(self.class_names)} classes; take a split with labels, or "
            "prepare the data set anew."
          )
    return [r | {"index": i} for i, r in zip(indices, found, strict=True)]

  def _place(self, index: int) -> str:
    return f"data set {self.name}, split {self.expression}, record {index}"

  def decode_error(self, index: int, error: Exception) -> UserError:
    """The sentence about a record whose image can't be decoded."""
    return UserError(
      f"{self._place(index)} can't be decoded: {error}. Prepare the data set "
      "anew without that image, or choose a split that leaves it out."
    )

  def file_names(self, places: Sequence[int]) -> list[str]:
    """Those of the images at some places, "" where the set has none."""
    return [record.get("file_name", "") for record in self.read(places)]

  def _all(self, key: str) -> list[Any]:
    places = range(len(self))
    groups = (places[i : i + 256] for i in places[::256])
    return [record[key] for group in groups for record in self.read(group)]

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """int64 `[N]`; reads every record, so for small sets."""
    return np.array(self._all("label"))

  @functools.cached_property
  def valid_labels(self) -> tuple[frozenset[int], ...] | None:
    """The right classes of each example, where there may be several.

    Those of ImageNet with the ReaL labels (`imagenet2012_real`); an example
    with none is left out of that score. None for any other set. Reads every
    record.
    """
    if not len(self) or "valid_labels" not in self[0]:
      return None
    return tuple(self._all("valid_labels"))

  def per_class(
    self, count: int, seed: int, key: str = "data.examples_per_class"
  ) -> "Split":
    """`count` examples of each class, drawn by `seed`.

    A larger count with the same seed contains the smaller one's examples.

    Args:
      count: examples.
      seed: of the draw.
      key: of the config that says how many, for a sentence.

    Raises:
      UserError: a class has too few.
    """
    rng = np.random.default_rng((seed, _SUBSET))
    chosen = []
    for k, class_name in enumerate(self.class_names):
      (own,) = np.nonzero(self.labels == k)
      if len(own) < count:
        raise UserError(
          f"data set {self.name}, split {self.expression} has {len(own)} "
          f"examples of class {class_name!r} and {count} are asked for; ask "
          f"for fewer, by --config.{key}=N."
        )
      chosen.append(rng.permutation(own)[:count])
    picked = np.sort(np.concatenate(chosen))
    return dataclasses.replace(self, indices=self.records[picked])


def open_split(name: str, expression: str, data_dir: str) -> Split:
  """Opens a part of a prepared data set; prepares the shipped ones itself.

  Args:
    name: of a TFDS data set, with `/config` and `:version` where it has any;
      of a task of VTAB-1k, "vtab/..."; or of a function, see `by_code`.
    expression: TFDS split expression, or `AUTO`; of a task, one of
      `vtab.SPLITS`.
    data_dir: where data sets are, "" for TFDS's default.

  Raises:
    UserError: not prepared, damaged, not readable by index, not for
      classification, or without such a split.
  """
  if by_code.is_one(name):
    return _open_by_code(name, expression, data_dir)
  found, task = _open(name, data_dir)
  parse, label = _parser(name, task, found)
  if expression == AUTO:
    expression = _evaluation_split(name, task, found)
  pieces = _pieces(name, task, found, expression)
  class_names = (task.names if task else ()) or found.class_names(label)
  identity = _identity(class_names, found.sizes, found.fingerprint)
  take: Any = array_record_data_source.ArrayRecordDataSource
  source = records.Records(take(pieces), parse)
  return Split(name, expression, source, class_names, identity=identity)


def _open_by_code(name: str, expression: str, data_dir: str) -> Split:
  if expression == AUTO:
    try:
      return _open_by_code(name, "test", data_dir)
    except UserError:
      expression = "validation"
  source, places, class_names, sizes = by_code.open_source(
    name, expression, data_dir
  )
  if not places:
    raise UserError(f"data set {name}, split {expression} is empty.")
  return Split(
    name,
    expression,
    source,
    class_names,
    np.array(places),
    _identity(class_names, sizes, source.digest()),
  )


def _identity(
  class_names: tuple[str, ...], sizes: Mapping[str, int], fingerprint: str
) -> dict[str, Any]:
  shown = ", ".join(class_names)
  if len(class_names) > 6:
    shown = (
      f"{len(class_names):,} names, {class_names[0]} to {class_names[-1]} "
      f"({files.json_sha256(class_names)[:12]})"
    )
  return {"class_names": shown, "examples": sizes, "fingerprint": fingerprint}


def _open(name: str, data_dir: str) -> tuple[stored.Stored, vtab.Task | None]:
  """A set that is stored, and the VTAB task that it is opened for."""
  root = locate.resolve_data_dir(data_dir)
  task = vtab.find(name) if name.startswith(vtab.PREFIX) else None
  base = task.data_set if task else name
  if base in catalog.SHIPPED:
    folder = shipped.folder(base, root)
  else:
    try:
      folder = locate.find(base, root, data_dir)
    except UserError as e:
      raise UserError(
        f"{name} is made of {base}: {e}" if task else str(e)
      ) from e
  found = stored.read(folder)
  if "array_record" not in found.formats:
    kind = found.formats[0]
    what = "adds ArrayRecord files to it, without TensorFlow"
    if kind != "tfrecord":
      what, data_dir = "prepares it anew, in another place", "DIR"
    run = catalog.command(base, data_dir=data_dir)
    raise UserError(
      f"data set {base} in {found.folder} is stored as {kind}, which can't be "
      f"read by index; `{run}` {what}."
    )
  return found, task


def _parser(
  name: str, task: vtab.Task | None, found: stored.Stored
) -> tuple[Any, str]:
  """What reads its records, and the feature that has the class names."""
  has = found.features.keys()
  if task and task.label:
    lacking = [f for f in task.features if f.split("/")[0] not in has]
    if lacking or "image" not in has:
      raise UserError(
        f"the data set in {found.folder} has no {lacking or 'image'}, which "
        f"{name} needs; prepare it anew, by TFDS's builder."
      )
    return task.record, task.features[0]
  if {"image", "label"} <= has:
    return records.plain, "label"
  if {"image", "original_label", "real_label"} <= has:
    return records.real, "original_label"
  # Sets that have other labels than one an image.
  tasks = "".join(f"{task} or " for task in vtab.tasks_of(name))
  raise UserError(
    f"data set {name} in {found.folder} has no features `image` and `label`; "
    f"name {tasks}one for image classification in data.name."
  )


def _evaluation_split(
  name: str, task: vtab.Task | None, found: stored.Stored
) -> str:
  for split in ("test", "validation"):
    if task or found.sizes.get(split):
      return split
  raise UserError(
    f"data set {name} has neither a split `test` nor `validation` to evaluate "
    f"on, but {', '.join(found.sizes)}; hold a part out, as in "
    '--config.data.train_split="train[:90%]" '
    '--config.data.eval_split="train[90%:]".'
  )


@dataclasses.dataclass(frozen=True)
class _Piece:
  """A part of a shard, as `ArrayRecordDataSource` takes it."""

  filename: str
  skip: int
  take: int
  examples_in_shard: int


def _pieces(
  name: str, task: vtab.Task | None, found: stored.Stored, split: str
) -> list[_Piece]:
  """What a split expression takes of the shards, which are checked."""
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
  pieces = []
  for part, start, stop in parts:
    before = 0
    for path, count in zip(found.files(part), found.splits[part], strict=True):
      skip = max(start - before, 0)
      take = min(stop - before, count) - skip
      if take > 0:
        pieces.append(_Piece(str(path), skip, take, count))
      before += count
  if not pieces:
    raise UserError(
      f"data set {name}, split {split} is empty; choose another split."
    )
  return pieces
