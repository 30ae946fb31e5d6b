"""Checkpoints: what they hold, how they are saved, found, verified and read.

`WORKDIR/checkpoints/N` holds the state after N updates:

  params    the weights by themselves, so that they load without an optimizer
  ema       their average, where the run keeps one
  training  the step and the optimizer's state
  metadata  JSON: what train.py says of the run (config, resolved, class_names,
            origin, environment, history, metrics_lines); `arrays`, the type,
            shape and digest of every array; `arrays_sha256` of all that

Orbax writes it in the background and marks it as committed at the very end;
what has no such mark doesn't count. Paths may be those of an object store.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1
from etils import epath

from mixer import digests, distributed, durations, errors, files, weights
from mixer import workdir as workdir_lib
from mixer.errors import UserError, first_line

# Orbax's annotations don't fit its own classes.
ocp: Any = orbax.checkpoint.experimental.v1

_METADATA = "_CHECKPOINT_METADATA"
_COMMITTED = "commit_success.txt"  # Orbax writes it last.
_UNFINISHED = ".orbax-checkpoint-tmp"  # In the names of what it is writing,
_REMOVED = ".removed"  # and of what we are removing.
_ARRAYS, _SHA256 = "arrays", "arrays_sha256"
# Seconds: thirty years; and for the slowest host to read a checkpoint.
_LONG, _READING = 10**9, 1800.0


class SaveError(UserError):
  """A checkpoint could not be written."""

  at_once = True


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
  found = _steps_in(directory(workdir))
  return sorted(int(d.name) for d in found if _is_committed(d))


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


def _changed(about: Header, found: dict[str, Any]) -> list[str]:
  """The names of arrays in these parts that are not as they were saved."""
  saved = {k: v[2] for k, v in about.arrays.items() if k.split("/")[0] in found}
  return digests.different(digests.of(found), saved)


def _refuse(about: Header, changed: list[str]) -> None:
  if changed:
    shown = weights.shorten(changed)
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
      _refuse(about, _changed(about, found))
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
  changed: list[str] = []
  for part in parts:
    changed += _changed(about, _read_to_host(about.path, part))
  return len(about.arrays), changed


def restore_at(workdir: epath.PathLike, step: int, abstract: Any) -> Any:
  """The state of one checkpoint, verified; moves nothing."""
  targets = _parts(abstract)
  about = header(directory(workdir) / str(step))
  _check_model(about, targets)
  found = _read(about.path, targets)
  _refuse(about, _changed(about, found))
  return _state(abstract, found)


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


class Checkpoints:
  """The checkpoints of one run: saves in the background, keeps what is due.

  A context manager: leaving it waits for a save under way. Of several hosts,
  all have to make the same calls; the first alone moves and removes.

  Attributes:
    directory: where they are.
    metadata: of the checkpoint that was restored, None if none was.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    keep: int = 1,
    *,
    keep_every: durations.Interval = 0,
    scores: Callable[[], Mapping[int, float]] = dict,
  ):
    """Puts away what a killed save has left.

    Of committed ones these stay: the newest `keep`, those at multiples of
    `keep_every` steps (0: none), the best by `scores` (by step, as far as they
    are known), and the one that was restored, known to be whole.
    """
    self.directory = directory(workdir)
    self.metadata: dict[str, Any] | None = None
    self._keep, self._keep_every, self._scores = keep, keep_every, scores
    self._remote = files.is_remote(self.directory)
    self._saving = self._restored = None
    self._pending: concurrent.futures.Future[list[str]] | None = None
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
    for line in distributed.on_first("checkpoints", self._tidy):
      distributed.say(line)
    self._latest = max(self._committed(), default=None)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type | None, *unused: object) -> None:
    try:
      self.wait()
    except SaveError:
      if kind is None:  # Else what brought us here comes first.
        raise
    finally:
      self._thread.shutdown(wait=False)

  def _committed(self) -> list[int]:
    """As the first host sees them, on all."""
    return distributed.on_first(
      "checkpoints", lambda: committed(self.directory.parent)
    )

  @property
  def latest(self) -> int | None:
    """The newest step that is committed, None if there is none."""
    self.wait()
    return self._latest

  def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
    """Starts a save; returns once the state, a dataclass, may be donated."""
    self.wait()
    self._saving = step
    first = jax.process_index() == 0
    try:
      if first and not self._remote:
        # Not its parent: a workdir that has vanished isn't made anew.
        self.directory.mkdir(exist_ok=True)
      parts = _parts(state)
      with self._context():
        response = ocp.save_checkpointables_async(
          self.directory / str(step),
          parts,
          custom_metadata=_sealed(metadata, parts),
        )
    except (OSError, ValueError) as e:
      raise self._failure(e) from e
    scores = dict(self._scores()) if first else {}
    self._pending = self._thread.submit(
      self._finish, step, response, list(parts), scores
    )

  def _context(self) -> Any:
    """How Orbax is to save."""
    context = ocp.Context()
    # Else a folder that can't be made leaves threads that wait for it.
    context.asynchronous.create_directories_asynchronously = False
    if jax.process_count() == 1:
      # Orbax waits by the time of day: should that jump by more, a sound save
      # would count as failed. `hang_seconds` bounds the wait.
      context.asynchronous.timeout_secs = _LONG
    if self._remote:  # A rename there would copy it bit by bit.
      context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
    return context

  def _finish(
    self,
    step: int,
    response: Any,
    parts: list[str],
    scores: Mapping[int, float],
  ) -> list[str]:
    """In the background: waits for the commit, removes what is due."""
    response.result()
    if jax.process_index():
      return []
    # Orbax doesn't notice when it is removed while being written.
    if not all((self.directory / str(step) / p).is_dir() for p in parts):
      raise OSError("it has vanished")
    steps = committed(self.directory.parent)
    stay = {*steps[-self._keep :], step, self._restored}
    stay |= {s for s in steps if durations.is_due(self._keep_every, s)}
    stay.add(best({s: v for s, v in scores.items() if s in steps}))
    lines = []
    for old in sorted({*steps} - stay):
      try:
        _remove(self.directory / str(old))
      except OSError as e:
        lines.append(
          f"checkpoint {self.directory / str(old)} can't be removed: "
          f"{_reason(e)}. It is left as it is."
        )
    return lines

  def wait(self) -> None:
    """Returns when the save under way is committed; SaveError if it failed."""
    pending, self._pending = self._pending, None
    if pending is None:
      return
    try:
      lines = pending.result()
    except Exception as e:
      raise self._failure(e) from e
    self._latest = self._saving
    for line in lines:
      distributed.say(line)

  def _failure(self, error: Exception) -> SaveError:
    workdir = self.directory.parent
    if not self._remote and not workdir.exists():
      return SaveError(workdir_lib.vanished(workdir))
    whole = []
    with contextlib.suppress(OSError):
      whole = [s for s in committed(workdir) if s != self._saving]
    kept = (
      f"that of step {whole[-1]} is whole" if whole else "there is none yet"
    )
    return SaveError(
      f"the checkpoint of step {self._saving} could not be written to "
      f"{self.directory}: {_reason(error)}; {kept}. Mend the cause (most often "
      "a full disk or missing rights) and start the same command again."
    )

  def restore(self, abstract: Any) -> tuple[Any, int]:
    """The newest state that is whole, laid out as `abstract` says; its step.

    Damaged ones that are newer are told, and moved to `checkpoints.damaged`.
    Several hosts pass over the same ones: a step is taken only when all could
    take it. UserError: one is of another model; or none is whole.
    """
    self.wait()
    targets = _parts(abstract)

    def read(path: epath.Path) -> tuple[Header, dict[str, Any]]:
      about = header(path)
      _check_model(about, targets)
      return about, _read(path, targets)

    wrong: dict[int, Damaged] = {}
    for step in reversed(self._committed()):
      path = self.directory / str(step)
      try:
        about, found = _together(read, path)
        # Of several hosts, all have to take part in it.
        _together(_refuse, about, _changed(about, found))
      except Damaged as e:
        wrong[step] = e
        continue
      for old, error in wrong.items():
        at = distributed.on_first(
          "damaged", lambda old=old: _move_aside(self.directory / str(old))
        )
        distributed.say(
          f"{error}. It is now in {at}; going on from checkpoint {step}."
        )
      self.metadata, self._latest, self._restored = about.metadata, step, step
      return _state(abstract, found), step
    raise UserError(
      f"none of the checkpoints in {self.directory} is whole "
      f"({'; '.join(map(str, wrong.values()))}). They are left as they are. "
      "Put one from a copy in their place, or start in another --workdir."
    )

  def _tidy(self) -> list[str]:
    """Removes unfinished saves and removals, moves uncommitted steps aside."""
    lines = []
    with files.writing(self.directory):
      for path in _inside(self.directory):
        if _UNFINISHED in path.name or path.name.endswith(_REMOVED):
          path.rmtree()
      for path in _steps_in(self.directory):
        if not _is_committed(path):
          at = "removed" if self._remote else f"now in {_move_aside(path)}"
          lines.append(
            f"{path} was never finished, or has lost its mark of that: it "
            f"doesn't count as a checkpoint, and is {at}."
          )
          if self._remote:  # A killed save leaves it so.
            path.rmtree()
    return lines


def _parts(state: Any) -> dict[str, Any]:
  """The state as the named parts that a checkpoint consists of."""
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  fields = {k: v for k, v in fields.items() if v is not None}
  parts = {k: fields.pop(k) for k in ("params", "ema") if k in fields}
  return parts | {"training": fields}


def _state(abstract: Any, parts: dict[str, Any]) -> Any:
  """The state of these parts."""
  own = {k: v for k, v in parts.items() if k != "training"}
  return dataclasses.replace(abstract, **own, **parts["training"])


def _sealed(metadata: dict[str, Any], parts: Any) -> dict[str, Any]:
  """The metadata, what is known of every array, and a digest of all that."""
  leaves, found = weights.flatten(parts), digests.of(parts)
  arrays = {
    k: [np.dtype(leaf.dtype).name, list(leaf.shape), found[k]]
    for k, leaf in leaves.items()
  }
  content = metadata | {_ARRAYS: arrays}
  return content | {_SHA256: files.json_sha256(content)}


def _together(function: Callable[..., Any], *args: Any) -> Any:
  """Calls a function on every host; what one refuses, all refuse."""
  result, refusal = None, None
  try:
    result = function(*args)
  except UserError as e:
    refusal = [isinstance(e, Damaged), str(e)]
  said = distributed.gather("reading a checkpoint", refusal, _READING)
  for damaged, message in sorted(filter(None, said)):
    raise (Damaged if damaged else UserError)(message, lines=True)
  return result


@contextlib.contextmanager
def _alone() -> Iterator[None]:
  """Lets Orbax read without waiting for other hosts.

  Each reads its own part of every array; whether all could is asked in
  `_together`, where waiting has an end.
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
    message = f"checkpoint {where} is damaged: can't be read: {_reason(e)}"
    raise Damaged(message) from e


def _steps_in(folder: epath.Path) -> list[epath.Path]:
  return [d for d in _inside(folder) if d.name.isdigit() and d.is_dir()]


def _inside(folder: epath.Path) -> list[epath.Path]:
  try:
    return list(folder.iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return []  # An object store has no empty folders.


def _files_in(folder: epath.Path, prefix: str = "") -> Iterator[str]:
  """The names of all files in it, those in folders as `params/_METADATA`."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files_in(path, f"{prefix}{path.name}/")
    else:
      yield prefix + path.name


def _is_committed(path: epath.Path) -> bool:
  return (path / _COMMITTED).exists()


def _remove(path: epath.Path) -> None:
  """Removes a checkpoint; a kill leaves it whole, or not counting."""
  if files.is_remote(path):
    (path / _COMMITTED).unlink(missing_ok=True)
  else:
    path = path.rename(path.with_name(path.name + _REMOVED))
  path.rmtree()


def _move_aside(path: epath.Path) -> str:
  """Moves a checkpoint to `WORKDIR/checkpoints.damaged`; returns its place."""
  folder = path.parent.with_name("checkpoints.damaged")
  names = (f"{path.name}.{n}" for n in itertools.count(2))
  places = map(folder.joinpath, itertools.chain([path.name], names))
  to = next(place for place in places if not place.exists())
  with files.writing(to, f"Move {path}, which is damaged, away."):
    folder.mkdir(parents=True, exist_ok=True)
    if files.is_remote(path):
      for name in _files_in(path):
        (path / name).copy(to / name)
      _remove(path)
    else:
      path.rename(to)
  return os.fspath(to)


def _reason(error: BaseException) -> str:
  """An error in one line; Orbax says this at the end of a long one."""
  full = "No space left on device"
  return full if full in str(error) else first_line(error)
