"""Flags of the commands that train: train.py and mixer sweep."""

import typing
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from mixer import command_line, stop
from mixer import config as config_lib
from mixer.errors import UserError

if typing.TYPE_CHECKING:
  from etils import epath

# Those of `mixer.distributed`.
_CLUSTERS = ("auto", "none", "explicit", "slurm", "gke", "tpu")

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the run lives: made if missing, gone on with if not."
)
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe; --config.KEY=VALUE overrides a key."
)
_PLATFORM = flags.DEFINE_enum(
  "platform", "", ["", "cpu", "gpu", "tpu"], "Refuse to run on another."
)
_ALLOW_CHANGE = flags.DEFINE_list(
  "allow_change",
  [],
  "Config keys that may differ from the first start; data_set: its data.",
)
_CLUSTER = flags.DEFINE_enum(
  "cluster",
  "auto",
  _CLUSTERS,
  "How the processes of a run find each other: as Slurm, GKE or a TPU VM's "
  "metadata say, by the explicit address in the next flags, or none.",
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
  "coordinator_address", "", "HOST:PORT where process 0 listens."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", 0, "Of the run, over all hosts."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", -1, "Which of them this one is, from 0."
)
_HEARTBEAT_SECONDS = flags.DEFINE_integer(
  "heartbeat_seconds",
  60,
  "A process that is not heard of for so long is dead: all others end.",
  lower_bound=1,
)


def parse(module: str) -> None:
  """Reads the process's flags, before anything heavy is imported.

  What is wrong, and --help, end the process.

  Args:
    module: what is run, as `python MODULE`.
  """
  command_line.parse_early(lambda rest: _check(rest, module))


def _check(argv: Sequence[str], module: str) -> None:
  if len(argv) > 1:
    raise UserError(f"{argv[1]!r} is no flag; flags start with --.")
  if not _WORKDIR.value or _CONFIG.value is None:
    raise UserError(
      f"name a recipe and a folder: python {module} "
      "--config=configs/smoke.py --workdir=runs/smoke; --help lists all flags "
      "and keys."
    )


def command(
  argv: Sequence[str],
  module: str,
  work: "Callable[[config_lib.Config, epath.Path, list[str]], object]",
) -> int:
  """Runs a command line with these flags.

  Args:
    argv: what is left of it beside flags.
    module: what is run, as `python MODULE`.
    work: takes the config, the workdir and --allow_change.

  Returns:
    The exit code.
  """

  def body() -> None:
    _check(argv, module)
    # Here, as what only reads flags needn't wait for them.
    from mixer import distributed, runtime
    from mixer import workdir as workdir_lib

    runtime.quiet_libraries()
    distributed.start(
      _PLATFORM.value,
      _CLUSTER.value,
      _COORDINATOR_ADDRESS.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      _HEARTBEAT_SECONDS.value,
    )
    workdir = workdir_lib.path(str(_WORKDIR.value))
    try:
      work(_CONFIG.value, workdir, _ALLOW_CHANGE.value)
    except stop.Preempted:
      distributed.end()  # All stop: the first may not leave before the last.
      raise
    distributed.end()

  return command_line.run(body)
