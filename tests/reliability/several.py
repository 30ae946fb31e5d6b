"""train.py on several processes of this machine, as on several hosts."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tests import conftest


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


class Run:
  """One start of all processes of a run."""

  def __init__(
    self,
    data_dir: str,
    workdir: pathlib.Path,
    args: Sequence[str] = (),
    processes: int = 1,
    devices: int = 1,
    program: Sequence[str] = ("train.py",),
    own: Mapping[int, Sequence[str]] | None = None,
    env: Mapping[str, str] | None = None,
  ):
    """Starts them.

    Args:
      data_dir: of the data sets.
      workdir: of the run.
      args: for all processes.
      processes: how many.
      devices: of each.
      program: what Python runs, before the flags.
      own: further arguments of single processes.
      env: variables beside this process's.
    """
    port = free_port()
    self.processes = []
    for i in range(processes):
      flags = [
        "--config=configs/smoke.py",
        f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
      ]
      if processes > 1:
        flags += [
          f"--coordinator_address=127.0.0.1:{port}",
          f"--num_processes={processes}",
          f"--process_id={i}",
          "--heartbeat_seconds=10",
        ]
      count = f"--xla_force_host_platform_device_count={devices}"
      self.processes.append(
        subprocess.Popen(
          [sys.executable, *program, *flags, *args, *(own or {}).get(i, ())],
          cwd=conftest.ROOT,
          env=os.environ | {"XLA_FLAGS": count} | dict(env or {}),
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
        )
      )

  def wait(self, timeout: float = 240) -> list[int]:
    """Exit codes; `out` and `err` have what each has said."""
    said = [p.communicate(timeout=timeout) for p in self.processes]
    self.out = [out for out, _ in said]
    self.err = [err for _, err in said]
    return [p.returncode for p in self.processes]

  def kill(self) -> None:
    for p in self.processes:
      p.kill()
      p.communicate()
