"""The files of launch/: tpu_vm.sh and train.sbatch on machines played here."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest
import yaml

from mixer import cli
from tests import conftest

LAUNCH = conftest.ROOT / "launch"
SCRIPTS = (
  LAUNCH / "tpu_vm.sh",
  LAUNCH / "slurm" / "train.sbatch",
  conftest.ROOT / ".ci" / "run",
)
RUN = ("--", "--config=configs/smoke.py", "--workdir=gs://bucket/run")
STARTED = [[*RUN[1:], "--cluster=tpu"]]
UNTIL_DONE = ("until-done", "--type=v5e-16", "--spot", "--poll=0")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shell_scripts(script: pathlib.Path):
  subprocess.run(["bash", "-n", script], check=True)
  beside = pathlib.Path(sys.executable).parent
  found = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
  if not found:
    pytest.skip("shellcheck is not installed: make setup-dev does it")
  done = subprocess.run([found, script], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def check_train_command(command: str, env: dict[str, str]) -> dict[str, str]:
  """A command line of train.py is one that it takes; returns its flags."""
  words = shlex.split(command.replace("\\\n", " ").partition("train.py ")[2])
  given = dict(w.removeprefix("--").split("=", 1) for w in words)
  known = {f"${name}": value or "x" for name, value in env.items()}
  cli.parser("train.py").read(
    [re.sub(r"\$\w+", lambda m: known.get(m[0], "1"), word) for word in words]
  )
  return given


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_skypilot(kind):
  task = yaml.safe_load((LAUNCH / f"skypilot_{kind}.yaml").read_text())
  assert task["resources"]["use_spot"] is True
  recovery = task["resources"]["job_recovery"]
  assert recovery["recover_on_exit_codes"] == [42, 75]
  assert recovery["max_restarts_on_errors"] < 10  # A real error ends.
  assert f"-r requirements-{kind}.txt -r requirements-gcs.txt" in task["setup"]
  subprocess.run(["bash", "-n"], input=task["setup"], text=True, check=True)
  command = re.sub(r"\$\([^)]*\)", "HOST", task["run"])
  given = check_train_command(command, task["envs"])
  assert given["workdir"] == "$WORKDIR"
  assert given["config.data.data_dir"] in task["file_mounts"]
  assert task["envs"]["WORKDIR"] is None  # Has to be given.
  if kind == "gpu":
    assert given["coordinator_address"] == "HOST:8476"
    assert given["process_id"] == "$SKYPILOT_NODE_RANK"


def test_jobset():
  jobset = yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())
  (replicated,) = jobset["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  assert job["backoffLimit"] == 0  # All hosts start anew together.
  pod = job["template"]["spec"]
  assert pod["restartPolicy"] == "Never"  # podFailurePolicy wants it.
  # Hosts and chips are those of the topology.
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  rows, columns = map(int, topology.split("x"))
  (container,) = pod["containers"]
  chips = container["resources"]["requests"]["google.com/tpu"]
  assert container["resources"]["limits"]["google.com/tpu"] == chips
  assert job["parallelism"] == job["completions"] == rows * columns // chips

  def outcome(code: int, disrupted: bool = False) -> str:
    """What becomes of the JobSet: Kubernetes' rules, then JobSet's own."""
    reason, message = "BackoffLimitExceeded", "Job has reached the limit"
    for i, rule in enumerate(job["podFailurePolicy"]["rules"]):
      codes = rule.get("onExitCodes", {"values": []})["values"]
      if code in codes or (disrupted and "onPodConditions" in rule):
        what = f"failed with exit code {code}"
        if "onPodConditions" in rule:
          what = "has condition DisruptionTarget"
        reason = "PodFailurePolicy"
        message = f"Pod x/y {what} matching FailJob rule at index {i}"
        break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
      patterns = rule.get("onJobFailureMessagePatterns", [""])
      if reason in rule["onJobFailureReasons"] and any(
        re.search(p, message) for p in patterns
      ):
        return rule["action"]
    return "RestartJobSet"

  again = "RestartJobSetAndIgnoreMaxRestarts"
  assert outcome(42) == again
  assert outcome(137, disrupted=True) == outcome(1, disrupted=True) == again
  assert outcome(1) == "FailJobSet"
  assert outcome(134) == outcome(137) == outcome(75) == "RestartJobSet"
  assert 0 < jobset["spec"]["failurePolicy"]["maxRestarts"] < 100
  (script,) = container["args"]
  subprocess.run(["bash", "-n"], input=script, text=True, check=True)
  env = {e["name"]: e["value"] for e in container["env"]}
  given = check_train_command(script, env)
  (mount,) = container["volumeMounts"]
  assert given["config.data.data_dir"] == mount["mountPath"]


class Cloud:
  """A small checkout with the real launch/, and the gcloud of tests."""

  def __init__(self, root: pathlib.Path):
    self.root, self.folder = root / "checkout", root / "cloud"
    self.folder.mkdir(parents=True)
    shutil.copytree(LAUNCH, self.root / "launch")
    (self.root / "train.py").write_text("")
    fake = f"exec {sys.executable} -IS {conftest.ROOT}/tests/fake_gcloud.py"
    folder = programs(
      root,
      gcloud=f'{fake} "$@"',
      # As uv makes an environment; its Python plays train.py.
      python=f'shift && {fake} train "$@"',
      uv=f'echo "$@" >>~/uv; [ "$1" != venv ] || {{ mkdir -p ~/.venv-mixer/bin '
      f"&& ln -sf {root}/bin/python ~/.venv-mixer/bin/python; }}",
    )
    self.env = dict(os.environ) | {
      "PATH": f"{folder}:{os.environ['PATH']}",
      "FAKE_CLOUD": str(self.folder),
      "HOME": str(root),
      "GIT_CONFIG_GLOBAL": os.devnull,
    }
    for who in ("AUTHOR", "COMMITTER"):
      self.env |= {f"GIT_{who}_NAME": "x", f"GIT_{who}_EMAIL": "x@example.com"}
    for words in ("init --quiet", "add .", "commit --quiet --message=x"):
      git = ["git", *words.split()]
      subprocess.run(git, cwd=self.root, env=self.env, check=True)

  def lives(self, *lives: Sequence[Sequence[str]]) -> None:
    """What happens: of each slice, of each host, each start."""
    self.put("lives.json", json.dumps(lives))

  def put(self, name: str, text: str) -> None:
    (self.folder / name).write_text(text)

  def calls(self, *words: str) -> list[list[str]]:
    """The command lines of gcloud that have all these words."""
    path = self.folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return [c for c in found if all(any(w in a for a in c) for w in words)]

  def starts(self, host: int, folder: str = "hosts") -> list[list[str]]:
    """The flags of each start of train.py on a host, now or in past/LIFE."""
    path = self.folder / folder / str(host) / "starts"
    return [json.loads(line) for line in path.read_text().splitlines()]

  def start(self, command: str, *args: str) -> subprocess.Popen[str]:
    """Starts launch/tpu_vm.sh."""
    script = self.root / "launch" / "tpu_vm.sh"
    return subprocess.Popen(
      [script, command, "--name=m", "--zone=z", *args],
      cwd=self.root.parent,
      env=self.env,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def __call__(self, command: str, *args: str, code: int = 0):
    """Runs launch/tpu_vm.sh to its end; returns what it printed."""
    process = self.start(command, *args)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return err if command not in ("status", "logs") else out


def programs(root: pathlib.Path, **scripts: str) -> pathlib.Path:
  """A folder for PATH with these programs."""
  (root / "bin").mkdir()
  for name, script in scripts.items():
    (root / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    (root / "bin" / name).chmod(0o755)
  return root / "bin"


@pytest.fixture
def cloud(tmp_path: pathlib.Path):
  """An empty cloud; what still runs on it afterwards is ended."""
  cloud = Cloud(tmp_path)
  yield cloud
  (cloud.folder / "broken").unlink(missing_ok=True)
  if (cloud.folder / "request").exists():
    cloud("delete")


def test_a_slice_from_creation_to_deletion(cloud):
  cloud.lives([["wait"], ["wait"]])
  flags = ("--gcloud_flag=--project=p", "--create_flag=--reserved", "--poll=0")
  assert "WAITING_FOR_RESOURCES" in cloud("create", "--type=v6e-16", *flags)
  (call,) = cloud.calls("create", "--project=p", "--reserved")
  assert "--runtime-version=v2-alpha-tpuv6e" in call
  assert "READY\nlost\nlost\n" in cloud("status")
  cloud("run", *RUN, code=1)  # Nothing is set up yet.
  with open(cloud.root / "train.py", "a") as f:
    f.write("# changed, not committed\n")
  (cloud.root / "unknown.py").write_text("")
  cloud("setup", "--prepare=echo mounted >data && test -e mixer")
  home = cloud.folder / "hosts" / "1"
  assert (home / "data").read_text() == "mounted\n"
  assert "-r mixer/requirements-tpu.txt" in (home / "uv").read_text()
  assert "# changed" in (home / "mixer" / "train.py").read_text()
  assert not (home / "mixer" / "unknown.py").exists()
  for _ in range(2):  # The second changes nothing.
    cloud("run", *RUN, "--config.total=3 epochs")
    # The ssh session is over, train.py is not.
    assert "READY\nrunning\nrunning\n" in cloud("status")
  line = [*RUN[1:], "--config.total=3 epochs", "--cluster=tpu"]
  assert cloud.starts(1) == [line]
  assert "training" in cloud("logs", "--worker=1")
  cloud("stop")
  for _ in range(100):
    if "running" not in (status := cloud("status")):
      break
  assert "READY\n42\n42\n" in status
  for _ in range(2):  # The second: already gone.
    cloud("delete")
  assert cloud("status", code=1) == "ABSENT\n"


def test_preempted_twice_then_done(cloud):
  cloud.lives(
    [["taken PREEMPTED, 42"], ["exit 42"]],
    [["exit 1"], ["taken GONE, hang"]],
    [["exit 0"], ["exit 0"]],
  )
  printed = cloud(*UNTIL_DONE, *RUN)
  assert "m is PREEMPTED" in printed and "is done\ntraining\n" in printed
  assert len(cloud.calls("queued-resources", "create", "--spot")) == 3
  assert len(cloud.calls("queued-resources", "delete", "--force")) == 3
  for life in (1, 2, 3):
    for host in (0, 1):
      assert cloud.starts(host, f"past/{life}") == STARTED


@pytest.mark.parametrize(
  ("lives", "flags", "code", "text"),
  [
    # Saved without a preemption: the same slice goes on.
    ([["exit 42", "exit 0"]] * 2, ["--retries=0"], 0, "train.py is done"),
    # A failure of the run ends it, whatever the others say.
    ([["exit 75"], ["exit 1"], ["exit 0"]], [], 1, "error: the disk is full"),
    # A killed host is started again, and one that lost another, not for ever.
    ([["killed", "exit 0"], ["exit 75", "exit 0"]], ["--retries=1"], 0, "lost"),
    ([["killed"] * 5], ["--retries=1"], 1, "failures: hosts were lost"),
  ],
)
def test_how_hosts_end(cloud, lives, flags, code, text):
  cloud.lives(lives)
  assert text in cloud(*UNTIL_DONE, *flags, *RUN, code=code)
  assert len(cloud.calls("queued-resources", "create")) == 1
  assert len(cloud.calls("scp")) == 1
  assert not (cloud.folder / "node").exists()


def test_failures_of_gcloud_and_ssh_are_repeated_not_for_ever(cloud):
  cloud.lives([["exit 0"]])
  cloud.put("unreachable", "2")
  printed = cloud(*UNTIL_DONE, "--retries=2", "--keep", *RUN)
  assert "not all hosts of m answer (failure 2 of" in printed
  assert not cloud.calls("delete")
  cloud.put("unreachable", "99")
  printed = cloud(*UNTIL_DONE, "--retries=2", *RUN, code=1)
  assert "too many failures: not all hosts of m answer" in printed
  assert "Connection timed out" in printed
  # A request that is refused; and what isn't taken for a preemption.
  cloud.put("unreachable", "0")
  printed = cloud(*UNTIL_DONE, "--retries=1", *RUN, code=1)
  assert "too many failures: m could not be made" in printed
  cloud.put("broken", "yes")
  created = len(cloud.calls("create"))
  printed = cloud(*UNTIL_DONE, "--retries=1", *RUN, code=1)
  assert "refreshing your current auth tokens" in printed
  assert "could not be deleted, and costs money" in printed
  assert len(cloud.calls("create")) == created


def test_until_done_can_be_interrupted_and_takes_over_again(cloud):
  cloud.lives([["exit 0"], ["wait"]])
  cloud.put("request", "WAITING_FOR_RESOURCES")  # It keeps its place.
  cloud.put("life", "1")

  def start() -> subprocess.Popen[str]:
    process = cloud.start(*UNTIL_DONE, *RUN)
    lines = iter(process.stderr.readline, "")
    assert any("on the hosts:" in x and "running" in x for x in lines)
    return process

  with start() as process:
    process.terminate()
  with start() as process:
    (cloud.folder / "hosts" / "1" / "go").touch()
    process.communicate(timeout=60)
  assert process.returncode == 0
  assert cloud.starts(1, "past/1") == STARTED
  assert len(cloud.calls("scp")) == 1
  assert not cloud.calls("queued-resources", "create")


def test_bad_arguments_and_dry_runs(cloud):
  for args, sentence in (
    (("create",), "create needs --type, as in --type=v6e-64;"),
    (("create", "--type=v4-8"), "also --version."),
    (("delete", "--name"), "--name is not known or lacks a value"),
    (("run", "--", "--config=x.py"), "run needs behind --: -- --config"),
    ((*UNTIL_DONE, *RUN[:2], "--workdir=/tmp/x"), "goes with the slice"),
    (("launch",), "'launch' is no command"),
  ):
    printed = cloud(*args, code=2)
    assert printed.startswith("error: ") and sentence in printed
    assert len(printed.splitlines()) == 1
  process = cloud.start(*UNTIL_DONE, "--dry-run", *RUN)
  lines = process.communicate()[0].splitlines()
  names = [" ".join(line.split()[3:5]) for line in lines]
  create, *rest = "queued-resources create,tpu-vm scp,tpu-vm ssh".split(",")
  assert names == [create, *rest, rest[-1]]
  assert "--accelerator-type=v5litepod-16" in lines[0]
  assert "--config=configs/smoke.py" in lines[-1]
  assert not cloud.calls()


_TASK = """
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
  """A folder to submit launch/slurm/train.sbatch from; Slurm is played."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    (root / "train.py").write_text(_TASK)
    programs(
      root,
      # Its own flags start with --kill; what follows is the task.
      srun='[ "$1" = --kill-on-bad-exit=0 ] && shift && exec "$@"',
      scontrol=f'echo "$@" >>{root}/scontrol',
      python=f'exec {sys.executable} -IS "$@"',
    )

  def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
    own = {
      "PATH": f"{self.root}/bin:{os.environ['PATH']}",
      "MIXER_VENV": str(self.root),
      "SLURM_SUBMIT_DIR": str(self.root),
      "SLURM_GPUS_ON_NODE": "8",
      "SLURM_JOB_ID": "7",
      "CODE": "0",
    }
    return subprocess.Popen(
      ["bash", SCRIPTS[1], *args],
      cwd=self.root,
      env=dict(os.environ) | own | env,
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


@pytest.mark.parametrize(
  ("code", "starts"), [(0, 0), (1, 0), (42, 20), (75, 0), (137, 20)]
)
def test_exit_codes_under_slurm(job, code, starts):
  env = {"CODE": str(code), "SLURM_RESTART_COUNT": str(starts)}
  process = job.start("--config=c.py", "--workdir=w w", **env)
  out, _ = process.communicate(timeout=60)
  assert process.returncode == code
  assert "--cluster=slurm --config=c.py --workdir=w w 0,1,2,3,4,5,6,7" in out
  # Saved: as often as need be. Lost: not for ever.
  assert job.requeued() == (code == 42 or (code > 42 and not starts))


@pytest.mark.parametrize("first", [[], [signal.SIGTERM]])
def test_slurms_notice_before_the_time_limit_reaches_train(job, first):
  with job.start("--wait") as process:
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


def test_what_slurm_has_to_give(job):
  process = job.start(SLURM_GPUS_ON_NODE="")
  assert "is not set: ask for GPUs" in process.communicate(timeout=30)[0]
  out, _ = job.start(MIXER_VENV="/nowhere").communicate(timeout=30)
  assert "run make setup-gpu in" in out
  lines = SCRIPTS[1].read_text().splitlines()
  asked = {x.split()[1] for x in lines if x.startswith("#SBATCH")}
  assert {
    "--requeue", "--ntasks-per-node=1", "--signal=B:USR1@120",
    "--open-mode=append",
  } <= asked  # fmt: skip
  # Slurm reads them up to the first command.
  first = next(i for i, x in enumerate(lines) if x and x[0] != "#")
  assert max(i for i, x in enumerate(lines) if "#SBATCH" in x) < first
