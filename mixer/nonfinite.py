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
  return f"python -m mixer replay {shlex.quote(str(workdir))} --step={step}"


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
  kept = f"all {len(records)} in {path}"
  if jax.process_index() == 0:
    content = {
      "step": error.step,
      "metric": error.name,
      "value": str(error.value),
      "data": config.data.name,
      "split": config.data.train_split,
      "records": list(records),
      "replay": command,
    }
    try:
      path.parent.mkdir(exist_ok=True)
      workdir_lib.write_json(path, content)
    except (UserError, *workdir_lib.failures(path)) as e:  # The NaN is told.
      kept = f"{path} can't be written: {workdir_lib.reason(e)}"
  shown = ", ".join(map(str, records[:_SHOWN]))
  more = ", ..." if len(records) > _SHOWN else ""
  return (
    f"Its batch had records {shown}{more} of {config.data.name}, "
    f"{config.data.train_split} ({kept}). "
    f"Look where it breaks: {command}"
  )


def stopped(
  error: reporter.NotFinite,
  described: str,
  newest: int | None,
  config: config_lib.Config,
) -> UserError:
  """The error that ends training.

  Args:
    error: what was not finite.
    described: by `describe`.
    newest: the step of the newest checkpoint, None if there is none.
    config: the run's.
  """
  o, limit = config.optimizer, config.nonfinite_limit
  kept, weights = "There is no checkpoint from before.", ""
  if newest is not None:
    kept = f"The newest checkpoint, of step {newest}, is from before."
    weights = " (--config.init_from takes the weights of that checkpoint)"
  skipped = f" The {limit} updates before it were skipped." * bool(
    error.skipped
  )
  ways = [
    f"lower optimizer.learning_rate ({o.learning_rate:g})",
    f"lower optimizer.clip_norm ({o.clip_norm:g})"
    if o.clip_norm
    else "clip gradients by optimizer.clip_norm=1",
    f"lower optimizer.sam_rho ({o.sam_rho:g})" * bool(o.sam_rho),
    f"lengthen schedule.warmup ({config.schedule.warmup})",
    "try model.dtype=float32" * (config.model.dtype != "float32"),
  ]
  go_on = (
    f"skip more of them in a row, by --config.nonfinite_limit={10 * limit}."
    if config.nonfinite == "skip"
    else "go on without such updates, by --config.nonfinite=skip."
  )
  return UserError(
    f"{error}: training stops there.{skipped} {kept} {described}\n"
    f"In a new --workdir{weights}: {', or '.join(filter(None, ways))}. With "
    f"the same command: {go_on}",
    lines=True,
  )
