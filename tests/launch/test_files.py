"""The files of launch/, and what docs/launch.md says of them."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from mixer import cli, distributed
from tests import conftest

LAUNCH = conftest.ROOT / "launch"
PAGE = conftest.ROOT / "docs" / "launch.md"
SCRIPTS = [
  *LAUNCH.glob("*.sh"),
  *(LAUNCH / "slurm").iterdir(),
  conftest.ROOT / ".ci" / "run",
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shell_scripts(script: pathlib.Path):
  subprocess.run(["bash", "-n", script], check=True)
  beside = pathlib.Path(sys.executable).parent
  found = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
  if not found:
    pytest.skip("shellcheck is not installed: make setup-dev does it")
  done = subprocess.run(
    [found, "--external-sources", script], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout


def check_train_command(command: str, env: dict[str, str]) -> dict[str, str]:
  """A command line of train.py is one that it takes; returns its flags."""
  words = shlex.split(command.partition("train.py ")[2])
  given = {flag: value for flag, _, value in (w.partition("=") for w in words)}
  known = cli.parser("train.py").format_help()
  for flag in given:
    assert flag.startswith("--"), command
    assert f"  {flag} " in known, flag
  config = given["--config"].replace("$CONFIG", env.get("CONFIG", ""))
  assert (conftest.ROOT / config.partition(":")[0]).is_file()
  assert given["--cluster"] in distributed.CLUSTERS
  return given


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_skypilot(kind):
  task = yaml.safe_load((LAUNCH / f"skypilot_{kind}.yaml").read_text())
  assert task["resources"]["use_spot"] is True
  recovery = task["resources"]["job_recovery"]
  assert recovery["recover_on_exit_codes"] == [42, 75]
  assert recovery["max_restarts_on_errors"] < 10  # A real error ends.
  assert task["setup"].split() == ["launch/worker.sh", "setup", kind, "gcs"]
  command = task["run"].replace("\\\n", " ")
  command = re.sub(r"\$\([^)]*\)", "HOST", command)
  given = check_train_command(command, task["envs"])
  assert given["--workdir"] == "$WORKDIR"
  assert given["--config.data.data_dir"] in task["file_mounts"]
  assert task["envs"]["WORKDIR"] is None  # Has to be given.
  if kind == "gpu":
    assert given["--coordinator_address"] == "HOST:8476"
    assert given["--process_id"] == "$SKYPILOT_NODE_RANK"


def test_jobset():
  jobset = yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())
  assert jobset["kind"] == "JobSet"
  (annotation,) = jobset["metadata"]["annotations"].items()
  assert annotation == (
    "alpha.jobset.sigs.k8s.io/exclusive-topology",
    "cloud.google.com/gke-nodepool",
  )
  (replicated,) = jobset["spec"]["replicatedJobs"]
  assert replicated["replicas"] == 1
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
  volumes = {v["name"] for v in pod["volumes"]}
  (mount,) = container["volumeMounts"]
  assert mount["name"] in volumes

  def outcome(code: int, disrupted: bool = False) -> str:
    """What becomes of the JobSet: Kubernetes' rules, then JobSet's own."""
    reason, message = "BackoffLimitExceeded", "Job has reached the limit"
    for i, rule in enumerate(job["podFailurePolicy"]["rules"]):
      assert rule["action"] == "FailJob"
      end = f"matching FailJob rule at index {i}"
      codes = rule.get("onExitCodes")
      if codes and codes["operator"] == "In" and code in codes["values"]:
        assert codes["containerName"] == container["name"]
        reason = "PodFailurePolicy"
        message = (
          f"Container train for pod x/y failed with exit code {code} {end}"
        )
        break
      (condition,) = rule.get("onPodConditions", [{"type": ""}])
      if disrupted and condition["type"] == "DisruptionTarget":
        reason = "PodFailurePolicy"
        message = f"Pod x/y has condition DisruptionTarget {end}"
        break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
      assert re.fullmatch(
        r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"]
      )
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

  assert container["command"] == ["bash", "-c"]
  (script,) = container["args"]
  subprocess.run(["bash", "-n"], input=script, text=True, check=True)
  env = {e["name"]: e["value"] for e in container["env"]}
  given = check_train_command(script.replace("\\\n", " "), env)
  assert given["--cluster"] == "gke"
  assert given["--config.data.data_dir"] == mount["mountPath"]


def test_the_page_names_files_that_are_there():
  text = PAGE.read_text()
  for path in re.findall(r"\blaunch/[\w/.]+\.(?:sh|yaml|sbatch)", text):
    assert (conftest.ROOT / path).is_file(), path
  for path in LAUNCH.rglob("*"):
    if path.is_file() and path.name not in ("slice.sh", "until_done.sh"):
      assert f"launch/{path.relative_to(LAUNCH)}" in text, path


def test_the_usage_has_all_flags():
  script = (LAUNCH / "tpu_vm.sh").read_text()
  usage, code = script.split("\nEND\n")
  for flag in re.findall(r"^    (--[\w-]+)=?\*?\) ", code, re.MULTILINE):
    assert flag in usage, flag
