"""The processes of one run: how they meet, agree, and end together.

Flags, or variables that a scheduler sets, say whether there are others; where
they say so and the others don't come, the start fails. What processes tell
each other goes through JAX's coordination service, not through devices, and
every wait has an end.
"""

import collections
import contextlib
import importlib.util
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

# The service's client and the count of TPU chips have no public name.
from jax._src import distributed, hardware_utils

from mixer import config as config_lib
from mixer import errors, runtime, stop
from mixer.errors import UserError, first_line

# What JAX calls the clusters that it can ask for addresses itself.
_METHODS = {"slurm": "slurm", "gke": "gketpu", "tpu": "gcetpu"}
_SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
_GKE = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
# Seconds that processes wait for each other: to appear, to end, in between.
_START, _END, TIMEOUT = 300, 60, 120.0
# Seconds that process 0, which runs the service, stays after a failure.
_READ = 1.0
# What may differ between hosts: of the config, and of `runtime.environment`.
_HOST = ("host", "cpu_count", "xla_flags", "source", "commit")
_OWN = ("data.data_dir", "data.threads", "data.prefetch_batches")


class HostsError(UserError):
  """The processes of a run could not agree; all of them have to end."""


def start(
  platform: str = "",
  cluster: str = "auto",
  coordinator_address: str = "",
  num_processes: int = 0,
  process_id: int = -1,
  heartbeat_seconds: int = 60,
) -> str:
  """Meets the other processes, if there are any, and starts JAX.

  Takes the command line's flags: 0 and -1 mean that there was none. Returns the
  kind of cluster, "none" for a single process. UserError: flags contradict each
  other, the others don't come, or JAX finds no such device.
  """
  runtime.configure(platform)
  address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
  count = num_processes or _number("JAX_NUM_PROCESSES", 0)
  index = process_id if process_id >= 0 else _number("JAX_PROCESS_ID", -1)
  if cluster == "auto":
    cluster = find(explicit=bool(address or count))
  if cluster != "none":
    which: dict[str, Any] = {"cluster_detection_method": _METHODS.get(cluster)}
    if cluster == "explicit":
      _check(address, count, index)
      which = {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
      }
    # Collectives between CPUs; and SIGTERM is for `mixer.stop`.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)
    try:
      jax.distributed.initialize(
        **which,
        initialization_timeout=_START,
        heartbeat_timeout_seconds=heartbeat_seconds,
        shutdown_timeout_seconds=_END,
      )
    except (RuntimeError, ValueError) as e:
      raise UserError(
        f"the processes of this run did not meet within {_START} s "
        f"(--cluster={cluster}: {first_line(e)}). Start the same command on "
        "all of them; or, for a single process, add --cluster=none."
      ) from e
  runtime.find_devices(platform)
  return cluster


def find(explicit: bool = False) -> str:
  """The kind of cluster, by flags and then by the environment."""
  if explicit:
    return "explicit"
  if all(f"SLURM_{name}" in os.environ for name in _SLURM):
    return "slurm" if int(os.environ["SLURM_NTASKS"]) > 1 else "none"
  if os.environ.get("JAX_PLATFORMS", "") not in ("", "tpu"):
    return "none"
  if not importlib.util.find_spec("libtpu"):
    return "none"
  if not hardware_utils.num_available_tpu_chips_and_device_id()[0]:
    return "none"
  for name in _GKE:
    if name in os.environ:
      return "gke" if "," in os.environ[name] else "none"
  # A TPU VM asks its metadata server how many hosts there are.
  return "none" if "TPU_SKIP_MDS_QUERY" in os.environ else "tpu"


def _number(name: str, unset: int) -> int:
  value = os.environ.get(name, str(unset))
  if value != str(unset) and not value.isdigit():
    raise UserError(f"{name}={value!r} should be a number of processes.")
  return int(value)


def _check(address: str, count: int, index: int) -> None:
  if not re.fullmatch(r".+:\d{1,5}", address) or not 0 <= index < count:
    raise UserError(
      f"--coordinator_address={address!r}, --num_processes={count} and "
      f"--process_id={index} should be the host of process 0 with a free port, "
      "the number of processes, and which of them this is, from 0: "
      "--coordinator_address=HOST:PORT --num_processes=4 --process_id=0. The "
      "variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
      "JAX_PROCESS_ID say the same."
    )


def end() -> None:
  """Waits for the other processes to end too."""
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def several() -> bool:
  """Whether there are other processes; starts nothing."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def say(line: object) -> None:
  """Prints a line if there is one, on the first process alone."""
  if line and jax.process_index() == 0:
    stop.say(line)


_rounds: collections.Counter[str] = collections.Counter()


def gather(name: str, value: Any, timeout: float = TIMEOUT) -> list[Any]:
  """Every process's value (small JSON), in their order, on every process.

  All processes have to call it, in the same order for one name. HostsError: not
  all have called it within `timeout` seconds.
  """
  if jax.process_count() == 1:
    return [json.loads(json.dumps(value))]
  _rounds[name] += 1  # So all processes count alike, and no key comes twice.
  key = f"mixer/{name}/{_rounds[name]}"
  client: Any = distributed.global_state.client
  try:
    client.key_value_set(f"{key}/{jax.process_index():06d}", json.dumps(value))
    client.wait_at_barrier(f"{key}/all", round(timeout * 1000))
    found = client.key_value_dir_get(f"{key}/")
  except RuntimeError as e:
    raise HostsError(
      f"not all {jax.process_count()} processes of this run came to "
      f"{name!r} within {timeout:g} s ({first_line(e)}). Look at what the "
      "others said; then start the same command on all of them again: it goes "
      "on from the newest checkpoint."
    ) from e
  return [json.loads(value) for _, value in sorted(found)]


def broadcast(name: str, value: Any) -> Any:
  """The first process's value, on every process; see `gather`."""
  return gather(name, value if jax.process_index() == 0 else None)[0]


def on_first(name: str, function: Callable[[], Any]) -> Any:
  """Calls a function on the first process; its result or UserError on all."""
  result, refusal = None, ""
  if jax.process_index() == 0:
    try:
      result = function()
    except UserError as e:
      if jax.process_count() == 1:
        raise
      refusal = str(e)
  result, refusal = broadcast(name, (result, refusal))
  if refusal:
    raise UserError(refusal, lines=True)  # It is safe already.
  return result


class Board:
  """Messages to all processes, which have to look for them."""

  def __init__(self):
    self._client: Any = distributed.global_state.client

  def post(self, kind: str, message: str) -> None:
    """Leaves a message; the first of a kind stays."""
    # Refused: there is one, or the service is gone.
    with contextlib.suppress(RuntimeError):
      self._client.key_value_set(f"mixer/board/{kind}", message)

  def read(self) -> dict[str, str]:
    """Messages by kind; none where the service is gone."""
    try:
      found = self._client.key_value_dir_get("mixer/board/")
    except RuntimeError:
      return {}
    return {key.rpartition("/")[2]: message for key, message in found}

  def stay(self) -> None:
    """Call before ending: gives the others time to read."""
    if jax.process_index() == 0:
      time.sleep(_READ)

  def next_after(self, passed: int) -> int:
    """The first check that no process has passed; -1, never, if not all ask."""
    try:
      return 1 + max(gather("stop", passed))
    except HostsError:
      return -1


def end_failed(error: Exception, message: str) -> None:
  """Ends one of several processes that has failed; returns for a single one.

  An error that comes of another's loss ends in `stop.LOST`, or in what the
  other has failed by. Else the others get to read the message.
  """
  if not several():
    return
  board, failure = Board(), ""
  lost = isinstance(error, HostsError | jax.errors.JaxRuntimeError)
  lost = lost and not errors.is_memory(error)
  if not lost:
    board.post("failed", f"{_own_name()} failed: {message}")
  elif failure := board.read().get("failed", ""):
    stop.say(f"\n{failure}", sys.stderr)
  else:
    stop.exit_at_once(stop.LOST)
  board.stay()
  stop.exit_at_once(stop.FAILED)


def _own_name() -> str:
  return f"process {jax.process_index()} on {socket.gethostname()}"


def check_same(config: config_lib.Config, more: Mapping[str, Any]) -> None:
  """Refuses to start processes that would run different things.

  Compares config, code, versions, machines, and `more` facts (JSON).
  """
  if jax.process_count() == 1:
    return
  flat = config_lib.flatten(config)
  about = runtime.environment() | {"local_devices": jax.local_device_count()}
  groups = {
    "config": {k: v for k, v in flat.items() if k not in _OWN},
    "code": runtime.code(),
    "versions": about.pop("versions"),
    "machine": {k: v for k, v in about.items() if k not in _HOST},
    "run": more,
  }
  facts = {
    f"{g} {k}": v for g, found in groups.items() for k, v in found.items()
  }
  (first, ours), *others = gather("start", [_own_name(), facts])
  lines = [
    f"{name}: {key}: {theirs.get(key)!r}, where {first} has {ours.get(key)!r}"
    for name, theirs in others
    for key in sorted({*ours, *theirs})
    if theirs.get(key) != ours.get(key)
  ]
  if lines:
    raise UserError(
      "the processes of this run differ, so none of them starts:\n  "
      + "\n  ".join(map(errors.printable, lines[:20]))
      + "\nGive all of them the same code, libraries, data and command line.",
      lines=True,
    )
