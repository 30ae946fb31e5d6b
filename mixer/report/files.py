"""A report's files: the page, and what is kept for it beside the metrics.

`WORKDIR/report.json` has what it took the model and the data to find: the
predictions and the figures of the weights of one step.
"""

import json
from typing import Any

from etils import epath

from mixer import files
from mixer import workdir as workdir_lib
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
  advice = (
    "Name another file, in a folder that is there and takes files: python -m "
    "tools.report WORKDIR -o FILE."
  )
  with files.atomic_write(target, advice=advice) as f:
    # Of a name that is no text there may be remains in it.
    f.write(text.encode("utf-8", "replace"))
