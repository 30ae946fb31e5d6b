"""launch/tpu_vm.sh, on a gcloud that plays a slice with processes here."""

import subprocess
import sys

import pytest

RUN = ("--", "--config=configs/smoke.py", "--workdir=gs://bucket/run")
UNTIL_DONE = ("until-done", "--type=v5e-16", "--spot", "--poll=0")


def test_a_slice_from_creation_to_deletion(cloud):
  cloud.lives([["wait"], ["wait"]])
  created = cloud("create", "--type=v6e-16", "--poll=0")
  assert created.returncode == 0, created.stderr
  assert "WAITING_FOR_RESOURCES" in created.stderr

  assert "mixer-worker w-1 idle" in cloud("status").stdout
  early = cloud("run", *RUN)
  assert early.returncode == 1  # Nothing is there yet.

  (cloud.root / "train.py").write_text(
    (cloud.root / "train.py").read_text() + "# changed, not committed\n"
  )
  (cloud.root / "unknown.py").write_text("")
  setup = cloud("setup", "--prepare=echo mounted >data && test -e mixer")
  assert setup.returncode == 0, setup.stderr
  assert "left out: 1" in setup.stderr
  home = cloud.folder / "hosts" / "1"
  assert (home / "data").read_text() == "mounted\n"
  assert (home / "extras").read_text().split() == ["tpu", "gcs"]
  assert "# changed" in (home / "mixer" / "train.py").read_text()
  assert not (home / "mixer" / "unknown.py").exists()

  run = cloud("run", *RUN, "--config.total=3 epochs")
  assert run.returncode == 0, run.stderr
  # The ssh session is over, train.py is not.
  status = cloud("status").stdout
  assert "request: ACTIVE\nslice: READY\n" in status
  assert "mixer-worker w-0 running" in status
  assert cloud.starts(1) == [
    [*RUN[1:], "--config.total=3 epochs", "--cluster=tpu"]
  ]
  assert "training" in cloud("logs", "--worker=1").stdout

  # The same command again: nothing happens. Another one: refused.
  assert cloud("run", *RUN, "--config.total=3 epochs").returncode == 0
  other = cloud("run", *RUN, "--config.total=4 epochs")
  assert other.returncode == 1
  assert "stop it first" in other.stderr
  assert len(cloud.starts(1)) == 1

  assert cloud("stop").returncode == 0
  for _ in range(100):
    status = cloud("status").stdout
    if "running" not in status:
      break
  assert "mixer-worker w-0 exit 42\nmixer-worker w-1 exit 42\n" in status
  assert cloud("delete").returncode == 0
  assert cloud("delete").returncode == 0  # Already gone.
  assert "slice: ABSENT" in cloud("status").stdout


def test_preempted_twice_then_done(cloud):
  cloud.lives(
    [["taken PREEMPTED, 42"], ["exit 42"]],
    [["exit 1"], ["taken GONE, hang"]],
    [["exit 0"], ["exit 0"]],
  )
  done = cloud(*UNTIL_DONE, *RUN)
  assert done.returncode == 0, done.stderr
  assert "done, after 2 preemptions" in done.stderr
  assert len(cloud.calls("queued-resources", "create", "--spot")) == 3
  assert len(cloud.calls("queued-resources", "delete", "--force")) == 3
  for life in (1, 2, 3):
    for host in (0, 1):
      assert cloud.starts(host, life) == [[*RUN[1:], "--cluster=tpu"]]
  # The logs came back before the slice went.
  log = cloud.root / "runs" / "launch" / "m" / "1.log"
  assert "exit code 0" in log.read_text()


@pytest.mark.slow
def test_saved_without_preemption_starts_again_on_the_same_slice(cloud):
  cloud.lives([["exit 42", "exit 0"], ["exit 42", "exit 0"]])
  done = cloud(*UNTIL_DONE, "--retries=0", "--keep", *RUN)
  assert done.returncode == 0, done.stderr
  assert len(cloud.calls("queued-resources", "create")) == 1
  assert len(cloud.calls("scp")) == 1
  assert len(cloud.starts(0)) == 2
  assert not cloud.calls("delete")
  assert "costs money until: launch/tpu_vm.sh delete --name=m" in done.stderr


def test_a_failure_of_the_run_ends_it(cloud):
  cloud.lives([["exit 0"], ["exit 1"]])
  failed = cloud(*UNTIL_DONE, *RUN)
  assert failed.returncode == 1
  assert "w-1 exit 1 error: the disk is full: give it another." in failed.stderr
  assert len(cloud.starts(1, life=1)) == 1
  assert not (cloud.folder / "node").exists()


def test_a_killed_host_is_started_again_but_not_for_ever(cloud):
  cloud.lives([["killed", "exit 0"], ["exit 1", "exit 0"]])
  done = cloud(*UNTIL_DONE, "--retries=1", *RUN)
  assert done.returncode == 0, done.stderr
  assert len(cloud.starts(1, life=1)) == 2


def test_hosts_that_lost_another_start_again(cloud):
  # 134: so JAX's runtime ends what has lost another.
  cloud.lives([["exit 75", "exit 134", "exit 0"], ["exit 75"] * 2 + ["exit 0"]])
  done = cloud(*UNTIL_DONE, "--retries=2", *RUN)
  assert done.returncode == 0, done.stderr
  assert "train.py on m: lost (failure 2;" in done.stderr
  assert len(cloud.calls("queued-resources", "create")) == 1


def test_a_failure_counts_more_than_those_who_lost_its_host(cloud):
  cloud.lives([["exit 75"], ["exit 1"], ["exit 134"]])
  failed = cloud(*UNTIL_DONE, *RUN)
  assert failed.returncode == 1
  assert "train.py failed; the same would happen again" in failed.stderr
  assert len(cloud.starts(1, life=1)) == 1


@pytest.mark.slow
def test_a_host_that_is_killed_again_and_again_ends_it(cloud):
  cloud.lives([["killed"] * 5])
  failed = cloud(*UNTIL_DONE, "--retries=1", *RUN)
  assert failed.returncode == 1
  assert "too many failures: train.py on m: lost" in failed.stderr


def test_ssh_failures_are_tried_again_but_not_for_ever(cloud):
  cloud.lives([["exit 0"]], [["exit 0"]])
  cloud.put("unreachable", "2")
  done = cloud(*UNTIL_DONE, "--retries=2", *RUN)
  assert done.returncode == 0, done.stderr
  assert "not all hosts of m answer (failure 2;" in done.stderr

  cloud.put("unreachable", "99")
  failed = cloud(*UNTIL_DONE, "--retries=2", *RUN)
  assert failed.returncode == 1
  assert "too many failures: not all hosts of m answer" in failed.stderr
  assert "Connection timed out" in failed.stderr


def test_a_gcloud_that_fails_is_not_taken_for_a_preemption(cloud):
  cloud.lives([["exit 0"]])
  cloud.put("broken", "yes")
  failed = cloud(*UNTIL_DONE, "--retries=1", *RUN)
  assert failed.returncode == 1
  assert "refreshing your current auth tokens" in failed.stderr
  assert not cloud.calls("queued-resources", "create")
  assert "could not be deleted, and costs money" in failed.stderr


def test_a_refused_request_ends_it(cloud):
  cloud.lives()
  failed = cloud(*UNTIL_DONE, "--retries=1", *RUN)
  assert failed.returncode == 1
  assert "too many failures: m could not be made" in failed.stderr
  assert len(cloud.calls("queued-resources", "create")) == 2


def test_until_done_can_be_interrupted_and_takes_up_again(cloud):
  cloud.lives([["exit 0"], ["wait"]])

  def start() -> subprocess.Popen[str]:
    process = cloud.start(*UNTIL_DONE, *RUN)
    assert process.stderr
    for line in process.stderr:
      if line == "tpu_vm: train.py on m: running\n":
        break
    return process

  with start() as process:
    process.terminate()
    _, err = process.communicate(timeout=60)
  assert process.returncode == 130
  assert "m and the run on it go on; the same command takes up again" in err
  with start() as process:
    (cloud.folder / "hosts" / "1" / "go").touch()
    process.communicate(timeout=60)
  assert process.returncode == 0
  assert len(cloud.starts(1, life=1)) == 1
  assert len(cloud.calls("scp")) == 1
  assert len(cloud.calls("queued-resources", "create")) == 1


def test_setup_fetches_a_python_where_the_image_s_is_too_old(cloud):
  cloud.lives([["exit 0"]])
  for name in ("python3", *(f"python3.{n}" for n in range(11, 15))):
    cloud.program(name, "exit 1")
  cloud.program("uv", f'[ "$2" = install ] || echo {sys.executable}')
  cloud("create", "--type=v6e-8", "--poll=0")
  setup = cloud("setup")
  assert setup.returncode == 0, setup.stderr
  python = cloud.folder / "hosts" / "0" / ".venv-mixer" / "bin" / "python"
  assert str(python.readlink()) == sys.executable


@pytest.mark.parametrize(
  ("args", "sentence"),
  [
    (("create",), "create needs --type, as in --type=v5litepod-64."),
    (("create", "--type=v6e-12"), "slices of 1, 4, 8, 16, 32, 64, 128 and 256"),
    (("create", "--type=v4-8"), "name its image by --version"),
    (("create", "--type=v6e-8", "--sopt"), "--sopt is not known"),
    (("create", "--type=v6e-8", *RUN), "create takes nothing behind --"),
    (("delete", "--name"), "--name is not known, or lacks a =VALUE"),
    (("delete", "--zone="), "delete needs --zone=ZONE"),
    (("delete", "--name=My TPU"), "small letters, digits and dashes"),
    (("create", "--type=v6e-8", "--poll=soon"), "--retries and --poll take"),
    (("logs", "--worker=one"), "--worker=one: a number, or all."),
    (("run",), "run needs train.py's own flags behind --"),
    (("run", "--workdir=gs://b/r"), "--workdir=gs://b/r is a flag of train.py"),
    (("run", "--", "--config=x.py"), "run needs train.py's own flags"),
    ((*UNTIL_DONE, *RUN[:2], "--workdir=/tmp/x"), "would be deleted with the"),
    (("launch",), "'launch' is no command"),
  ],
)
def test_bad_arguments_give_a_sentence(bare_cloud, args, sentence):
  done = bare_cloud(*args)
  assert done.returncode == 2
  assert done.stderr.startswith("error: ")
  assert sentence in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert not bare_cloud.calls()
