"""Saves checkpoints: asynchronously, with digests, keeping those that are due.

Checkpoint N holds the state after N updates: `params` by themselves, so that
weights can be loaded without the optimizer, the average as `ema`, and the rest
as `training`. Orbax writes it in the background and marks it as committed at
the very end; what has no such mark doesn't count.
"""

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint.experimental.v1
from etils import epath

from mixer import durations, train_step
from mixer import workdir as workdir_lib
from mixer.cluster import hosts
from mixer.errors import UserError
from mixer.storage import (
  digests,
  finding,
  inventory,
  restoring,
  retention,
  saved,
)
from mixer.storage.finding import committed, locate
from mixer.storage.saved import load_params

__all__ = [
  "Checkpoints",
  "SaveError",
  "committed",
  "load_params",
  "locate",
  "restore_at",
]

# Orbax's annotations don't fit its own classes.
ocp: Any = orbax.checkpoint.experimental.v1


_LONG = 10**9  # Seconds; thirty years.


class SaveError(UserError):
  """A checkpoint could not be written."""

  at_once = True


class Checkpoints:
  """The checkpoints of one workdir.

  Use as a context manager: leaving it waits for a save under way. Of several
  hosts, all have to make the same calls; the first alone moves and removes.

  Attributes:
    directory: where they lie.
    saving: the step of the newest save, None before the first.
    metadata: of the checkpoint that was restored, None if none was.
  """

  def __init__(
    self,
    workdir: finding.Path,
    keep: int = 1,
    *,
    keep_every: durations.Interval = 0,
    best: Callable[[], Mapping[int, float]] | None = None,
    tell: Callable[[str], None] = print,
  ):
    """Opens or makes the directory; removes what a killed save has left.

    Beside those named here, the one that was restored stays: it has been read
    and found whole, which is more than is known of younger ones.

    Args:
      workdir: of the run.
      keep: how many stay, the newest ones.
      keep_every: those at multiples of so many steps stay as well; 0: none.
      best: gives a metric by step, higher is better, as far as it is known; of
        the checkpoints there are, the best one stays as well.
      tell: takes sentences for people.

    Raises:
      UserError: it can't be made.
    """
    self.directory = finding.directory(workdir)
    self.saving: int | None = None
    self.metadata: dict[str, Any] | None = None
    self._keep, self._keep_every = keep, keep_every
    self._best = best or dict
    self._tell = tell if jax.process_index() == 0 else lambda _: None
    self._restored: int | None = None
    self._pending: concurrent.futures.Future[list[str]] | None = None
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
    said, steps = hosts.on_first(
      "checkpoints", lambda: (finding.tidy(self.directory), self._committed())
    )
    for sentence in said:
      self._tell(sentence)
    self._latest: int | None = max(steps, default=None)

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

  @property
  def latest(self) -> int | None:
    """The newest step that is committed, None if there is none."""
    self.wait()
    return self._latest

  def save(
    self, step: int, state: train_step.TrainState, metadata: dict[str, Any]
  ) -> None:
    """Starts a save; returns once the state may be donated.

    Args:
      step: updates done.
      state: after them.
      metadata: JSON, saved beside it.

    Raises:
      SaveError: this save or the one before it failed.
    """
    self.wait()
    self.saving = step
    first = jax.process_index() == 0
    local = not workdir_lib.is_remote(self.directory)
    try:
      if first and local and not self.directory.exists():
        self.directory.mkdir()  # Its parent is there, or has vanished too.
        self._tell(
          f"{self.directory} had vanished, with what was in it, and was made "
          f"anew for the checkpoint of step {step}."
        )
      parts = _parts(state)
      sealed = digests.seal(metadata, parts)
      with self._context():
        response = ocp.save_checkpointables_async(
          self._path(step), parts, custom_metadata=sealed
        )
    except (OSError, ValueError) as e:
      raise self._failure(e) from e
    metrics = dict(self._best()) if first else {}
    self._pending = self._thread.submit(
      self._finish, step, response, list(parts), metrics
    )

  def _committed(self) -> list[int]:
    return committed(self.directory.parent)

  def _path(self, step: int) -> epath.Path:
    return self.directory / str(step)

  def _context(self) -> Any:
    """How Orbax is to save."""
    context = ocp.Context()
    # Else a folder that can't be made leaves threads that wait for it.
    context.asynchronous.create_directories_asynchronously = False
    if jax.process_count() == 1:
      # Orbax waits by the time of day: should that jump by more, a sound save
      # would count as failed. `hang_seconds` bounds the wait.
      context.asynchronous.timeout_secs = _LONG
    if workdir_lib.is_remote(self.directory):
      # To rename a folder of an object store is to copy it bit by bit.
      context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
    return context

  def _finish(
    self,
    step: int,
    response: Any,
    parts: list[str],
    metrics: Mapping[int, float],
  ) -> list[str]:
    """In the background: waits for the commit, removes what is due."""
    response.result()
    if jax.process_index():
      return []
    # Orbax doesn't notice when it is all removed while being written.
    there = [self._path(step) / part for part in parts]
    gone = [path for path in there if not path.is_dir()]
    if gone or not finding.is_committed(self._path(step)):
      raise OSError(f"{(gone or [self._path(step)])[0]} has vanished")
    sentences = []
    try:
      inventory.write(self._path(step))
    except (OSError, UserError) as e:
      sentences.append(
        f"checkpoint {self._path(step)} is saved, but no list of its files: "
        f"{finding.reason(e)}."
      )
    steps = self._committed()
    kept = retention.kept(steps, self._keep, self._keep_every, metrics)
    for old in sorted({*steps} - kept - {step, self._restored}):
      try:
        finding.remove(self._path(old))
      except OSError as e:
        sentences.append(
          f"checkpoint {self._path(old)} can't be removed: "
          f"{finding.reason(e)}. It is left as it is."
        )
    return sentences

  def wait(self) -> None:
    """Returns when the save under way is committed.

    Raises:
      SaveError: it failed.
    """
    pending, self._pending = self._pending, None
    if pending is None:
      return
    try:
      sentences = pending.result()
    except Exception as e:
      raise self._failure(e) from e
    self._latest = self.saving
    for sentence in sentences:
      self._tell(sentence)

  def _failure(self, error: Exception) -> SaveError:
    workdir = self.directory.parent
    if not workdir_lib.is_remote(workdir) and not workdir.exists():
      return SaveError(workdir_lib.vanished(workdir))
    whole = []
    with contextlib.suppress(OSError):
      whole = [s for s in self._committed() if s != self.saving]
    kept, then = "There is none yet.", "begins anew"
    if whole:
      kept = f"The newest whole one is that of step {whole[-1]}."
      then = "goes on from there"
    return SaveError(
      f"the checkpoint of step {self.saving} could not be written to "
      f"{self.directory}: {finding.reason(error)}. {kept} Mend the cause "
      "(most often a full disk or missing rights) and start the same command "
      f"again: it {then}."
    )

  def restore(
    self, abstract: train_step.TrainState
  ) -> tuple[train_step.TrainState, int]:
    """The newest state that is whole, laid out as `abstract` says.

    Damaged ones that are newer are told, and moved to `checkpoints.damaged`
    beside the directory.

    Returns:
      The state, and its step.

    Raises:
      UserError: none is whole, or the newest is of another model.
    """
    self.wait()
    steps = hosts.on_first("checkpoints", self._committed)
    found, step, self.metadata = restoring.newest_whole(
      self.directory, steps, _parts(abstract), self._tell
    )
    self._latest = self._restored = step
    return _state(abstract, found), step


def restore_at(
  workdir: finding.Path, step: int, abstract: train_step.TrainState
) -> train_step.TrainState:
  """The state of one checkpoint, verified; moves nothing.

  Args:
    workdir: of the run.
    step: of the checkpoint.
    abstract: how the state is to lie.

  Raises:
    UserError: it is damaged, or of another model.
  """
  parts = _parts(abstract)
  found = saved.look(finding.directory(workdir) / str(step))
  saved.check_same(found, parts)
  return _state(abstract, saved.load(found, parts))


def _parts(state: train_step.TrainState) -> dict[str, Any]:
  """The state as the named parts that a checkpoint consists of."""
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  fields = {k: v for k, v in fields.items() if v is not None}
  parts = {k: fields.pop(k) for k in ("params", "ema") if k in fields}
  return parts | {"training": fields}


def _state(
  abstract: train_step.TrainState, parts: Mapping[str, Any]
) -> train_step.TrainState:
  """The state of these parts."""
  weights = {k: v for k, v in parts.items() if k != "training"}
  return dataclasses.replace(abstract, **weights, **parts["training"])
