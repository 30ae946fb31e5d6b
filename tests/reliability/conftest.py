"""train.py on several processes of this machine, as on several hosts."""

import functools
import pathlib
import time

import pytest

from mixer import checkpoints, metrics, stop
from tests import conftest, test_train

# 24 updates, an evaluation and a checkpoint after every eighth.
ARGS = (
  "--config.report=True",
  "--config.total=24 steps",
  "--config.schedule.warmup=4 steps",
  "--config.eval_every=8 steps",
  "--config.checkpoint_every=8 steps",
  "--config.log_every=1 steps",
  "--config.keep_checkpoints=2",
)


class Run:
  """One start of all processes of a run; what they say, and how they end."""

  def __init__(self, data_dir, workdir, *args, hit=(), own=(), **options):
    """Starts them, the last with `own` arguments, too; `hit`: see `at`."""
    count, devices = options.get("processes", 1), options.get("devices", 1)
    env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    program = ["train.py"]
    if hit:
      words = [str(word) for word in hit] + ["0"] * (4 - len(hit))
      program = ["-m", "tests.reliability.at", *words, "--"]
    self.processes, port = [], conftest.free_port()
    for i in range(count):
      flags = [*ARGS, *args, *(own if i == count - 1 else ())]
      if count > 1:
        flags += [
          f"--coordinator_address=127.0.0.1:{port}",
          f"--num_processes={count}",
          f"--process_id={i}",
          "--heartbeat_seconds=10",
        ]
      command = conftest.TrainCommand(data_dir)
      self.processes.append(
        command.start(workdir, *flags, env=env, program=program)
      )

  def wait(self, timeout: float = 400) -> list[int]:
    """Exit codes; `out` and `err` have what each has said."""
    ends = [p.communicate(timeout=timeout) for p in self.processes]
    self.out, self.err = zip(*ends, strict=True)
    return [p.returncode for p in self.processes]

  def wait_for_line(self, start: str) -> None:
    """Until the first process prints a line that starts so."""
    lines = iter(self.processes[0].stdout.readline, "")
    assert any(line.startswith(start) for line in lines)

  def wait_for_update(self, workdir: pathlib.Path, step: int) -> None:
    """Until the metrics have it."""
    deadline = time.monotonic() + 200
    while all(r["step"] < step for r in metrics.read(workdir)):
      assert time.monotonic() < deadline, "no progress"
      for p in self.processes:
        assert p.poll() is None, p.communicate()
      time.sleep(0.02)

  def kill(self) -> None:
    for p in self.processes:
      p.kill()
      p.communicate()


@pytest.fixture(scope="session")
def start(data_dir):
  """`start(workdir, *flags, hit=..., processes=...)` -> a `Run`."""
  return lambda *args, **options: Run(data_dir, *args, **options)


@pytest.fixture(scope="session")
def undisturbed_run(start, tmp_path_factory):
  """`undisturbed_run(processes, *flags)` -> workdir of one that nothing hit."""

  @functools.cache
  def make(processes: int, *flags: str) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    run = start(workdir, *flags, processes=processes)
    assert run.wait() == [stop.DONE] * processes, run.err
    return workdir

  return make


@pytest.fixture
def finish(start, undisturbed_run):
  """The same command line again, to the end and to the same bits."""

  def finish(workdir, processes=1, *flags):
    run = start(workdir, *flags, processes=processes)
    assert run.wait() == [stop.DONE] * processes, run.err
    whole = undisturbed_run(processes, *flags)
    test_train.assert_same_run(workdir, whole)
    last = 96 if flags else 24
    assert newest(whole) == last
    assert test_train.page(workdir)["runs"][0]["predictions"]["step"] == last
    # Nothing is left over; the one that was gone on from may stay.
    left = {p.name for p in (workdir / "checkpoints").iterdir()}
    assert str(last) in left and all(name.isdigit() for name in left)
    assert 2 <= len(left) <= 3
    return run

  return finish


def newest(workdir) -> int:
  return max(checkpoints.committed(workdir), default=0)


def losses(workdir) -> dict[int, float]:
  records = metrics.read(workdir)
  return {r["step"]: r["train/loss"] for r in records if "train/loss" in r}
