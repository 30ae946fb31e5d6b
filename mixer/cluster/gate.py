"""Before the first update: do all processes run the same thing?

Processes that differ in their config, code, libraries or data would compute
something that nobody has asked for, or wait for each other for ever. All of
them tell what they have, and each compares.
"""

import platform
from collections.abc import Mapping
from typing import Any

import jax

from mixer import config as config_lib
from mixer import provenance, runtime, text
from mixer.cluster import hosts
from mixer.errors import UserError

# What may differ between hosts: where data lie, how they are read.
_OWN = (
  "data.data_dir",
  "data.threads",
  "data.prefetch_batches",
)


def facts(
  config: config_lib.Config, more: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
  """What has to be the same on all processes.

  Args:
    config: the run's.
    more: further facts, JSON, by name.
  """
  flat = config_lib.flatten(config)
  device = jax.local_devices()[0]
  return {
    "config": {k: v for k, v in flat.items() if k not in _OWN},
    "code": dict(provenance.code()),
    "versions": runtime.versions(),
    "machine": {
      "platform": device.platform,
      "device_kind": device.device_kind,
      "local_devices": jax.local_device_count(),
      "architecture": platform.machine(),
    },
    "run": dict(more),
  }


def differences(told: list[dict[str, Any]], names: list[str]) -> list[str]:
  """A line for each fact in which a process differs from the first one.

  Args:
    told: `facts` of each.
    names: of each, for people.
  """
  lines = []
  first, missing = told[0], "(none)"
  for name, other in zip(names[1:], told[1:], strict=True):
    for group in first:
      ours, theirs = first[group], other.get(group, {})
      for key in sorted({*ours, *theirs}):
        a, b = ours.get(key, missing), theirs.get(key, missing)
        if a != b:
          lines.append(
            f"{name}: {group} {key}: {b!r}, where {names[0]} has {a!r}"
          )
  return lines


def pass_together(config: config_lib.Config, more: Mapping[str, Any]) -> None:
  """Waits for all processes and compares what they are about to run.

  Args:
    config: the run's.
    more: further facts that have to be equal, JSON, by name.

  Raises:
    UserError: on every process alike, who differs in what.
    hosts.HostsError: not all have come.
  """
  if jax.process_count() == 1:
    return
  told = hosts.gather("start", [hosts.own_name(), facts(config, more)])
  lines = differences([t for _, t in told], [n for n, _ in told])
  if lines:
    shown = lines[:20]
    if len(lines) > len(shown):
      shown.append(f"and {len(lines) - len(shown)} more")
    raise UserError(
      "the processes of this run differ, so none of them starts:\n  "
      + "\n  ".join(map(text.printable, shown))
      + "\nGive all of them the same code, libraries, data and command line.",
      lines=True,
    )
