"""A workdir as the page wants it: metrics, config, where it comes from."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mixer import checkpoints, errors, metrics
from mixer import workdir as workdir_lib
from mixer.errors import UserError
from mixer.report import facts, files

# Records that a browser still draws without a pause.
_MOST = 20_000

_Records = Sequence[Mapping[str, Any]]


def read(
  workdir: epath.PathLike,
  name: str,
  said: str = "",
  fresh: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """What is known of a run, finished or not.

  Args:
    workdir: of the run.
    name: to call it.
    said: a sentence about predictions, to stand among the notes; or "".
    fresh: what `files.kept` would give, if it has just been made; None: as
      the workdir has it.

  Returns:
    An element of the page's `runs`. What can't be read is missing in it, and
    its `notes` say so.

  Raises:
    UserError: it is no workdir of ours.
  """
  path = workdir_lib.path(workdir)
  content = workdir_lib.read_config(path)
  newest, metadata, arrays, wrong = _checkpoint(path)
  records, notes = _records(path, metadata.get("metrics_lines", 0))
  kept, damage = (fresh, "") if fresh else files.kept(path)
  done = max([newest or 0, *(r["step"] for r in records)])
  notes += _missing(records, done, content["resolved"].get("total"))
  notes += [sentence for sentence in (wrong, damage, said) if sentence]
  if kept is not None:
    notes += [*kept["notes"], *_older(path, kept["step"], newest, records)]
  elif not said:
    notes.append(
      "No predictions: a run makes them at its end, and python -m "
      f"mixer report --evaluate {path} at any time."
    )
  thin, thinned = _thin(records)
  return {
    "name": name,
    "facts": facts.of(path, content, records, done, metadata, arrays),
    "config": content["config"],
    "environment": metadata.get("environment"),
    "metrics": thin,
    "predictions": kept and kept["predictions"],
    "weights": kept and kept["weights"],
    "notes": [*notes, *thinned],
  }


def _older(
  path: epath.Path, step: int, newest: int | None, records: _Records
) -> list[str]:
  """If the predictions are not those of the newest evaluation."""
  evaluated = [r["step"] for r in records if r.get("eval/accuracy") is not None]
  if not evaluated or evaluated[-1] == step:
    return []
  note = (
    f"Predictions and weights are those of step {step:,}, and the newest "
    f"evaluation is that of step {evaluated[-1]:,}"
  )
  if newest not in (None, step):
    note += (
      f": python -m mixer report --evaluate {path} takes the newest "
      f"checkpoint, that of step {newest:,}"
    )
  return [f"{note}."]


def _records(
  path: epath.Path, least: int
) -> tuple[list[dict[str, Any]], list[str]]:
  try:
    found = metrics.examine(path, least)
  except UserError as e:
    return [], [f"There are no metrics: {e}"]
  notes = [found.damage] if found.damage else []
  if not found.records:
    file = path / metrics.FILE
    notes.append(f"There are no metrics yet: {file} has no record.")
  return list(found.records.values()), notes


def _checkpoint(
  path: epath.Path,
) -> tuple[int | None, dict[str, Any], Mapping[str, Any], str]:
  """The newest one's step, metadata and arrays, and what is wrong with it."""
  lacks = "devices, versions and the number of parameters aren't known"
  step = None
  try:
    _, step = checkpoints.locate(path)
    found = checkpoints.header(checkpoints.directory(path) / str(step))
  except (UserError, *workdir_lib.failures(path)) as e:
    what = "there is no whole checkpoint yet"
    if step is not None:
      what = errors.first_line(e)
    return step, {}, {}, f"{what[:1].upper()}{what[1:]}: {lacks}."
  return step, found.metadata, found.arrays or {}, ""


def _missing(records: _Records, done: int, total: int | None) -> list[str]:
  """What the metrics don't have, and why."""
  notes = []
  if total and done < total:
    notes.append(
      f"The run has done {done:,} of {total:,} updates: it is under way, or "
      "was stopped and goes on with the same command."
    )
  names = {name for record in records for name in record}
  if records and "eval/accuracy" not in names:
    notes.append("There is no evaluation yet.")
  if "train/images_per_second" in names and "train/mfu" not in names:
    notes.append(
      "There is no MFU (train/mfu): what this kind of device can do at most "
      "isn't known."
    )
  return notes


def _thin(
  records: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
  """Records that are enough for a page; and a sentence if others are out.

  Those of training alone are thinned, to every n-th and the last.
  """
  if len(records) <= _MOST:
    return records, []
  plain = [i for i, r in enumerate(records) if _is_training(r)]
  room = max(_MOST - (len(records) - len(plain)), 1)
  every = math.ceil(len(plain) / room)
  if every <= 1:
    return records, []
  out = set(plain) - {*plain[::every], plain[-1]}
  return [r for i, r in enumerate(records) if i not in out], [
    f"Of the {len(plain):,} records of training {len(plain) - len(out):,} are "
    f"shown, one of {every:,}; evaluations are all there, and "
    f"{metrics.FILE} has everything."
  ]


def _is_training(record: Mapping[str, Any]) -> bool:
  return "train/loss" in record and not any(
    name.startswith(("eval/", "fewshot/")) for name in record
  )
