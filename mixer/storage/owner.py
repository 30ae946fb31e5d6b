"""The process that has a workdir: who it is, and whether it still runs."""

import datetime
import getpass
import json
import os
import pathlib
import shlex
import socket
import sys
import uuid
from typing import Any

from mixer import text

_PROC = pathlib.Path("/proc")
# What has to agree for a process id to mean the same process: containers can
# share a host's name, and machines that were installed alike theirs.
_PLACE = ("host", "boot", "namespace")


def this_process() -> dict[str, Any]:
  """Who we are, as JSON: what `is_alive` and `describe` need."""
  pid = os.getpid()
  stat = _stat(pid)
  return {
    "host": socket.gethostname(),
    "boot": _boot(),
    "namespace": _namespace(),
    "pid": pid,
    "started": stat and stat[1],
    "user": _user(),
    "command": shlex.join(["python", *sys.argv])[:1000],
    "since": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
    "token": uuid.uuid4().hex,
  }


def parse(data: bytes) -> dict[str, Any]:
  """What `this_process` has written; empty if it was somebody else."""
  try:
    found = json.loads(data)
  except (ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def describe(owner: dict[str, Any]) -> str:
  """The process, for a sentence."""
  if not {"pid", "host"} <= owner.keys():
    return "a process that can't be made out"
  return text.printable(
    f"process {owner['pid']} on {owner['host']} (user {owner.get('user')}, "
    f"started {owner.get('since')}, command `{owner.get('command')}`)"
  )


def is_alive(owner: dict[str, Any]) -> bool | None:
  """Whether the process runs; None where that can't be known from here."""
  mine = this_process()
  if not all(mine[k] and mine[k] == owner.get(k) for k in _PLACE):
    return None
  pid = owner.get("pid")
  if not isinstance(pid, int) or pid <= 0:
    return None
  stat = _stat(pid)
  if stat is None:
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return False
    except (OSError, OverflowError):
      pass
    return None  # It is there, and /proc hides it from us.
  state, started = stat
  # Of one that has ended and wasn't waited for, an entry remains. Another
  # start time: the id has been given to a new process.
  return state not in "ZX" and started == owner.get("started")


def is_suspended(owner: dict[str, Any]) -> bool:
  """Whether a process of this machine was stopped, as by Ctrl-Z."""
  stat = _stat(owner["pid"]) if is_alive(owner) else None
  return stat is not None and stat[0] == "T"


def _stat(pid: int) -> tuple[str, int] | None:
  """State and start time (clock ticks since boot) of a process."""
  try:
    text = (_PROC / str(pid) / "stat").read_text(errors="replace")
  except OSError:
    return None
  # Its name, in parentheses, may hold anything; see proc(5) for the rest.
  fields = text.rpartition(")")[2].split()
  return fields[0], int(fields[19])


def _boot() -> str | None:
  try:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
  except OSError:
    return None


def _namespace() -> str | None:
  try:
    return os.readlink(_PROC / "self/ns/pid")
  except OSError:
    return None


def _user() -> str:
  try:
    return getpass.getuser()
  except (KeyError, OSError, ImportError):  # A container's user has no name.
    return str(os.getuid())
