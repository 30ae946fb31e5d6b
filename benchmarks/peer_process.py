"""Processes that `benchmarks.peers` asks, one at a time."""

import dataclasses
import json
import os
import pathlib
import subprocess
from typing import Any

from mixer.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
# What `runtime.keep_freed_memory` sets by mallopt, for any program.
_KEEPING = ":".join(
  f"glibc.malloc.{name}={value}"
  for name, value in (
    ("arena_max", 1),
    ("mmap_max", 0),
    ("trim_threshold", 2**31 - 1),
    ("top_pad", 64 * 2**20),
  )
)


class Peer:
  """A contender's process; it waits, idle, until it is asked.

  Attributes:
    hello: what it tells of itself; {} where a package of its is missing.
    keeps: whether malloc keeps what it frees.
  """

  def __init__(
    self,
    python: str,
    module: str,
    folder: pathlib.Path,
    keeps: bool,
    *options: str,
  ):
    """Starts it.

    Args:
      python: its interpreter.
      module: of this folder.
      folder: with the work, see `peers.make_work`.
      keeps: whether malloc is to keep what is freed.
      *options: further arguments.
    """
    self.keeps = keeps
    self._module = module
    environment = dict(os.environ) | {
      "PYTHONPATH": str(ROOT),
      # Several processes share the device.
      "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    # Those with JAX settle it themselves.
    if keeps and module == "peer_timm":
      environment["GLIBC_TUNABLES"] = _KEEPING
    memory = "kept" if keeps else "returned"
    self._process = subprocess.Popen(
      [python, "-m", f"benchmarks.{module}", str(folder), memory, *options],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
    )
    self.hello = self._answer()

  def _answer(self) -> dict[str, Any]:
    assert self._process.stdout
    for line in self._process.stdout:
      if line.startswith("> "):
        return json.loads(line[2:])
    return {}

  def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
    assert self._process.stdin
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    answer = self._answer()
    if not answer:
      raise UserError(
        f"the process of benchmarks/{self._module}.py stopped at {request}; "
        "its own error is above."
      )
    return answer

  def rate(self, what: str, variant: str, seconds: float) -> float:
    """Images a second, the median of some seconds."""
    request = {"pass": what, "variant": variant, "seconds": seconds}
    return self._ask(request)["rate"]

  def check(self, what: str, variant: str, path: pathlib.Path) -> None:
    """Has it write what it computes, see `peer_server.check`."""
    self._ask({"pass": what, "variant": variant, "check": str(path)})

  def close(self) -> None:
    """Ends it, and waits for that."""
    self._process.communicate()


@dataclasses.dataclass(frozen=True)
class Setting:
  """A way to run a contender."""

  peer: Peer
  variant: str

  @property
  def name(self) -> str:
    """For people."""
    memory = "malloc keeps" if self.peer.keeps else "plain malloc"
    return f"{self.variant}, {memory}" if self.variant else memory
