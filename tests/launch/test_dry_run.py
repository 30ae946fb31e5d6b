"""What launch/tpu_vm.sh would do: every command, for a shell, and no more."""

import os
import shlex
import shutil
import subprocess

import pytest

from tests import conftest

TRAIN = (
  "--config=configs/mixer_b16_i21k.py",
  "--workdir=gs://b/r",
  "--config.total=3 epochs",
)
# gcloud --help, version 528.0.0; --quiet and --project are for all commands.
FLAGS = {
  "queued-resources create": {
    "--node-id", "--zone", "--accelerator-type", "--runtime-version", "--spot",
    "--internal-ips", "--data-disk", "--service-account", "--scopes",
    "--network", "--subnetwork", "--reserved",
  },
  "queued-resources describe": {"--zone", "--format"},
  "queued-resources delete": {"--zone", "--force"},
  "tpu-vm describe": {"--zone", "--format"},
  "tpu-vm ssh": {
    "--zone", "--worker", "--command", "--ssh-flag", "--output-directory",
    "--internal-ip",
  },
  "tpu-vm scp": {"--zone", "--worker", "--scp-flag", "--internal-ip"},
}  # fmt: skip
_SAID = ("tpu_vm: a dry run: no command is run", "tpu_vm: without --spot")
# --type, the name that gcloud has for it, the image.
SLICES = [
  ("v5e-8", "v5litepod-8", "v2-alpha-tpuv5-lite"),
  ("v5litepod-64", "v5litepod-64", "v2-alpha-tpuv5-lite"),
  ("v6e-64", "v6e-64", "v2-alpha-tpuv6e"),
]


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory):
  """Dry runs; (words, flags) of each command that one prints."""
  folder = tmp_path_factory.mktemp("dry")
  executed = folder / "executed"
  for program in ("gcloud", "git", "ssh", "mkdir", "sleep"):
    (folder / program).write_text(f"#!/bin/sh\necho {program} >>{executed}\n")
    (folder / program).chmod(0o755)

  def run(*args: str) -> list[tuple[list[str], dict[str, list[str]]]]:
    done = subprocess.run(
      [
        str(conftest.ROOT / "launch" / "tpu_vm.sh"),
        args[0],
        "--name=m",
        "--zone=z",
        "--dry-run",
        *args[1:],
      ],
      env=dict(os.environ) | {"PATH": f"{folder}:{os.environ['PATH']}"},
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not executed.exists(), executed.read_text()
    # Nothing that is said to have happened.
    said = done.stderr.splitlines()
    assert all(s.startswith(_SAID) for s in said) and len(said) <= 2, said
    return _parsed(done.stdout)

  return run


def _parsed(text: str) -> list[tuple[list[str], dict[str, list[str]]]]:
  commands = []
  for line in text.splitlines():
    argv = shlex.split(line)
    flags: dict[str, list[str]] = {}
    for arg in argv:
      if arg.startswith("--"):
        flag, _, value = arg.partition("=")
        flags.setdefault(flag, []).append(value)
    words = [a for a in argv if not a.startswith("--")]
    if words[0] == "gcloud":
      known = FLAGS[" ".join(words[3:5])] | {"--quiet", "--project"}
      assert known.issuperset(flags), line
      assert flags["--zone"] == ["z"]
    commands.append((words, flags))
  return commands


def names(commands) -> list[str]:
  return [" ".join(w[3:5] if w[0] == "gcloud" else w[:1]) for w, _ in commands]


@pytest.mark.parametrize("slice_", SLICES, ids=lambda s: s[0])
@pytest.mark.parametrize("spot", [True, False])
def test_create(dry, slice_, spot):
  commands = dry("create", f"--type={slice_[0]}", *["--spot"] * spot)
  assert names(commands) == [
    "queued-resources create",
    "queued-resources describe",
  ]
  words, flags = commands[0]
  assert words[-1] == "m"
  assert flags["--node-id"] == ["m"]
  assert flags["--accelerator-type"] == [slice_[1]]
  assert flags["--runtime-version"] == [slice_[2]]
  assert ("--spot" in flags) == spot


def test_create_passes_gcloud_flags_on(dry):
  disk = "--data-disk=mode=read-only,source=projects/p/zones/z/disks/d"
  commands = dry(
    "create", "--type=v6e-8", "--project=p", "--internal_ip",
    f"--create_flag={disk}", "--version=v2-mine",
  )  # fmt: skip
  _, flags = commands[0]
  assert flags["--data-disk"] == [disk.partition("=")[2]]
  assert flags["--runtime-version"] == ["v2-mine"]
  assert flags["--project"] == ["p"]
  assert "--internal-ips" in flags


def test_setup_copies_the_checkout_to_all_hosts(dry):
  commands = dry("setup", "--prepare=mount /data")
  assert names(commands) == ["git", "git", "tpu-vm scp", "tpu-vm ssh"]
  archive = commands[1][1]["--output"][0]
  words, flags = commands[2]
  assert words[-2:] == [archive, "m:mixer.tar.gz"]
  assert flags["--worker"] == ["all"]
  _, flags = commands[3]
  assert flags["--worker"] == ["all"]
  assert flags["--command"] == [
    "rm -rf mixer && tar -xzf mixer.tar.gz && "
    "mixer/launch/worker.sh setup tpu gcs && { mount /data; }"
  ]


def test_setup_from_a_repository(dry):
  commands = dry("setup", "--repo=https://example.com/a b.git", "--ref=v1")
  assert names(commands) == ["tpu-vm ssh"]
  (script,) = commands[0][1]["--command"]
  clone, checkout, setup = (
    shlex.split(part) for part in script.split(" && ")[1:]
  )
  assert clone[-2:] == ["https://example.com/a b.git", "mixer"]
  assert checkout[-1] == "v1"
  assert setup[0] == "mixer/launch/worker.sh"


def test_run_starts_the_same_command_on_all_hosts(dry):
  commands = dry("run", "--", *TRAIN)
  assert names(commands) == ["tpu-vm ssh"]
  _, flags = commands[0]
  assert flags["--worker"] == ["all"]
  assert shlex.split(flags["--command"][0]) == [
    "mixer/launch/worker.sh", "start", *TRAIN, "--cluster=tpu",
  ]  # fmt: skip
  (_, flags), *_ = dry("run", "--", *TRAIN, "--cluster=none")
  assert shlex.split(flags["--command"][0])[2:] == [*TRAIN, "--cluster=none"]


def test_status_logs_stop_and_delete(dry):
  commands = dry("status")
  assert names(commands) == [
    "queued-resources describe",
    "tpu-vm describe",
    "tpu-vm ssh",
  ]
  ((_, flags),) = dry("logs", "--worker=3", "--internal_ip")
  assert flags["--worker"] == ["3"]
  assert flags["--command"] == ["mixer/launch/worker.sh log"]
  assert "--internal-ip" in flags
  ((_, flags),) = dry("logs", "--follow")
  assert flags["--worker"] == ["0"]
  assert flags["--command"] == ["mixer/launch/worker.sh follow"]
  ((_, flags),) = dry("stop")
  assert flags["--worker"] == ["all"]
  ((words, flags),) = dry("delete")
  assert words[3:] == ["queued-resources", "delete", "m"]
  assert "--force" in flags  # The slice goes with its request.


@pytest.mark.parametrize("slice_", SLICES, ids=lambda s: s[0])
def test_until_done_does_all_of_that_in_order(dry, slice_):
  commands = dry("until-done", f"--type={slice_[0]}", "--spot", "--", *TRAIN)
  doing = [n for n in names(commands) if "describe" not in n]
  assert doing == [
    "queued-resources create", "tpu-vm ssh", "git", "git", "tpu-vm scp",
    "tpu-vm ssh", "tpu-vm ssh", "tpu-vm ssh", "mkdir", "tpu-vm ssh",
    "queued-resources delete",
  ]  # fmt: skip
  scripts = [
    f["--command"][0] for w, f in commands if w[3:5] == ["tpu-vm", "ssh"]
  ]
  wanted = ["state;", "setup tpu gcs", "start --config", "state;", "log 2000"]
  for script, what in zip(scripts, wanted, strict=True):
    assert f" {what}" in script
  kept = dry("until-done", "--type=v6e-8", "--keep", "--", *TRAIN)
  assert "queued-resources delete" not in names(kept)


@pytest.mark.slow  # gcloud takes a second for each.
@pytest.mark.parametrize("command", FLAGS)
def test_gcloud_has_these_flags(command):
  if not shutil.which("gcloud"):
    pytest.skip("gcloud is not installed")
  text = subprocess.run(
    ["gcloud", "compute", "tpus", *command.split(), "--help"],
    capture_output=True, text=True, env=dict(os.environ) | {"TERM": "dumb"},
  ).stdout  # fmt: skip
  for flag in FLAGS[command]:
    assert flag in text, flag
