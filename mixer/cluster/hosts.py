"""What the processes of a run tell each other beside their computations.

It goes through the coordination service that `jax.distributed` starts, not
through the devices, and every wait has an end: hosts that have nothing in
common yet, or no longer, can still find out about each other.
"""

import collections
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # The service's client has no public name.

from mixer import errors
from mixer.errors import UserError

# Seconds for which hosts wait for one another where nothing long is under way.
TIMEOUT = 120.0

# Seconds for which the first process, which is the service for all others,
# stays when one has failed, so that they can read of it.
_READ = 1.0

_rounds: collections.Counter[str] = collections.Counter()


class HostsError(UserError):
  """The processes of a run could not agree; all of them have to end."""


def is_loss(error: BaseException) -> bool:
  """Whether an error may come of another process's end."""
  kinds = HostsError | jax.errors.JaxRuntimeError
  return several() and isinstance(error, kinds) and not errors.is_memory(error)


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


def on_first(name: str, function: Callable[[], Any]) -> Any:
  """Calls a function on the first process; its result on all, as `gather`.

  Raises:
    UserError: what the function has raised, on every process.
  """
  result: Any = None
  refusal = ""
  if jax.process_index() == 0:
    try:
      result = function()
    except UserError as e:
      refusal = str(e)
      if jax.process_count() == 1:
        raise
  result, refusal = broadcast(name, (result, refusal))
  if refusal:
    raise UserError(refusal, lines=True)  # Safe: it was one.
  return result


def broadcast(name: str, value: Any, timeout: float = TIMEOUT) -> Any:
  """The first process's value, on every process; as `gather`."""
  return gather(name, value if jax.process_index() == 0 else None, timeout)[0]


class Board:
  """Where a process leaves word for the others; they have to look."""

  def __init__(self):
    self._client: Any = distributed.global_state.client

  def post(self, kind: str, text: str) -> None:
    """Leaves word; the first of a kind stays."""
    if kind in self.read():
      return
    try:
      self._client.key_value_set(f"mixer/board/{kind}", text)
    except RuntimeError:  # Another one was faster, or none is left to read it.
      pass

  def read(self) -> dict[str, str]:
    """Word by kind; nothing where the service is gone."""
    try:
      found = self._client.key_value_dir_get("mixer/board/")
    except RuntimeError:
      return {}
    return {key.rpartition("/")[2]: text for key, text in found}

  def stay(self) -> None:
    """Call before the end that follows a failure."""
    if jax.process_index() == 0:
      time.sleep(_READ)

  def next_after(self, passed: int) -> int:
    """The first point that no process has passed.

    Args:
      passed: how many this one has. All have to ask.

    Returns:
      The same on all; -1, a point that never comes, if not all have asked: so
      at the end of a run, when some look no more.
    """
    try:
      return 1 + max(gather("stop", passed))
    except HostsError:
      return -1


def board() -> Board | None:
  """For a run of several processes; None for one."""
  return Board() if jax.process_count() > 1 else None


def own_name() -> str:
  """This process, for people: "process 3 on HOST"."""
  return f"process {jax.process_index()} on {socket.gethostname()}"


def several() -> bool:
  """Whether this process has others beside it; starts nothing."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def post_failure(sentence: str) -> None:
  """Lets the others end at once, with what has failed here."""
  if several():
    Board().post("failed", f"{own_name()} failed: {sentence}")
    Board().stay()


def failure() -> str:
  """What another one has failed by, which is no loss; "" if none has.

  Call before the end.
  """
  sentence = Board().read().get("failed", "")
  if sentence:
    Board().stay()
  return sentence
