"""What the processes of a run tell each other beside their computations.

It goes through the coordination service that `jax.distributed` starts, not
through the devices, and every wait has an end: hosts that have nothing in
common yet, or no longer, can still find out about each other.
"""

import collections
import json
from typing import Any

import jax
from jax._src import distributed  # The service's client has no public name.

from mixer.errors import UserError

# Seconds for which hosts wait for one another where nothing long is under way.
TIMEOUT = 120.0

_rounds: collections.Counter[str] = collections.Counter()


class HostsError(UserError):
  """The processes of a run could not agree; all of them have to end."""


def _next(name: str) -> str:
  """A key that was never used: all hosts count alike."""
  _rounds[name] += 1
  return f"mixer/{name}/{_rounds[name]}"


def gather(name: str, value: Any, timeout: float = TIMEOUT) -> list[Any]:
  """Every process's value, in their order, on every process.

  All processes have to call it, in the same order for one name.

  Args:
    name: of what is told, for the message and the key.
    value: JSON, small: a sentence, some hashes.
    timeout: seconds to wait for the slowest.

  Returns:
    As many values as there are processes, as JSON gives them back.

  Raises:
    HostsError: not all have called it in time.
  """
  if jax.process_count() == 1:
    return [json.loads(json.dumps(value))]
  key = _next(name)
  client: Any = distributed.global_state.client
  try:
    client.key_value_set(f"{key}/{jax.process_index():06d}", json.dumps(value))
    client.wait_at_barrier(f"{key}/all", round(timeout * 1000))
    found = client.key_value_dir_get(f"{key}/")
  except RuntimeError as e:
    raise HostsError(
      f"not all {jax.process_count()} processes of this run came to "
      f"{name!r} within {timeout:g} s ({str(e).splitlines()[0][:300]}). Look "
      "at what the others said; then start the same command on all of them "
      "again: it goes on from the newest checkpoint."
    ) from e
  return [json.loads(text) for _, text in sorted(found)]


def broadcast(name: str, value: Any, timeout: float = TIMEOUT) -> Any:
  """The first process's value, on every process; as `gather`."""
  return gather(name, value if jax.process_index() == 0 else None, timeout)[0]
