"""Checkpoints: what is saved, when a save counts, how it is found again.

Checkpoint N lies in `WORKDIR/checkpoints/N` and holds the state after N
updates: `params` by themselves, so that weights can be loaded without the
optimizer, and the rest as `training`. Orbax writes it in the background and
marks it as committed at the very end; what has no such mark doesn't exist for
us and is removed at the next start.
"""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1

from mixer import step as step_lib
from mixer import weights
from mixer.errors import UserError

# Orbax's annotations don't fit its own classes.
ocp: Any = orbax.checkpoint.experimental.v1
# Orbax writes it last, before it gives the folder its name.
_COMMITTED = "commit_success.txt"


def _parts(state: step_lib.TrainState) -> dict[str, Any]:
  """The state as the named parts that a checkpoint consists of."""
  parts = {
    "params": state.params,
    "training": {"step": state.step, "opt_state": state.opt_state},
  }
  return parts if state.ema is None else parts | {"ema": state.ema}


class SaveError(UserError):
  """A checkpoint could not be written."""


class Checkpoints:
  """The checkpoints of one workdir.

  Use as a context manager: leaving it waits for a save under way.

  Attributes:
    directory: where they lie.
  """

  def __init__(self, workdir: pathlib.Path, keep: int = 1):
    """Opens or makes the directory; removes what a killed save has left.

    Args:
      workdir: of the run.
      keep: how many stay, the newest ones.
    """
    self.directory = workdir / "checkpoints"
    self._response = None
    self._saving = None
    self._orbax = ocp.training.Checkpointer(
      self.directory.absolute(),
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type | None, *unused: object) -> None:
    try:
      self.wait()
      self._orbax.close()
    except Exception as e:
      # Orbax raises a failed save's error once more when it is closed; what
      # brought us here, that error or another, comes first.
      if kind is None:
        raise e if isinstance(e, SaveError) else self._failure(e) from e

  @property
  def latest(self) -> int | None:
    """The newest step that is whole on disk, None if there is none."""
    self.wait()
    return max(committed(self.directory.parent), default=None)

  def save(
    self, step: int, state: step_lib.TrainState, metadata: dict[str, Any]
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
    self._saving = step
    try:
      self._response = self._orbax.save_checkpointables_async(
        step,
        _parts(state),
        force=True,
        custom_metadata=metadata,
      )
    except (OSError, ValueError) as e:
      raise self._failure(e) from e

  def wait(self) -> None:
    """Returns when the save under way is whole on disk.

    Raises:
      SaveError: it failed.
    """
    response, self._response = self._response, None
    if response is None:
      return
    try:
      response.result()
    except Exception as e:
      raise self._failure(e) from e

  def _failure(self, error: Exception) -> SaveError:
    whole = [s for s in committed(self.directory.parent) if s != self._saving]
    kept = (
      f"The newest whole one is that of step {whole[-1]}."
      if whole
      else "There is none yet."
    )
    return SaveError(
      f"the checkpoint of step {self._saving} could not be written to "
      f"{self.directory}: {_reason(error)}. {kept} Mend the cause (most often "
      "a full disk or missing rights) and start the same command again: it "
      "goes on from there."
    )

  def restore(self, abstract: step_lib.TrainState) -> step_lib.TrainState:
    """The newest state, laid out as `abstract` says.

    Raises:
      UserError: it can't be read, or is of another model.
    """
    step = self.latest
    assert step is not None
    where = self.directory / str(step)
    parts = _parts(abstract)
    try:
      saved = self._orbax.checkpointables_metadata(step).metadata
      _check_readable(saved)
      _check_same(where, saved, parts)
      found = self._orbax.load_checkpointables(step, parts)
    except UserError:
      raise
    except Exception as e:
      raise UserError(
        f"checkpoint {where} can't be read: {_reason(e)}. If it is damaged, "
        "move it away: the same command then goes on from the checkpoint "
        "before it."
      ) from e
    rest = found["training"]
    return step_lib.TrainState(
      rest["step"], found["params"], rest["opt_state"], found.get("ema")
    )


def _check_readable(saved: dict[str, Any]) -> None:
  # Orbax has None for the metadata of a part that it can't open.
  for part, metadata in saved.items():
    if metadata is None:
      raise ValueError(f"its part `{part}` can't be opened")


def _check_same(where: pathlib.Path, saved: Any, parts: Any) -> None:
  # Orbax itself loads an array of another shape without a word.
  lines = weights.mismatches(weights.shapes(saved), weights.shapes(parts))
  if lines:
    raise UserError(
      f"checkpoint {where} is of another model or optimizer: "
      + weights.shorten(lines)
      + ". Use the config that it was made with, or another --workdir."
    )


def _reason(error: BaseException) -> str:
  """The first line of an error, or of what caused it, that says something."""
  text = str(error).strip() or repr(error)
  return text.splitlines()[0][:300].rstrip(".")


def locate(path: str) -> tuple[pathlib.Path, int]:
  """Finds a checkpoint.

  Args:
    path: a workdir (for its newest checkpoint), or `WORKDIR/checkpoints/N`.

  Returns:
    The workdir and the step.

  Raises:
    UserError: nothing of the kind is there.
  """
  given = pathlib.Path(path).expanduser()
  if given.parent.name == "checkpoints" and given.name.isdigit():
    workdir, step = given.parent.parent, int(given.name)
  else:
    workdir, step = given, None
  directory = workdir / "checkpoints"
  if not directory.is_dir():
    raise UserError(
      f"there is no checkpoint in {path}: expected a workdir of train.py, "
      "with a folder `checkpoints`, or one of the folders in that."
    )
  found = committed(workdir)
  if step is None and found:
    step = found[-1]
  if step not in found:
    raise UserError(
      f"there is no whole checkpoint{'' if step is None else f' {step}'} in "
      f"{directory}; there are: {', '.join(map(str, found)) or 'none'}."
    )
  return workdir, step


def committed(workdir: pathlib.Path) -> list[int]:
  """The steps of the whole checkpoints in a workdir, in order."""
  directory = workdir / "checkpoints"
  try:
    found = list(directory.iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return []
  return sorted(
    int(d.name)
    for d in found
    if d.name.isdigit() and (d / _COMMITTED).is_file()
  )


def load_params(
  path: str, *, averaged: bool = True
) -> tuple[Any, dict[str, Any]]:
  """Reads weights alone, to the host: no optimizer.

  Args:
    path: as for `locate`.
    averaged: take the average of the weights where the run kept one.

  Returns:
    A nested dict of numpy arrays; and the metadata saved with them, plus
    `step`, `path`, and `averaged`, whether there is an average.

  Raises:
    UserError: nothing there, or not readable.
  """
  workdir, step = locate(path)
  where = (workdir / "checkpoints" / str(step)).absolute()
  try:
    metadata = ocp.checkpointables_metadata(where)
    saved = metadata.metadata or {}
    part = "ema" if averaged and "ema" in saved else "params"
    _check_readable({part: saved[part]})
    host = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), saved[part])
    found = ocp.load_checkpointables(where, {part: host})[part]
  except Exception as e:
    raise UserError(f"checkpoint {where} can't be read: {_reason(e)}.") from e
  info: dict[str, Any] = dict(metadata.custom_metadata or {})
  info |= {"step": step, "path": str(where), "averaged": "ema" in saved}
  return found, info
