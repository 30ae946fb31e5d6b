"""Restores the newest checkpoint that is whole.

One that is damaged is told, moved aside and passed over. Of several hosts all
pass over the same ones, as each step is taken only when all could take it.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from mixer.cluster import hosts
from mixer.errors import UserError
from mixer.storage import finding
from mixer.storage import saved as saved_lib

# Seconds for which hosts wait for the slowest one to read a checkpoint.
_READING = 1800.0


def newest_whole(
  folder: epath.Path,
  steps: Sequence[int],
  targets: dict[str, Any],
  tell: Callable[[str], None],
) -> tuple[dict[str, Any], int, dict[str, Any]]:
  """Loads the newest checkpoint that is whole; moves damaged ones aside.

  All hosts have to call it; they load the same one.

  Args:
    folder: with the checkpoints.
    steps: that are committed.
    targets: all parts, as for `load`.
    tell: takes a sentence about each damaged one.

  Returns:
    The parts, the step, and the metadata saved with them.

  Raises:
    UserError: one is of another model; or none is whole: then nothing is moved.
  """
  wrong: dict[int, saved_lib.Damaged] = {}
  for step in sorted(steps, reverse=True):
    where = folder / str(step)
    try:
      saved = _together(where, lambda at=where: _look(at, targets))
      found = _together(where, lambda it=saved: saved_lib.read(it, targets))
      # Of several hosts, all have to take part in it.
      names = saved_lib.compare(saved, found)
      _together(where, lambda it=saved, of=names: saved_lib.refuse(it, of))
    except saved_lib.Damaged as e:
      wrong[step] = e
      continue
    if saved.arrays is None:
      tell(
        f"checkpoint {where} carries no digests, as it is from an older "
        "version: nothing tells whether it is as it was saved."
      )
    for damaged, error in wrong.items():
      at = hosts.on_first(
        "damaged checkpoint",
        lambda path=folder / str(damaged): os.fspath(finding.move_aside(path)),
      )
      tell(f"{error}. It now lies in {at}; going on from checkpoint {step}.")
    return found, step, saved.metadata
  reasons = "; ".join(f"{step}: {e.reason}" for step, e in wrong.items())
  raise UserError(
    f"none of the checkpoints in {folder} is whole ({reasons}). They are left "
    "as they are. Put one from a copy in their place, or start in another "
    "--workdir."
  )


def _look(where: epath.Path, targets: dict[str, Any]) -> saved_lib.Saved:
  saved = saved_lib.look(where)
  saved_lib.check_same(saved, targets)
  return saved


def _together(where: epath.Path, function: Callable[[], Any]) -> Any:
  """Calls a function on every host; what one refuses, all refuse."""
  result, refusal, damage = None, "", ""
  try:
    result = function()
  except saved_lib.Damaged as e:
    damage = e.reason
  except UserError as e:
    refusal = str(e)
  said = hosts.gather("reading a checkpoint", [refusal, damage], _READING)
  for refusal, _ in said:
    if refusal:
      raise UserError(refusal, lines=True)  # Safe: it was one.
  for _, damage in said:
    if damage:
      raise saved_lib.Damaged(where, damage)
  return result
