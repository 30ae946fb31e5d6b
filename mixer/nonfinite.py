"""What is kept, and said, of an update that met a NaN or an infinity."""

import shlex
from collections.abc import Sequence

import jax
from etils import epath

from mixer import config as config_lib
from mixer import reporter
from mixer import workdir as workdir_lib
from mixer.errors import UserError

# Of the batch's records, how many a sentence names.
_SHOWN = 6


def file(workdir: epath.Path, step: int) -> epath.Path:
  """Where an update's report lies."""
  return workdir / "nonfinite" / f"{step}.json"


def replay_command(workdir: epath.Path, step: int) -> str:
  """What makes that update again, slowly, and looks where it breaks."""
  return f"python -m tools.replay {shlex.quote(str(workdir))} --step={step}"


def describe(
  workdir: epath.Path,
  error: reporter.NotFinite,
  config: config_lib.Config,
  records: Sequence[int],
) -> str:
  """Writes the report of an update, and returns sentences about it.

  Args:
    workdir: of the run.
    error: what was not finite.
    config: the run's.
    records: of the update's batch, in its order: their places in the data set.
  """
  path, command = file(workdir, error.step), replay_command(workdir, error.step)
  if jax.process_index() == 0:
    path.parent.mkdir(exist_ok=True)
    content = {
      "step": error.step,
      "metric": error.name,
      "value": str(error.value),
      "data": config.data.name,
      "split": config.data.train_split,
      "records": list(records),
      "replay": command,
    }
    workdir_lib.write_json(path, content)
  shown = ", ".join(map(str, records[:_SHOWN]))
  more = ", ..." if len(records) > _SHOWN else ""
  return (
    f"Its batch had records {shown}{more} of {config.data.name}, "
    f"{config.data.train_split} (all {len(records)} in {path}). "
    f"Look where it breaks: {command}"
  )


def stopped(
  error: reporter.NotFinite, described: str, newest: int | None, limit: int
) -> UserError:
  """The error that ends training.

  Args:
    error: what was not finite.
    described: by `describe`.
    newest: the step of the newest checkpoint, None if there is none.
    limit: of updates skipped in a row.
  """
  kept = (
    f"The newest checkpoint, of step {newest}, is from before."
    if newest is not None
    else "There is no checkpoint from before."
  )
  skipped = f" The {limit} updates before it were skipped." * bool(
    error.skipped
  )
  return UserError(
    f"{error}: training stops there.{skipped} {kept} {described}\n"
    "Lower optimizer.learning_rate or optimizer.clip_norm, lengthen "
    "schedule.warmup, or try model.dtype=float32, in a new --workdir "
    "(--config.init_from takes the weights of that checkpoint); or go on "
    "without such updates: the same command with --config.nonfinite=skip."
  )
