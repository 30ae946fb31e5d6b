"""The processes that `benchmarks.peers` asks, one at a time."""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import common
from mixer.errors import UserError

# Ours without what `runtime.keep_freed_memory` does.
PLAIN = "ours, plain malloc"
_EAGER = ("eager", "eager+channels_last")
_COMPILED = ("compile", "compile+channels_last", "compile+autotune")
_FREEZING = "compile+freezing"
# What `runtime.keep_freed_memory` sets by mallopt, for any program.
_KEEPING = (
  "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:"
  f"glibc.malloc.trim_threshold={2**31 - 1}:glibc.malloc.top_pad={64 * 2**20}"
)


class Peer:
  """A contender's process; it waits, idle, until it is asked.

  Attributes:
    hello: what it says of itself; {} where a package of its is missing.
    keeps: whether malloc keeps what it frees.
  """

  def __init__(
    self, python: str, kind: str, folder: pathlib.Path, keeps: bool, *more: str
  ):
    self.keeps, self._kind, self.folder = keeps, kind, folder
    environment = dict(os.environ) | {
      "PYTHONPATH": str(common.ROOT),
      # Several processes share the device.
      "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if keeps and kind == "timm":  # Those with JAX settle it themselves.
      environment["GLIBC_TUNABLES"] = _KEEPING
    memory = "kept" if keeps else "returned"
    self._process = subprocess.Popen(
      [python, "-m", "benchmarks.peer", kind, memory, str(folder), *more],
      cwd=common.ROOT,
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

  def ask(self, request: dict[str, Any]) -> dict[str, Any]:
    """Its answer to a request, see `peer.serve`.

    Raises:
      UserError: it has stopped.
    """
    assert self._process.stdin
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    answer = self._answer()
    if not answer:
      raise UserError(
        f"the process of {self._kind} stopped at {request}; its own error is "
        "above."
      )
    return answer

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

  def rate(self, what: str, seconds: float) -> float:
    """Images a second of a pass, the median of some seconds."""
    if self.variant == _FREEZING and what == "train":
      return 0.0  # Weights are no constants there.
    request = {"pass": what, "variant": self.variant, "seconds": seconds}
    return self.peer.ask(request)["rate"]

  def check(self, what: str) -> dict[str, np.ndarray]:
    """What it computes, see `peer.check`."""
    path = self.peer.folder / "checked.npz"
    request = {"pass": what, "variant": self.variant, "check": str(path)}
    self.peer.ask(request)
    with np.load(path) as file:
      return dict(file)


@contextlib.contextmanager
def contenders(
  folder: pathlib.Path, args: argparse.Namespace
) -> Iterator[dict[str, list[Setting]]]:
  """Settings by contender, of processes that end with the context.

  Raises:
    UserError: nothing to compare with, or not on the same platform.
  """
  with contextlib.ExitStack() as stack:

    def peer(python: str, kind: str, keeps: bool, *more: str) -> Peer:
      found = Peer(python, kind, folder, keeps, *more)
      stack.callback(found.close)
      return found

    ours = peer(sys.executable, "ours", True)
    if not ours.hello:
      raise UserError("our own process stopped; its error is above.")
    cpu = ours.hello["platform"] == "cpu"
    # On other devices malloc has no part in it.
    keeping = (True, False) if cpu else (False,)
    timms = [peer(args.torch_python, "timm", k) for k in keeping]
    if not timms[0].hello:
      print("timm isn't installed: left out", file=sys.stderr)
      timms = []
    field = {
      "ours": [Setting(ours, "")],
      "timm": [Setting(p, v) for p in timms for v in _EAGER],
      "timm compiled": [
        Setting(p, v) for p in timms for v in (*_COMPILED, _FREEZING)
      ],
    }
    if args.authors:
      authors = [
        peer(sys.executable, "authors", k, str(args.authors)) for k in keeping
      ]
      if not authors[0].hello:
        raise UserError(
          f"--authors={args.authors} has no vit_jax/models_mixer.py that can "
          "be imported, see above; name a checkout of "
          "google-research/vision_transformer (which wants einops too)."
        )
      # They wrote it for float32, whatever the others have.
      own = "" if args.dtype == "float32" else "float32"
      field["authors"] = [Setting(p, own) for p in authors]
    field = {k: v for k, v in field.items() if v}
    if len(field) == 1:
      raise UserError(
        "there is nothing to compare with: timm isn't installed here. Install "
        'it (pip install -e ".[export]"), or name a Python that has it, as in '
        "--torch_python=OTHER/bin/python."
      )
    if cpu:
      field[PLAIN] = [Setting(peer(sys.executable, "ours", False), "")]
    for name, group in field.items():
      if group[0].peer.hello["platform"] != ours.hello["platform"]:
        raise UserError(
          f"{name} runs on {group[0].peer.hello['platform']}, ours on "
          f"{ours.hello['platform']}: install the build of each for the same "
          "device, or set JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES= for all."
        )
    yield field
