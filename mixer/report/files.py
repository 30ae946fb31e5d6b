"""A report's files: the page, and what is kept for it beside the metrics.

`WORKDIR/report.json` has what it took the model and the data to find: the
predictions and the figures of the weights of one step.
"""

import json
import os
import pathlib
from typing import Any

from etils import epath

from mixer import workdir as workdir_lib
from mixer.errors import UserError
from mixer.report import page

PAGE, KEPT = "report.html", "report.json"
_FORMAT = 1


def keep(workdir: epath.PathLike, content: dict[str, Any]) -> None:
  """Writes `report.json`.

  Args:
    workdir: of the run.
    content: `step`, `predictions`, `weights`, `notes`: see `page.text`.

  Raises:
    UserError: it can't be written.
  """
  text = json.dumps(page.plain({"format": _FORMAT, **content}), allow_nan=False)
  write(epath.Path(workdir) / KEPT, text + "\n")


def kept(workdir: epath.PathLike) -> tuple[dict[str, Any] | None, str]:
  """Reads `report.json`.

  Returns:
    Its content, None where there is none; and what is wrong with it, as a
    sentence, "" where nothing is.
  """
  path = epath.Path(workdir) / KEPT
  try:
    found = json.loads(path.read_text())
  except FileNotFoundError:
    return None, ""
  except (ValueError, *workdir_lib.failures(path)) as e:
    return None, f"{path} can't be read ({workdir_lib.reason(e)})."
  keys = {"format", "step", "predictions", "weights", "notes"}
  if not isinstance(found, dict) or not keys <= found.keys():
    return None, f"{path} is not what mixer writes there."
  if found["format"] != _FORMAT:
    return None, f"{path} was written by another version of mixer."
  return found, ""


def write(target: epath.PathLike, text: str) -> None:
  """Writes a file that is there whole or not at all.

  Raises:
    UserError: it can't be written.
  """
  path = epath.Path(target)
  # Of a name that is no text there may be remains in it.
  data = text.encode("utf-8", "replace")
  try:
    if workdir_lib.is_remote(path):
      path.write_bytes(data)  # An object is written at once, or not.
    else:
      _replace(pathlib.Path(path), data)
  except workdir_lib.failures(path) as e:
    raise UserError(
      f"{path} can't be written: {workdir_lib.reason(e)}. Name another file, "
      "in a folder that is there and takes files: python -m tools.report "
      "WORKDIR -o FILE."
    ) from e


def _replace(path: pathlib.Path, data: bytes) -> None:
  path = path.resolve()  # What a link points to is replaced, not the link.
  if path.exists() and not path.is_file():  # As /dev/stdout.
    path.write_bytes(data)
    return
  part = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    part.write_bytes(data)
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)
