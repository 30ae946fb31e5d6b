"""Checkpoints: what they hold, and how they are found, verified and read.

`WORKDIR/checkpoints/N` holds the state after N updates:

  params    the weights by themselves, so that they load without an optimizer
  ema       their average, where the run keeps one
  training  the step and the optimizer's state
  metadata  JSON: what train.py says of the run (config, resolved, class_names,
            origin, environment, history, metrics_lines); `arrays`, the type,
            shape and digest of every array; `arrays_sha256` of all that

`mixer.saving` writes it by Orbax, which marks it as committed at the very end;
what has no such mark doesn't count. Paths may be those of an object store.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1
from etils import epath

from mixer import digests, errors, files, weights
from mixer import workdir as workdir_lib
from mixer.errors import UserError, first_line

# Orbax's annotations don't fit its own classes.
ocp: Any = orbax.checkpoint.experimental.v1

_METADATA = "_CHECKPOINT_METADATA"
COMMITTED = "commit_success.txt"  # Orbax writes it last.
_ARRAYS, _SHA256 = "arrays", "arrays_sha256"


class Damaged(UserError):
  """A checkpoint is not as it was saved."""


@dataclasses.dataclass(frozen=True)
class Header:
  """A checkpoint's metadata; `[type, shape, digest]` of every array by name."""

  path: epath.Path
  metadata: dict[str, Any]
  arrays: dict[str, list[Any]]


def directory(workdir: epath.PathLike) -> epath.Path:
  """The folder of a workdir's checkpoints, absolute."""
  path = workdir_lib.path(workdir) / "checkpoints"
  return path if files.is_remote(path) else path.absolute()


def committed(workdir: epath.PathLike) -> list[int]:
  """The steps of the committed checkpoints in a workdir, in order."""
  found = steps_in(directory(workdir))
  return sorted(int(d.name) for d in found if is_committed(d))


def locate(path: epath.PathLike) -> tuple[epath.Path, int]:
  """The workdir and step of a path that names either; UserError if neither."""
  workdir, step = workdir_lib.path(path), None
  if workdir.parent.name == "checkpoints" and workdir.name.isdigit():
    workdir, step = workdir.parent.parent, int(workdir.name)
  found = committed(workdir)
  if step is None and found:
    step = found[-1]
  if step not in found:
    raise UserError(
      f"there is no checkpoint in {path}: expected a workdir of train.py, or "
      "WORKDIR/checkpoints/STEP; whole ones in "
      f"{workdir}/checkpoints: {', '.join(map(str, found)) or 'none'}."
    )
  return workdir, step


def best(scores: Mapping[int, float]) -> int | None:
  """The step with the highest finite score; of several the newest."""
  known = [(v, s) for s, v in scores.items() if np.isfinite(v)]
  return max(known)[1] if known else None


def header(where: epath.Path) -> Header:
  """Reads all but the arrays; Damaged if that is not as it was saved."""
  with _noticing_damage(where):
    content = json.loads((where / _METADATA).read_text())["custom_metadata"]
    if content.pop(_SHA256, None) != files.json_sha256(content):
      raise ValueError("its metadata are not as they were saved")
    return Header(where, content, content.pop(_ARRAYS))


def sealed(metadata: dict[str, Any], parts: Any) -> dict[str, Any]:
  """The metadata, what is known of every array, and a digest of all that."""
  leaves, found = weights.flatten(parts), digests.of(parts)
  arrays = {
    k: [np.dtype(leaf.dtype).name, list(leaf.shape), found[k]]
    for k, leaf in leaves.items()
  }
  content = metadata | {_ARRAYS: arrays}
  return content | {_SHA256: files.json_sha256(content)}


def _read(where: epath.Path, targets: dict[str, Any]) -> dict[str, Any]:
  """Reads parts into trees of abstract or numpy arrays; verifies nothing."""
  with _noticing_damage(where), _alone():
    # One call for each part: of several in a call, Orbax leaves those after a
    # part that fails waiting, and Python warns of them at any later time.
    return {
      name: ocp.load_checkpointables(where, {name: target})[name]
      for name, target in targets.items()
    }


def _read_to_host(where: epath.Path, part: str) -> dict[str, Any]:
  """A part as numpy arrays, under its name."""
  with _noticing_damage(where), _alone():
    tree = ocp.checkpointables_metadata(where).metadata[part]
    target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)
  return _read(where, {part: target})


def changed(about: Header, found: dict[str, Any]) -> list[str]:
  """The names of arrays in these parts that are not as they were saved."""
  saved = {k: v[2] for k, v in about.arrays.items() if k.split("/")[0] in found}
  return digests.different(digests.of(found), saved)


def refuse(about: Header, names: list[str]) -> None:
  """Raises Damaged if there are names, as of `changed`."""
  if names:
    shown = weights.shorten(names)
    raise Damaged(f"checkpoint {about.path} is damaged: not as saved: {shown}")


def _check_model(about: Header, targets: dict[str, Any]) -> None:
  """Refuses a checkpoint that holds other arrays than the run's state.

  Orbax itself loads an array of another shape without a word.
  """
  there: Any = {k: _kind(*about.arrays[k][:2]) for k in about.arrays}
  here: Any = weights.flatten(targets)
  here = {k: _kind(x.dtype, x.shape) for k, x in here.items()}
  lines = weights.mismatches(there, here)
  if lines:
    raise UserError(
      f"checkpoint {about.path} is of another model or optimizer: "
      f"{weights.shorten(lines)}. Use the config that it was made with, or "
      "start in another --workdir from its weights, by "
      f"--config.init_from={about.path}."
    )


def _kind(dtype: Any, shape: Any) -> str:
  return f"{np.dtype(dtype).name} {tuple(shape)}"


def load_params(
  path: epath.PathLike, *, averaged: bool = True, verify: bool = True
) -> tuple[Any, dict[str, Any]]:
  """Weights alone, as numpy arrays; their average where there is one.

  Returns them with the metadata, and `step`, `path`, and `averaged`, whether
  there is an average. UserError: nothing there, or not as it was saved.
  """
  workdir, step = locate(path)
  where = directory(workdir) / str(step)
  try:
    about = header(where)
    ema = any(name.startswith("ema/") for name in about.arrays)
    part = "ema" if averaged and ema else "params"
    found = _read_to_host(where, part)
    if verify:
      refuse(about, changed(about, found))
  except Damaged as e:
    others = [s for s in committed(workdir) if s != step]
    take = f"take {where.parent / str(others[-1])}" if others else "take a copy"
    raise UserError(f"{e}. Instead of it {take}.") from e
  info = about.metadata | {"step": step, "path": str(where), "averaged": ema}
  return found[part], info


def verify(path: epath.PathLike) -> tuple[int, list[str]]:
  """The number of arrays, and the names of those that are not as saved."""
  workdir, step = locate(path)
  about = header(directory(workdir) / str(step))
  parts = sorted({name.split("/")[0] for name in about.arrays})
  names: list[str] = []
  for part in parts:
    names += changed(about, _read_to_host(about.path, part))
  return len(about.arrays), names


def restore_at(workdir: epath.PathLike, step: int, abstract: Any) -> Any:
  """The state of one checkpoint, verified; moves nothing."""
  where = directory(workdir) / str(step)
  about, found = read_state(where, parts_of(abstract))
  refuse(about, changed(about, found))
  return state_of(abstract, found)


def read_state(
  where: epath.Path, targets: dict[str, Any]
) -> tuple[Header, dict[str, Any]]:
  """All parts as `targets` says; not compared with their digests.

  UserError: damaged, or of another model.
  """
  about = header(where)
  _check_model(about, targets)
  return about, _read(where, targets)


def mend_config(workdir: epath.PathLike) -> str:
  """Writes a damaged config.json anew, as the newest checkpoint has it.

  Returns a sentence about it; "" if it is sound, or no checkpoint can tell.
  """
  try:
    workdir_lib.read_config(workdir)
  except workdir_lib.DamagedConfig:
    with contextlib.suppress(UserError, KeyError):
      path, step = locate(workdir)
      found = header(directory(path) / str(step)).metadata
      workdir_lib.write_config(path, found["config"], found["resolved"])
      return (
        f"{path}/config.json was damaged, and is written anew as checkpoint "
        f"{step} has it."
      )
  except UserError:
    pass
  return ""


def parts_of(state: Any) -> dict[str, Any]:
  """The state as the named parts that a checkpoint consists of."""
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  fields = {k: v for k, v in fields.items() if v is not None}
  parts = {k: fields.pop(k) for k in ("params", "ema") if k in fields}
  return parts | {"training": fields}


def state_of(abstract: Any, parts: dict[str, Any]) -> Any:
  """The state of these parts."""
  own = {k: v for k, v in parts.items() if k != "training"}
  return dataclasses.replace(abstract, **own, **parts["training"])


@contextlib.contextmanager
def _alone() -> Iterator[None]:
  """Lets Orbax read without waiting for other hosts.

  Each reads its own part of every array; whether all could is asked in
  `mixer.saving`, where waiting has an end.
  """
  me = ocp.multihost.process_index()
  context = ocp.Context()
  context.multiprocessing.primary_host = me
  context.multiprocessing.active_processes = {me}
  with context:
    yield


@contextlib.contextmanager
def _noticing_damage(where: epath.Path) -> Iterator[None]:
  """Whatever reading raises means damage, but for too little memory."""
  try:
    yield
  except Exception as e:
    if errors.is_memory(e):
      raise
    message = f"checkpoint {where} is damaged: can't be read: {reason(e)}"
    raise Damaged(message) from e


def steps_in(folder: epath.Path) -> list[epath.Path]:
  """The folders in it that are named like steps."""
  return [d for d in inside(folder) if d.name.isdigit() and d.is_dir()]


def inside(folder: epath.Path) -> list[epath.Path]:
  """What is in a folder, nothing if it isn't there."""
  try:
    return list(folder.iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return []  # An object store has no empty folders.


def is_committed(path: epath.Path) -> bool:
  """Whether the save of this checkpoint came to its end."""
  return (path / COMMITTED).exists()


def reason(error: BaseException) -> str:
  """An error in one line; Orbax says this at the end of a long one."""
  full = "No space left on device"
  return full if full in str(error) else first_line(error)
