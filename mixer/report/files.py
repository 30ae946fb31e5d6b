"""A report's files: the page, and what is kept for it beside the metrics.

`WORKDIR/report.json` has what it took the model and the data to find: the
predictions and the figures of the weights of one step.
"""

import json
from typing import Any

from etils import epath

from mixer import files
from mixer.errors import UserError
from mixer.report import page

PAGE, KEPT = "report.html", "report.json"
_FORMAT = 1
_TYPES = {
  "step": int,
  "predictions": dict | None,
  "weights": dict | None,
  "notes": list,
}


def keep(workdir: epath.PathLike, content: dict[str, Any]) -> None:
  """Writes `report.json`.

  Args:
    workdir: of the run.
    content: `step`, `predictions`, `weights`, `notes`: see `page.text`.

  Raises:
    UserError: it can't be written.
  """
  plain = files.sealed(page.plain({"format": _FORMAT, **content}))
  text = json.dumps(plain, allow_nan=False)
  write(epath.Path(workdir) / KEPT, text + "\n")


def kept(workdir: epath.PathLike) -> tuple[dict[str, Any] | None, str]:
  """Reads `report.json`.

  Returns:
    Its content, None where there is none; and what is wrong with it, as a
    sentence, "" where nothing is.
  """
  path = epath.Path(workdir) / KEPT
  try:
    what = "the predictions of a run"
    found = files.read_sealed(path, what, ("format", *_TYPES))
  except UserError as e:
    gone = isinstance(e.__cause__, FileNotFoundError)
    return None, "" if gone else str(e)
  if found["format"] != _FORMAT:
    return None, f"{path} was written by another version of mixer."
  if not all(isinstance(found[k], t) for k, t in _TYPES.items()):
    return None, f"{path} is not what mixer writes there."
  return found, ""


def write(target: epath.PathLike, text: str) -> None:
  """Writes a file that is there whole or not at all.

  Raises:
    UserError: it can't be written.
  """
  advice = (
    "Name another file, in a folder that is there and takes files: python -m "
    "mixer report WORKDIR -o FILE."
  )
  with files.atomic_write(target, advice=advice) as f:
    # Of a name that is no text there may be remains in it.
    f.write(text.encode("utf-8", "replace"))
