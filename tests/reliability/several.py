"""train.py on several processes of this machine, as on several hosts."""

import pathlib
import socket
import time
from collections.abc import Mapping, Sequence

from mixer import checkpoints, metrics, stop
from tests import conftest, test_train

# 24 updates, an evaluation and a checkpoint after every eighth.
ARGS = (
  "--config.total=24 steps",
  "--config.schedule.warmup=4 steps",
  "--config.eval_every=8 steps",
  "--config.checkpoint_every=8 steps",
  "--config.log_every=1 steps",
  "--config.keep_checkpoints=2",
)


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
    *args: str,
    processes: int = 1,
    devices: int = 1,
    program: Sequence[str] = ("train.py",),
    own: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
  ):
    """Starts so many, of `devices` each, the last with `own` arguments, too."""
    port, command = free_port(), conftest.TrainCommand(data_dir)
    count = f"--xla_force_host_platform_device_count={devices}"
    variables = {"XLA_FLAGS": count} | dict(env or {})
    self.processes = []
    for i in range(processes):
      flags = ["--config.report=True", *ARGS, *args]
      if processes > 1:
        flags += [
          f"--coordinator_address=127.0.0.1:{port}",
          f"--num_processes={processes}",
          f"--process_id={i}",
          "--heartbeat_seconds=10",
        ]
      flags += own if i == processes - 1 else ()
      self.processes.append(
        command.start(workdir, *flags, env=variables, program=program)
      )

  def wait(self, timeout: float = 400) -> list[int]:
    """Exit codes; `out` and `err` have what each has said."""
    said = [p.communicate(timeout=timeout) for p in self.processes]
    self.out = [out for out, _ in said]
    self.err = [err for _, err in said]
    return [p.returncode for p in self.processes]

  def wait_for_line(self, start: str) -> None:
    """Until the first process prints a line that starts so."""
    for line in self.processes[0].stdout:
      if line.startswith(start):
        return
    raise AssertionError(self.processes[0].communicate())

  def wait_for_update(self, workdir: pathlib.Path, step: int) -> None:
    """Until the metrics have it."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
      if any(r["step"] >= step for r in metrics.read(workdir)):
        return
      for p in self.processes:
        assert p.poll() is None, p.communicate()
      time.sleep(0.02)
    raise AssertionError("no progress")

  def kill(self) -> None:
    for p in self.processes:
      p.kill()
      p.communicate()


def hit(data_dir, workdir, moment, nth, signal, process=0, args=(), **kwargs):
  """A run of which a process is hit at a moment; see `at`."""
  words = (moment, str(nth), signal, str(process), "--")
  program = ("-m", "tests.reliability.at", *words)
  return Run(data_dir, workdir, *args, program=program, **kwargs)


def finish(data_dir, workdir, expected, processes=1):
  """The same command line again, to the end and to the same bits."""
  run = Run(data_dir, workdir, processes=processes)
  assert run.wait() == [stop.DONE] * processes, run.err
  test_train.assert_same_run(workdir, expected)
  assert test_train.page(workdir)["runs"][0]["predictions"]["step"] == 24
  # And nothing is left lying about; the one that was gone on from may stay.
  left = {p.name for p in (workdir / "checkpoints").iterdir()}
  assert "24" in left and all(name.isdigit() for name in left)
  assert 2 <= len(left) <= 3
  return run


def newest(workdir) -> int:
  return max(checkpoints.committed(workdir), default=0)


def losses(workdir) -> dict[int, float]:
  records = metrics.read(workdir)
  return {r["step"]: r["train/loss"] for r in records if "train/loss" in r}
