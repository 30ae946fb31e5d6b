"""Starting the processes of one run: which they are, and where they meet.

Nothing is tried and given up: the flags, or variables that a scheduler sets,
say whether there are other processes. Where they say so and those don't come,
the start fails.
"""

import dataclasses
import importlib.util
import os
import re

import jax
from jax._src import hardware_utils  # Counts TPU chips without starting them.

from mixer.errors import UserError, first_line

CLUSTERS = ("auto", "none", "explicit", "slurm", "gke", "tpu")
# What JAX calls the ones that it can ask for addresses itself.
_METHODS = {"slurm": "slurm", "gke": "gketpu", "tpu": "gcetpu"}
_SLURM = (
  "SLURM_JOB_ID",
  "SLURM_STEP_NODELIST",
  "SLURM_NTASKS",
  "SLURM_PROCID",
  "SLURM_LOCALID",
)
_GKE = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
# Seconds for which processes wait for each other to appear, and to end.
_START, _END = 300, 60


@dataclasses.dataclass(frozen=True)
class Request:
  """What the command line says about other processes.

  Attributes:
    cluster: one of `CLUSTERS`.
    coordinator_address: HOST:PORT, where process 0 listens; "": see `_filled`.
    num_processes: of the run; 0: see `_filled`.
    process_id: this one, from 0; -1: see `_filled`.
    heartbeat_seconds: a process not heard of for so long counts as dead, and
      all others end.
  """

  cluster: str = "auto"
  coordinator_address: str = ""
  num_processes: int = 0
  process_id: int = -1
  heartbeat_seconds: int = 60


def start(request: Request) -> str:
  """Meets the other processes, if there are any; before JAX finds devices.

  Args:
    request: of the command line.

  Returns:
    The kind of cluster, "none" for a single process.

  Raises:
    UserError: the flags contradict each other, or the others don't come.
  """
  request = _filled(request)
  kind = find(request) if request.cluster == "auto" else request.cluster
  if kind == "none":
    return kind
  # Collectives between processes on CPUs; other platforms don't look at it.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # It would take SIGTERM from us; `mixer.stop` does what it does, and more.
  jax.config.update("jax_enable_preemption_service", False)
  arguments: dict[str, object] = {
    "cluster_detection_method": _METHODS.get(kind)
  }
  if kind == "explicit":
    _check_explicit(request)
    arguments = {
      "coordinator_address": request.coordinator_address,
      "num_processes": request.num_processes,
      "process_id": request.process_id,
      "cluster_detection_method": "deactivate",
    }
  try:
    jax.distributed.initialize(
      **arguments,  # pyright: ignore[reportArgumentType]
      initialization_timeout=_START,
      heartbeat_timeout_seconds=request.heartbeat_seconds,
      shutdown_timeout_seconds=_END,
    )
  except (RuntimeError, ValueError) as e:
    raise UserError(
      f"the processes of this run did not meet within {_START} s "
      f"(--cluster={kind}: {first_line(e)}). Start the same command on all of "
      "them; or, for a single process, add --cluster=none."
    ) from e
  return kind


def find(request: Request) -> str:
  """Which kind of cluster this is: by flags, then by what is set here."""
  if request.coordinator_address or request.num_processes:
    return "explicit"
  if all(name in os.environ for name in _SLURM):
    return "slurm" if int(os.environ["SLURM_NTASKS"]) > 1 else "none"
  # Asked for another platform, or without the library for it.
  platform = os.environ.get("JAX_PLATFORMS", "")
  if platform not in ("", "tpu") or not importlib.util.find_spec("libtpu"):
    return "none"
  if not hardware_utils.num_available_tpu_chips_and_device_id()[0]:
    return "none"
  for name in _GKE:
    if name in os.environ:
      return "gke" if "," in os.environ[name] else "none"
  # A TPU VM knows from its metadata server of how many it is one.
  return "none" if "TPU_SKIP_MDS_QUERY" in os.environ else "tpu"


def _filled(request: Request) -> Request:
  """What no flag says is taken from the environment."""

  def number(name: str, flag: int, unset: int) -> int:
    text = os.environ.get(name, "")
    if flag != unset or not text:
      return flag
    if not text.isdigit():
      raise UserError(f"{name}={text!r} should be a number of processes.")
    return int(text)

  return dataclasses.replace(
    request,
    coordinator_address=request.coordinator_address
    or os.environ.get("JAX_COORDINATOR_ADDRESS", ""),
    num_processes=number("JAX_NUM_PROCESSES", request.num_processes, 0),
    process_id=number("JAX_PROCESS_ID", request.process_id, -1),
  )


def _check_explicit(request: Request) -> None:
  example = (
    "--coordinator_address=HOST:PORT --num_processes=4 --process_id=0 (to 3, "
    "another one in each; or the variables JAX_COORDINATOR_ADDRESS, "
    "JAX_NUM_PROCESSES and JAX_PROCESS_ID)"
  )
  if not re.fullmatch(r".+:\d{1,5}", request.coordinator_address):
    raise UserError(
      f"--coordinator_address={request.coordinator_address!r} should be the "
      f"host of process 0 and a free port there: {example}."
    )
  n, i = request.num_processes, request.process_id
  if n < 1 or not 0 <= i < n:
    raise UserError(
      f"--num_processes={n} and --process_id={i} should be how many processes "
      f"the run has, and which of them this is: {example}."
    )


def end() -> None:
  """Waits for the other processes to end too; nothing for a single one."""
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()
