"""Saves a run's checkpoints in the background; restores the newest whole."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from mixer import checkpoints, distributed, durations, files
from mixer import workdir as workdir_lib
from mixer.errors import UserError, first_line

_UNFINISHED = ".orbax-checkpoint-tmp"  # In the names of what Orbax writes,
_REMOVED = ".removed"  # and of what we are removing.
# Seconds: thirty years; and for the slowest host to read a checkpoint.
_LONG, _READING = 10**9, 1800.0


class SaveError(UserError):
  """A checkpoint could not be written."""

  at_once = True


class Checkpoints:
  """The checkpoints of one run; all its hosts have to make the same calls.

  `latest` is the newest step that is committed, `metadata` of the checkpoint
  that was restored; None without one. Leaving the context waits for a save.
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
    self.directory = checkpoints.directory(workdir)
    self.metadata: dict[str, Any] | None = None
    self._keep, self._keep_every, self._scores = keep, keep_every, scores
    self._remote = files.is_remote(self.directory)
    self._restored: int | None = None
    # The step that is being saved, its parts, and Orbax's answer.
    self._pending: tuple[int, list[str], Any] | None = None
    distributed.on_first("checkpoints", self._tidy)
    self.latest = max(self._committed(), default=None)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type | None, *unused: object) -> None:
    try:
      self.wait()
    except SaveError:
      if kind is None:  # Else what brought us here comes first.
        raise

  def _committed(self) -> list[int]:
    """As the first host sees them, on all."""
    return distributed.on_first(
      "checkpoints", lambda: checkpoints.steps_in(self.directory)
    )

  def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
    """Starts a save; returns once the state, a dataclass, may be donated."""
    self.wait()
    context = checkpoints.ocp.Context()
    # Else a folder that can't be made leaves threads that wait for it.
    context.asynchronous.create_directories_asynchronously = False
    if jax.process_count() == 1:
      # Orbax waits by the time of day: should that jump, a sound save would
      # count as failed. `hang_seconds` bounds the wait.
      context.asynchronous.timeout_secs = _LONG
    if self._remote:  # A rename there would copy it bit by bit.
      context.atomicity.mode = checkpoints.ocp.options.AtomicityMode.COMMIT_FILE
    try:
      if jax.process_index() == 0 and not self._remote:
        # Not its parent: a workdir that has vanished isn't made anew.
        self.directory.mkdir(exist_ok=True)
      parts = checkpoints.parts_of(state)
      content = checkpoints.sealed(metadata, parts)
      with context:
        response = checkpoints.ocp.save_checkpointables_async(
          self.directory / str(step), parts, custom_metadata=content
        )
    except (OSError, ValueError) as e:
      raise self._failure(step, e) from e
    self._pending = (step, list(parts), response)

  def wait(self) -> None:
    """Returns when the save under way is committed; SaveError if it failed."""
    if self._pending is None:
      return
    (step, parts, response), self._pending = self._pending, None
    try:
      response.result()
      self.latest, where = step, self.directory / str(step)
      if jax.process_index() == 0:
        # Orbax doesn't notice when it is removed while being written.
        if not all((where / part).is_dir() for part in parts):
          raise OSError("it has vanished")
        self._remove_old(step)
    except Exception as e:
      raise self._failure(step, e) from e

  def _remove_old(self, step: int) -> None:
    """Removes what need not stay, after the commit of this step."""
    steps = checkpoints.steps_in(self.directory)
    scores = {s: v for s, v in self._scores().items() if s in steps}
    stay = {*steps[-self._keep :], step, self._restored}
    stay |= {s for s in steps if durations.is_due(self._keep_every, s)}
    for old in sorted({*steps} - stay - {checkpoints.best(scores)}):
      try:
        _remove(self.directory / str(old))
      except files.failures(self.directory) as e:
        distributed.say(
          f"checkpoint {self.directory / str(old)} can't be removed: "
          f"{files.reason(e)}. It is left as it is."
        )

  def _failure(self, step: int, error: Exception) -> SaveError:
    if not self._remote and not self.directory.parent.exists():
      return SaveError(workdir_lib.vanished(self.directory.parent))
    # Orbax says this at the end of a long line.
    full = "No space left on device"
    why = full if full in str(error) else first_line(error)
    return SaveError(
      f"the checkpoint of step {step} could not be written to "
      f"{self.directory}: {why}; those of earlier steps are whole. Mend the "
      "cause (most often a full disk or missing rights) and start the same "
      "command again."
    )

  def restore(self, abstract: Any) -> tuple[Any, int]:
    """The newest state that is whole, laid out as `abstract` says; its step.

    Damaged ones that are newer are reported, and moved to
    `checkpoints.damaged`. A step is taken only when all hosts could take it.
    UserError: one is of another model; or none is whole.
    """
    self.wait()
    wrong: dict[int, checkpoints.Damaged] = {}
    for step in reversed(self._committed()):
      path = self.directory / str(step)
      try:
        about, found = _together(checkpoints.read_state, path, abstract)
        # Of several hosts, all have to take part in it.
        names = checkpoints.changed(about, found)
        _together(checkpoints.refuse, about, names)
      except checkpoints.Damaged as e:
        wrong[step] = e
        continue
      for old, error in wrong.items():
        at = distributed.on_first(
          "damaged", lambda old=old: _move_aside(self.directory / str(old))
        )
        distributed.say(
          f"{error}. It is now in {at}; going on from checkpoint {step}."
        )
      self.metadata, self.latest, self._restored = about.metadata, step, step
      return checkpoints.state_of(abstract, found), step
    raise UserError(
      f"none of the checkpoints in {self.directory} is whole "
      f"({'; '.join(map(str, wrong.values()))}). They are left as they are. "
      "Put one from a copy in their place, or start in another --workdir."
    )

  def _tidy(self) -> None:
    """Removes unfinished saves and removals, moves uncommitted steps aside."""
    with files.writing(self.directory):
      for path in checkpoints.contents(self.directory):
        if _UNFINISHED in path.name or path.name.endswith(_REMOVED):
          path.rmtree()
      for step in checkpoints.steps_in(self.directory, committed=False):
        path = self.directory / str(step)
        if self._remote:  # A killed save leaves it so.
          path.rmtree()
        at = "removed" if self._remote else f"now in {_move_aside(path)}"
        distributed.say(
          f"{path} was never finished, or has lost its mark of that: it "
          f"doesn't count as a checkpoint, and is {at}."
        )


def _together(function: Callable[..., Any], *args: Any) -> Any:
  """Calls a function on every host; what one refuses, all refuse."""
  result, refusal = None, None
  try:
    result = function(*args)
  except UserError as e:
    refusal = [isinstance(e, checkpoints.Damaged), str(e)]
  found = distributed.gather("reading a checkpoint", refusal, _READING)
  for damaged, message in sorted(filter(None, found)):
    raise (checkpoints.Damaged if damaged else UserError)(message, lines=True)
  return result


def _remove(path: epath.Path) -> None:
  """Removes a checkpoint; a kill leaves it whole, or not counting."""
  if files.is_remote(path):
    (path / checkpoints.COMMITTED).unlink(missing_ok=True)
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


def _files_in(folder: epath.Path, prefix: str = "") -> Iterator[str]:
  """The names of all files in it, those in folders as `params/_METADATA`."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files_in(path, f"{prefix}{path.name}/")
    else:
      yield prefix + path.name
