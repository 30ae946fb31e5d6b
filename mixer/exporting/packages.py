"""Packages that only exporting needs, and that may be missing."""

import importlib
from typing import Any

from mixer.errors import UserError, first_line


class MissingError(UserError):
  """A package isn't installed; the message says how to get it."""


def load(*names: str) -> Any:
  """Imports modules that not everybody has.

  Args:
    *names: such as "onnx" or "safetensors.torch".

  Returns:
    The module, or a tuple of them where there are several.

  Raises:
    MissingError: some aren't installed, or don't start; names all of those.
  """
  found, missing = [], []
  why: Exception | None = None
  for name in names:
    try:
      found.append(importlib.import_module(name))
    except Exception as e:  # Of two that don't fit each other, RuntimeError.
      missing.append(name.partition(".")[0])
      why = e
  if missing:
    reason = first_line(why) if why else ""
    raise MissingError(
      f"{' and '.join(missing)} can't be imported ({reason}); install what is "
      f"missing by: pip install {' '.join(missing)}"
    ) from why
  return found[0] if len(found) == 1 else tuple(found)
