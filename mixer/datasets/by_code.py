"""Data sets of one's own by code: `data.name="package.module:function"`.

`function(split=..., data_dir=...)` returns examples, of which there are `len()`
and `[i]` is `{"image": ..., "label": ...}`, and a list of the names of the
classes. An image is the bytes of an image file or a uint8 array [H, W, 3] or
[H, W]; a label is a number from 0. Example i is always the same, and several
threads ask at once. For a split that it doesn't have it raises ValueError.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import operator
import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mixer.errors import UserError, first_line

# Not "cifar10:3.0.2", which has a version.
NAME = re.compile(r"([^\W\d][\w.]*):([^\W\d]\w*)")
_SAMPLES = 16  # Examples that tell a data set from another one.


@dataclasses.dataclass(frozen=True)
class Source:
  """Examples, each checked as it is read; the source of a `split.Split`."""

  where: str
  examples: Any

  def __len__(self) -> int:
    return len(self.examples)

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    return [self._example(int(i)) for i in indices]

  def _example(self, i: int) -> dict[str, Any]:
    with _user_code(f"{self.where}, example {i}"):
      found = self.examples[i]
      record = {**found, "label": operator.index(found["label"])}
      if not isinstance(record["image"], bytes | np.ndarray):
        raise TypeError("`image` is neither bytes nor a uint8 array [H, W, 3]")
      return record

  def digest(self) -> str:
    """Of some examples, evenly spaced."""
    digest, count = hashlib.sha256(), min(_SAMPLES, len(self))
    for k in range(count):
      record = self._example(k * (len(self) - 1) // max(1, count - 1))
      image = record["image"]
      digest.update(f"{record['label']} {np.shape(image)} ".encode())
      digest.update(image if isinstance(image, bytes) else image.tobytes())
    return digest.hexdigest()


def open_source(
  name: str, split: str, data_dir: str
) -> tuple[Source, tuple[str, ...]]:
  """A split's examples, and class names, of the function that is called so."""
  module, attribute = name.split(":")
  where = f"data set {name}, split {split}"
  with _user_code(where):
    function = getattr(importlib.import_module(module), attribute)
    # By keywords: functions that a foreign config names hardly take these.
    examples, names = function(split=split, data_dir=data_dir)
    names, _ = tuple(names), len(examples)
    if {*map(type, names)} != {str} or len({*names}) < len(names):
      raise TypeError(f"{names} are no names of classes, each once")
  return Source(where, examples), names


@contextlib.contextmanager
def _user_code(where: str) -> Iterator[None]:
  """Makes a UserError of an error in the user's code, with its place."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    frame = traceback.extract_tb(e.__traceback__)[-1]
    missing = isinstance(e, ModuleNotFoundError)
    raise UserError(
      f"{where}: {type(e).__name__}: {first_line(e)} ({frame.filename}, line "
      f"{frame.lineno}){'; put its folder into PYTHONPATH' * missing}."
    ) from e
