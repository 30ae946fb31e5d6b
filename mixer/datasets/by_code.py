"""Data sets of one's own by code: `data.name="package.module:function"`.

`function(split=..., data_dir=...)` returns examples, of which there are `len()`
and `[i]` is `{"image": ..., "label": ...}`, and a list of the names of the
classes. An image is the bytes of an image file or a uint8 array [H, W, 3] or
[H, W]; a label is a number from 0. Example i is always the same, and several
threads ask at once. For a split that it doesn't have it raises ValueError.
"""

import hashlib
import importlib
import operator
import re
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer.datasets import expression as expression_lib
from mixer.errors import UserError, first_line

# The version in "cifar10:3.0.2" is no name of a function.
_NAME = re.compile(r"([^\W\d][\w.]*):([^\W\d]\w*)")
# Examples that tell a data set from another one.
_SAMPLES = 16


def is_one(name: str) -> bool:
  """Whether a data set's name is that of a function."""
  return _NAME.fullmatch(name) is not None


class Source:
  """Examples with a check of each; what `split.Split` reads."""

  def __init__(self, where: str, examples: Any):
    """Takes what a function has returned, and what to call it."""
    self._where, self._examples = where, examples

  def __len__(self) -> int:
    return len(self._examples)

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    return [self._example(i) for i in indices]

  def _example(self, i: int) -> dict[str, Any]:
    where = f"{self._where}, example {i}"
    try:
      found = self._examples[i]
    except Exception as e:
      raise _theirs(where, e) from e
    try:
      record = {**found, "label": operator.index(found["label"])}
      if isinstance(record["image"], (bytes, np.ndarray)):
        return record
    except (KeyError, TypeError):
      pass
    raise UserError(
      f"{where} is {str(found)[:80]}: expected a dict of `image`, the bytes of "
      "a file or a uint8 array [H, W, 3], and `label`, a whole number."
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
  name: str, expression: str, data_dir: str
) -> tuple[Source, range, tuple[str, ...], dict[str, int]]:
  """Calls the function.

  Args:
    name: of the function.
    expression: name of a split, maybe with a slice as in "train[:98%]".
    data_dir: for the function; "" for none.

  Returns:
    The split; which of its examples; the names of the classes; and the split's
    name and size.

  Raises:
    UserError: the function can't be imported, or doesn't do what it should.
  """
  module, attribute = name.split(":")
  split = expression.partition("[")[0]
  where = f"data set {name}, split {split}"
  try:
    function: Any = getattr(importlib.import_module(module), attribute, None)
    if not callable(function):
      raise UserError(f"{where}: {module} has no function {attribute}.")
    # By keywords: what a config from elsewhere names is hardly called.
    found: Any = function(split=split, data_dir=data_dir)
  except UserError:
    raise
  except ModuleNotFoundError as e:
    raise UserError(
      f"{where}: {first_line(e)}; put the folder that it is in into PYTHONPATH."
    ) from e
  except ValueError as e:
    raise UserError(f"{where}: there is none: {first_line(e)}.") from e
  except Exception as e:
    raise _theirs(where, e) from e
  try:
    examples, class_names = found  # Anything, so far.
    names = tuple(k for k in class_names if isinstance(k, str))
    different = len(set(names)) == len(class_names) > 0
    if isinstance(class_names, str) or not different:
      raise TypeError
    sizes = {split: len(examples)}
  except (TypeError, ValueError) as e:
    raise UserError(
      f"{where}: the function returned {str(found)[:80]}; expected examples "
      "with a length, and a list of the names of the classes, each once."
    ) from e
  try:
    ((_, *bounds),) = expression_lib.parts(expression, {split: (sizes[split],)})
  except ValueError as e:
    raise UserError(
      f"{where} has {sizes[split]:,} examples; {expression!r} is no part of "
      f"them: {first_line(e)}."
    ) from e
  return Source(where, examples), range(*bounds), names, sizes


def _theirs(where: str, error: Exception) -> UserError:
  """An error in the user's own code, with its place."""
  frame = traceback.extract_tb(error.__traceback__)[-1]
  return UserError(
    f"{where}: {type(error).__name__}: {first_line(error)} "
    f"({frame.filename}, line {frame.lineno})."
  )
