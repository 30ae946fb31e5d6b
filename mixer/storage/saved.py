"""What a checkpoint holds: read, and compared with what was saved.

It consists of parts: `params`, `ema` where the run keeps an average, and
`training`, the rest. Beside its arrays lie their digests.
"""

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1
from etils import epath

from mixer import errors, weights
from mixer import workdir as workdir_lib
from mixer.errors import UserError
from mixer.storage import digests, finding, inventory

# Orbax's annotations don't fit its own classes.
ocp: Any = orbax.checkpoint.experimental.v1

_METADATA = "_CHECKPOINT_METADATA"
# What train.py saves in it.
_TYPES = {
  "config": dict,
  "resolved": dict,
  "class_names": list,
  "origin": str,
  "environment": dict,
  "history": list,
  "metrics_lines": int,
}


class Damaged(UserError):
  """A checkpoint is not as it was saved.

  Attributes:
    reason: in what, as the rest of a sentence.
  """

  def __init__(self, where: epath.Path, reason: str):
    super().__init__(f"checkpoint {where} is damaged: {reason}")
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Saved:
  """A checkpoint without its arrays.

  Attributes:
    path: of the checkpoint.
    parts: for each part the tree of its arrays, as Orbax knows them.
    metadata: JSON, as given to `Checkpoints.save`.
    arrays: (type, shape, digest) of every array by name, as `params/stem/bias`;
      None where it is from before there were digests.
  """

  path: epath.Path
  parts: dict[str, Any]
  metadata: dict[str, Any]
  arrays: dict[str, tuple[str, tuple[int, ...], str]] | None


def look(where: epath.Path, wanted: Collection[str] | None = None) -> Saved:
  """Reads all but the arrays.

  Args:
    where: the checkpoint.
    wanted: the parts that have to be readable; None for all.

  Raises:
    Damaged: something is not as it was saved.
  """
  try:
    # Of several hosts one is enough: they are the same files.
    damage = "" if jax.process_index() else inventory.damage(where, wanted)
    if damage:
      raise Damaged(where, damage)
    metadata, arrays = _recorded(where)
    with _alone():
      parts = ocp.checkpointables_metadata(where).metadata or {}
    parts = {k: v for k, v in parts.items() if wanted is None or k in wanted}
    for part, arrays_of_part in parts.items():
      if arrays_of_part is None:  # So Orbax says it.
        raise ValueError(f"its part `{part}` can't be opened")
    found = _types(parts)
  except Damaged:
    raise
  except Exception as e:
    raise _unreadable(where, e) from e
  if arrays is not None:
    recorded = {
      k: v
      for k, v in arrays.items()
      if wanted is None or k.split("/")[0] in wanted
    }
    lines = _mismatches(found, {k: v[:2] for k, v in recorded.items()})
    if lines:
      lines = weights.shorten(lines)
      raise Damaged(where, f"its arrays are not those that were saved: {lines}")
  return Saved(where, parts, metadata, arrays)


def _recorded(where: epath.Path) -> tuple[dict[str, Any], Any]:
  """As of `digests.unseal`."""
  content = json.loads((where / _METADATA).read_text())
  metadata, arrays = digests.unseal(content["custom_metadata"])
  for name, kind in _TYPES.items():
    if not isinstance(metadata.get(name), kind | None):
      raise ValueError(f"its {name} is no {kind.__name__}")
  return metadata, arrays


def load(saved: Saved, targets: dict[str, Any]) -> dict[str, Any]:
  """Reads arrays, and compares them with their digests.

  Args:
    saved: of `look`.
    targets: for each part that is wanted a tree of abstract arrays that say
      how they are to lie on devices, or of numpy arrays.

  Returns:
    The parts.

  Raises:
    Damaged: they can't be read, or are not as they were saved.
  """
  found = read(saved, targets)
  refuse(saved, compare(saved, found))
  return found


def read(saved: Saved, targets: dict[str, Any]) -> dict[str, Any]:
  """As `load`, without comparing."""
  try:
    with _alone():
      # One call for each part: of several in a call, Orbax leaves those after
      # a part that fails waiting, and Python warns of them at any later time.
      return {
        name: ocp.load_checkpointables(saved.path, {name: target})[name]
        for name, target in targets.items()
      }
  except Exception as e:
    raise _unreadable(saved.path, e) from e


def compare(saved: Saved, found: dict[str, Any]) -> list[str]:
  """The names of arrays that differ from their digests, in order."""
  if saved.arrays is None:
    return []
  now = digests.of(found)
  return digests.different(now, {k: saved.arrays[k][2] for k in now})


def refuse(saved: Saved, names: list[str]) -> None:
  """Raises Damaged if there are names, as of `compare`."""
  if names:
    raise Damaged(saved.path, f"not as saved: {weights.shorten(names)}")


def check_same(saved: Saved, wanted: Any) -> None:
  """Refuses a checkpoint of other arrays than those of a tree.

  Raises:
    UserError: names them.
  """
  # Orbax itself loads an array of another shape without a word.
  found = _types(saved.parts)
  lines = _mismatches(found, _types(wanted))
  if lines:
    raise UserError(
      f"checkpoint {saved.path} is of another model or optimizer: "
      f"{weights.shorten(lines)}. Use the config that it was made with, or "
      "start in another --workdir from its weights, by "
      f"--config.init_from={saved.path}."
    )


def _types(tree: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
  """(type, shape) of every array, by name."""
  return {
    k: (np.dtype(v.dtype).name, tuple(v.shape))
    for k, v in weights.flatten(tree).items()
  }


def _mismatches(found: Any, wanted: Any) -> list[str]:
  """As `weights.mismatches`; types are told apart where shapes are the same."""
  lines = weights.mismatches(
    {k: shape for k, (_, shape) in found.items()},
    {k: shape for k, (_, shape) in wanted.items()},
  )
  for k in sorted(found.keys() & wanted.keys()):
    if found[k][1] == wanted[k][1] and found[k][0] != wanted[k][0]:
      lines.append(f"{k} is {found[k][0]} there and {wanted[k][0]} here")
  return lines


@contextlib.contextmanager
def _alone() -> Iterator[None]:
  """Lets Orbax read without waiting for other hosts.

  Each reads its own part of every array; whether all could is asked in the
  open (`_together`), where waiting has an end.
  """
  me = ocp.multihost.process_index()
  context = ocp.Context()
  context.multiprocessing.primary_host = me
  context.multiprocessing.active_processes = {me}
  with context:
    yield


def _unreadable(where: epath.Path, error: Exception) -> Exception:
  """What to raise about a checkpoint that raised an error."""
  if errors.is_memory(error):  # That says nothing about the checkpoint.
    return error
  return Damaged(where, f"can't be read: {finding.reason(error)}")


def load_params(
  path: finding.Path, *, averaged: bool = True, verify: bool = True
) -> tuple[Any, dict[str, Any]]:
  """Reads weights alone, to the host: no optimizer.

  Args:
    path: as for `locate`.
    averaged: take the average of the weights where the run kept one.
    verify: refuse weights that are not as they were saved.

  Returns:
    A nested dict of numpy arrays; and the metadata saved with them, plus
    `step`, `path`, and `averaged`, whether there is an average.

  Raises:
    UserError: nothing there, not readable, or not as saved.
  """
  workdir, step = finding.locate(path)
  where = finding.directory(workdir) / str(step)
  try:
    ema = _has_average(where)
    part = "ema" if averaged and ema else "params"
    saved = look(where, {part})
    get = load if verify else read
    found = get(saved, {part: _host_arrays(saved, part)})
  except Damaged as e:
    others = [s for s in finding.committed(workdir) if s != step]
    take = f"take {where.parent / str(others[-1])}" if others else "take a copy"
    raise UserError(f"{e}. Instead of it {take}.") from e
  info = saved.metadata | {"step": step, "path": str(where), "averaged": ema}
  return found[part], info


def mend_config(path: finding.Path) -> str:
  """Writes a damaged `config.json` anew, as the newest checkpoint has it.

  Args:
    path: the workdir.

  Returns:
    A sentence about it; "" where there was nothing to mend, or nothing to mend
    it by.
  """
  workdir = workdir_lib.path(path)
  steps = finding.committed(workdir)
  if not steps:
    return ""
  try:
    workdir_lib.read_config(workdir)
  except UserError as e:
    # One that is missing says that this is no workdir; one that can't be read
    # may be sound.
    if e.__cause__ is None or isinstance(e.__cause__.__cause__, OSError):
      return ""
    with contextlib.suppress(Damaged, KeyError):
      found = look(finding.directory(workdir) / str(steps[-1]), ()).metadata
      content = {k: found[k] for k in ("config", "resolved")}
      workdir_lib.write_config(workdir, content)
      return (
        f"{workdir}/config.json was damaged, and is written anew as checkpoint "
        f"{steps[-1]} has it."
      )
  return ""


def _has_average(where: epath.Path) -> bool:
  try:
    _, arrays = _recorded(where)
  except Exception as e:
    raise _unreadable(where, e) from e
  if arrays is None:
    return (where / "ema").is_dir()
  return any(name.startswith("ema/") for name in arrays)


def verify(path: finding.Path) -> tuple[int, list[str]]:
  """Compares a checkpoint with its digests, part by part, on the host.

  Args:
    path: as for `locate`.

  Returns:
    How many arrays have digests, 0 where the checkpoint is from before there
    were any; and the names of those that are not as they were saved.

  Raises:
    UserError: nothing there.
    Damaged: it can't be read.
  """
  workdir, step = finding.locate(path)
  saved = look(finding.directory(workdir) / str(step))
  names = []
  for part in saved.parts:
    found = read(saved, {part: _host_arrays(saved, part)})
    names += compare(saved, found)
  return len(saved.arrays or ()), names


def _host_arrays(saved: Saved, part: str) -> Any:
  """Numpy arrays for Orbax to see that it is to load to the host."""
  return jax.tree.map(lambda x: np.empty(x.shape, x.dtype), saved.parts[part])
