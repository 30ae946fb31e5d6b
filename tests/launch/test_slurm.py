"""launch/slurm/train.sbatch, with a Slurm that runs its steps here."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests import conftest

SCRIPT = conftest.ROOT / "launch" / "slurm" / "train.sbatch"
TRAIN = """
import os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
def stop(*_):
  (here / "signals").open("a").write("TERM\\n")
  time.sleep(0.3)  # It saves.
  os._exit(42)
signal.signal(signal.SIGTERM, stop)
print(*sys.argv[1:], os.environ["JAX_LOCAL_DEVICE_IDS"], flush=True)
if "--wait" in sys.argv:
  (here / "waiting").touch()
  time.sleep(60)
sys.exit(int(os.environ["CODE"]))
"""


class Job:
  """A folder to submit from."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    (root / "train.py").write_text(TRAIN)
    (root / "bin").mkdir()
    for name, text in {
      # Its own flags start with --kill; what follows is the task.
      "srun": '[ "$1" = --kill-on-bad-exit=0 ] && shift && exec "$@"',
      "scontrol": f'echo "$@" >>{root}/scontrol',
      "python": f'exec {sys.executable} -IS "$@"',
    }.items():
      (root / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
      (root / "bin" / name).chmod(0o755)

  def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
      ["bash", str(SCRIPT), *args],
      cwd=self.root,
      env=dict(os.environ)
      | {
        "PATH": f"{self.root}/bin:{os.environ['PATH']}",
        "MIXER_VENV": str(self.root),
        "SLURM_SUBMIT_DIR": str(self.root),
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_ID": "7",
      }
      | env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def requeued(self) -> bool:
    path = self.root / "scontrol"
    return path.exists() and path.read_text() == "requeue 7\n"


@pytest.fixture
def job(tmp_path: pathlib.Path) -> Job:
  return Job(tmp_path)


@pytest.mark.parametrize("code", [0, 1, 42, 75, 137])
@pytest.mark.parametrize("starts", [0, 20])
def test_exit_codes(job, code, starts):
  process = job.start(
    "--config=c.py",
    "--workdir=w w",
    CODE=str(code),
    SLURM_RESTART_COUNT=str(starts),
  )
  out, _ = process.communicate(timeout=60)
  assert process.returncode == code
  assert "--cluster=slurm --config=c.py --workdir=w w 0,1,2,3,4,5,6,7" in out
  assert f"exit code {code}" in out
  # Saved: as often as need be. Lost: not for ever.
  assert job.requeued() == (code == 42 or (code > 42 and not starts))


@pytest.mark.parametrize("first", [[], [signal.SIGTERM]])
def test_the_notice_before_the_time_limit_reaches_train(job, first):
  with job.start("--wait", CODE="0") as process:
    deadline = time.monotonic() + 30
    while not (job.root / "waiting").exists() and time.monotonic() < deadline:
      time.sleep(0.01)
    for number in [*first, signal.SIGUSR1]:
      process.send_signal(number)
      time.sleep(0.1)
    process.communicate(timeout=30)
  assert process.returncode == 42
  assert (job.root / "signals").read_text().startswith("TERM\n")
  assert job.requeued()


def test_without_gpus_or_environment_it_says_so(job):
  process = job.start(CODE="0", SLURM_GPUS_ON_NODE="")
  assert "is not set: ask for GPUs" in process.communicate(timeout=30)[0]
  assert process.returncode != 0
  process = job.start(CODE="0", MIXER_VENV="/nowhere")
  out, _ = process.communicate(timeout=30)
  assert "run make setup-gpu in" in out
  assert process.returncode == 1


def test_it_asks_slurm_for_what_it_relies_on():
  lines = SCRIPT.read_text().splitlines()
  assert lines[0].startswith("#!")  # sbatch wants it.
  asked = {x.split()[1] for x in lines if x.startswith("#SBATCH")}
  assert {
    "--requeue",
    "--ntasks-per-node=1",
    "--signal=B:USR1@120",
    "--open-mode=append",
  } <= asked
  # Slurm reads them up to the first command.
  first = next(i for i, x in enumerate(lines) if x and x[0] != "#")
  assert max(i for i, x in enumerate(lines) if "#SBATCH" in x) < first
