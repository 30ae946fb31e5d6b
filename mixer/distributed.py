"""The processes of one run: how they meet, agree, and end together.

What processes tell each other goes through JAX's coordination service, not
through devices, and every wait has an end.
"""

import argparse
import collections
import contextlib
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
_START, _END, _TIMEOUT = 300, 60, 120.0
# What may differ between hosts.
_OWN = (
  *("config.data.data_dir", "config.data.threads", "machine.cpu_count"),
  *("config.data.prefetch_batches", "machine.host", "machine.xla_flags"),
  "machine.commit",
)


class HostsError(UserError):
  """The processes of a run could not agree; all of them have to end."""


def start(args: argparse.Namespace) -> str:
  """Meets the other processes, if any, and starts JAX; the kind of cluster."""
  runtime.configure(args.platform)
  stop.listen_in_thread()
  address, count = args.coordinator_address, args.num_processes
  index, cluster = args.process_id, args.cluster
  if cluster == "auto":
    cluster = "explicit" if address or count else _detected()
  if cluster != "none":
    which: dict[str, Any] = {"cluster_detection_method": _METHODS.get(cluster)}
    if cluster == "explicit":
      if not re.fullmatch(r".+:\d{1,5}", address) or not 0 <= index < count:
        raise UserError(
          f"--coordinator_address={address!r}, --num_processes={count} and "
          f"--process_id={index} should be the host of process 0 with a free "
          "port, HOST:PORT, the number of processes, and which one this is."
        )
      which = {"coordinator_address": address, "num_processes": count}
      which |= {"process_id": index, "cluster_detection_method": "deactivate"}
    # Collectives between CPUs; and SIGTERM is for `mixer.stop`.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)
    try:
      jax.distributed.initialize(
        **which,
        initialization_timeout=_START,
        heartbeat_timeout_seconds=args.heartbeat_seconds,
        shutdown_timeout_seconds=_END,
      )
    except (RuntimeError, ValueError) as e:
      raise UserError(
        f"the processes of this run did not meet within {_START} s "
        f"(--cluster={cluster}: {first_line(e)}). Start the same command on "
        "all of them; or, for a single process, add --cluster=none."
      ) from e
  runtime.find_devices(args.platform)
  return cluster


def _detected() -> str:
  if all(f"SLURM_{name}" in os.environ for name in _SLURM):
    return "slurm" if int(os.environ["SLURM_NTASKS"]) > 1 else "none"
  tpu = os.environ.get("JAX_PLATFORMS", "") in ("", "tpu")
  tpu = tpu and runtime.is_installed("libtpu")
  if not tpu or not hardware_utils.num_available_tpu_chips_and_device_id()[0]:
    return "none"
  for name in _GKE:
    if name in os.environ:
      return "gke" if "," in os.environ[name] else "none"
  # A TPU VM asks its metadata server how many hosts there are.
  return "none" if "TPU_SKIP_MDS_QUERY" in os.environ else "tpu"


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


def gather(name: str, value: Any, timeout: float = _TIMEOUT) -> list[Any]:
  """Every process's value (small JSON) on all, if all call it in one order."""
  if jax.process_count() == 1:
    return [json.loads(json.dumps(value))]
  _rounds[name] += 1  # All processes count alike, and no key comes twice.
  key = f"mixer/{name}/{_rounds[name]}"
  client: Any = distributed.global_state.client
  try:
    client.key_value_set(f"{key}/{jax.process_index():06d}", json.dumps(value))
    client.wait_at_barrier(f"{key}/all", round(timeout * 1000))
    found = client.key_value_dir_get(f"{key}/")
  except RuntimeError as e:
    raise HostsError(
      f"not all {jax.process_count()} processes of this run came to "
      f"{name!r} within {timeout:g} s ({first_line(e)}). Start the same "
      "command on all of them again: it goes on from the newest checkpoint."
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
    """Before ending: process 0, which runs the service, lets others read."""
    if jax.process_index() == 0:
      time.sleep(1.0)

  def next_after(self, passed: int) -> int:
    """The first check that no process has passed; -1, never, if not all ask."""
    try:
      return 1 + max(gather("stop", passed))
    except HostsError:
      return -1


def end_failed(error: Exception, message: str) -> None:
  """Ends one of several processes, LOST if it failed by another's loss."""
  if not several():
    return
  board, failure = Board(), ""
  lost = isinstance(error, HostsError | jax.errors.JaxRuntimeError)
  if not lost or errors.is_memory(error):
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
  """Refuses processes that differ in config, code, machine or `more` (JSON)."""
  if jax.process_count() == 1:
    return
  flat = config_lib.flatten(config)
  machine = runtime.environment() | {"local_devices": jax.local_device_count()}
  facts = {"config": flat, "machine": machine, "run": more}
  facts = config_lib.flatten(facts)
  facts = {k: v for k, v in facts.items() if k not in _OWN}
  (first, ours), *others = gather("start", [_own_name(), facts])
  lines = [
    f"{line} ({first} -> {name})"
    for name, theirs in others
    for line in config_lib.differences(ours, theirs).values()
  ]
  if lines:
    raise UserError(
      "the processes of this run differ, so none of them starts:\n  "
      + "\n  ".join(map(errors.printable, lines[:20]))
      + "\nGive all of them the same code, libraries, data and command line.",
      lines=True,
    )
