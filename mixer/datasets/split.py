"""A part of a data set: random access to its encoded records."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixer.datasets import prepared
from mixer.errors import UserError

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
    identity: of the whole data set, JSON; see `prepared.open_source`.
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
    (record,) = self.read([i])
    return record

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
      records = self.source.__getitems__(indices)
    except (OSError, RuntimeError, ValueError) as e:  # Of ArrayRecord.
      raise UserError(
        f"data set {self.name}, split {self.expression}: its files can't be "
        f"read: {str(e).splitlines()[0]}. Check the disk, or prepare the data "
        "set anew."
      ) from e
    for i, record in zip(indices, records, strict=True):
      for label in (record["label"], *record.get("valid_labels", ())):
        if not 0 <= label < len(self.class_names):
          raise UserError(
            f"{self._place(i)} has label {label}, outside the "
            f"{len(self.class_names)} classes; take a split with labels, or "
            "prepare the data set anew."
          )
    return [
      record | {"index": i} for i, record in zip(indices, records, strict=True)
    ]

  def file_names(self, places: Sequence[int]) -> list[str]:
    """Those of the images at some places, "" where the set has none."""
    return [record.get("file_name", "") for record in self.read(places)]

  @property
  def records(self) -> np.ndarray:
    """int `[N]`: the place of each of its records in `source`."""
    return np.arange(len(self)) if self.indices is None else self.indices

  def _place(self, index: int) -> str:
    return f"data set {self.name}, split {self.expression}, record {index}"

  def decode_error(self, index: int, error: Exception) -> UserError:
    """The sentence about a record whose image can't be decoded."""
    return UserError(
      f"{self._place(index)} can't be decoded: {error}. Prepare the data set "
      "anew without that image, or choose a split that leaves it out."
    )

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """int64 `[N]`; reads every record, so for small sets."""
    places = range(len(self))
    groups = (places[i : i + 256] for i in places[::256])
    return np.array([r["label"] for group in groups for r in self.read(group)])

  @functools.cached_property
  def valid_labels(self) -> tuple[frozenset[int], ...] | None:
    """The right classes of each example, where there may be several.

    Those of ImageNet with the ReaL labels (`imagenet2012_real`); an example
    with none is left out of that score. None for any other set. Reads every
    record.
    """
    if not len(self) or "valid_labels" not in self[0]:
      return None
    places = range(len(self))
    groups = (places[i : i + 256] for i in places[::256])
    return tuple(r["valid_labels"] for g in groups for r in self.read(g))

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
    name: of the data set.
    expression: TFDS split expression, or `AUTO`.
    data_dir: where data sets lie, "" for TFDS's default.

  Raises:
    UserError: not there, another format, no such split.
  """
  if expression == AUTO:
    expression = prepared.evaluation_split(name, data_dir)
  source, class_names, identity = prepared.open_source(
    name, expression, data_dir
  )
  return Split(name, expression, source, class_names, identity=identity)
