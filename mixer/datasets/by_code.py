"""Data sets of one's own by code: `data.name="package.module:function"`.

`function(split=..., data_dir=...)` returns examples, of which there are `len()`
and `[i]` is `{"image": ..., "label": ...}`, and a list of the names of the
classes. An image is the bytes of an image file or a uint8 array [H, W, 3] or
[H, W]; a label is a number from 0. Example i is always the same, and several
threads ask at once. For a split that it doesn't have it raises ValueError.
"""

import contextlib
import hashlib
import importlib
import operator
import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mixer.errors import UserError, first_line

# The version in "cifar10:3.0.2" is no name of a function.
_NAME = re.compile(r"([^\W\d][\w.]*):([^\W\d]\w*)")
_SAMPLES = 16  # Examples that tell a data set from another one.


def is_one(name: str) -> bool:
  """Whether a data set's name is that of a function."""
  return _NAME.fullmatch(name) is not None


class Source:
  """Examples with a check of each; what `split.Split` reads."""

  def __init__(self, where: str, examples: Any):
    self._where, self._examples = where, examples

  def __len__(self) -> int:
    return len(self._examples)

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    return [self._example(i) for i in indices]

  def _example(self, i: int) -> dict[str, Any]:
    with _theirs(f"{self._where}, example {i}"):
      found = self._examples[i]
    try:
      record = {**found, "label": operator.index(found["label"])}
      if isinstance(record["image"], (bytes, np.ndarray)):
        return record
    except (KeyError, TypeError):
      pass
    raise UserError(
      f"{self._where}, example {i} is {str(found)[:80]}: expected a dict of "
      "`image`, the bytes of a file or a uint8 array [H, W, 3], and `label`, a "
      "whole number."
    )

  def digest(self) -> str:
    """Of some examples, evenly spaced."""
    count = min(_SAMPLES, len(self))
    digest = hashlib.sha256()
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
  with _theirs(where):
    function = getattr(importlib.import_module(module), attribute)
    # By keywords: what a config from elsewhere names is hardly called.
    found: Any = function(split=split, data_dir=data_dir)
  try:
    examples, names = found
    len(examples)
    names = [*names] if not isinstance(names, str) else []
    if {*map(type, names)} != {str} or len({*names}) < len(names):
      raise TypeError
  except (TypeError, ValueError) as e:
    raise UserError(
      f"{where}: the function returned {str(found)[:80]}; expected examples "
      "with a length, and a list of the names of the classes, each once."
    ) from e
  return Source(where, examples), tuple(names)


@contextlib.contextmanager
def _theirs(where: str) -> Iterator[None]:
  """Makes a UserError of one in the user's own code, with its place."""
  try:
    yield
  except UserError:
    raise
  except ModuleNotFoundError as e:
    raise UserError(
      f"{where}: {first_line(e)}; put the folder that it is in into PYTHONPATH."
    ) from e
  except Exception as e:
    frame = traceback.extract_tb(e.__traceback__)[-1]
    raise UserError(
      f"{where}: {type(e).__name__}: {first_line(e)} ({frame.filename}, line "
      f"{frame.lineno})."
    ) from e
