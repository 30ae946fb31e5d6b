"""A part of a data set: random access to its encoded records."""

import dataclasses
import functools
from typing import Any

import numpy as np

from mixer.datasets import prepared
from mixer.errors import UserError

# Beside the seed, so that other uses of it draw other numbers.
_SUBSET = 102


@dataclasses.dataclass(frozen=True)
class Split:
  """Random access to the encoded records of a part of a data set.

  Attributes:
    name: of the data set.
    expression: TFDS split expression, such as "train[:98%]".
    source: TFDS data source of `image` (encoded bytes) and `label`.
    class_names: in the order of the labels.
    indices: the records that belong to it, None for all.
  """

  name: str
  expression: str
  source: Any
  class_names: tuple[str, ...]
  indices: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.source if self.indices is None else self.indices)

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = int(i if self.indices is None else self.indices[i])
    record = self.source[i]
    label = int(record["label"])
    if not 0 <= label < len(self.class_names):
      raise UserError(
        f"{self._place(i)} has label {label}, outside the "
        f"{len(self.class_names)} classes; take a split with labels, or "
        "prepare the data set anew."
      )
    return {"image": record["image"], "label": label, "index": i}

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
    return np.array([self[i]["label"] for i in range(len(self))])

  def per_class(self, count: int, seed: int) -> "Split":
    """`count` examples of each class, drawn by `seed`.

    A larger count with the same seed contains the smaller one's examples.

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
          "for fewer (data.examples_per_class or fewshot.shots)."
        )
      chosen.append(rng.permutation(own)[:count])
    picked = np.sort(np.concatenate(chosen))
    return dataclasses.replace(self, indices=self.records[picked])


def open_split(name: str, expression: str, data_dir: str) -> Split:
  """Opens a part of a prepared data set; prepares the shipped ones itself.

  Raises:
    UserError: not there, another format, no such split.
  """
  source, class_names = prepared.open_source(name, expression, data_dir)
  if not len(source):
    raise UserError(
      f"data set {name}, split {expression} is empty; choose another split."
    )
  return Split(name, expression, source, class_names)
