"""A gcloud for tests: one Cloud TPU slice, whose hosts are folders here.

Run as a program, with the folder of the cloud in FAKE_CLOUD. There are:

  node, request    their states; missing: there is no such thing
  lives.json       for each slice that gets created, what each host's train.py
                   does at each start; see `train`
  hosts/N          the home of host N; old ones are in past/LIFE
  unreachable      how many of the next ssh commands fail
  broken           gcloud itself fails
  calls            every command line, a JSON list a line

ssh runs commands for real, with bash, in the home of each host.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
QUEUE = {"CREATING": "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES": "ACTIVE"}
# gcloud --help, version 528.0.0; --quiet and --project are for all commands.
FLAGS = {
  "queued-resources create": "--node-id --accelerator-type --runtime-version "
  "--spot --internal-ips --data-disk --service-account --network --reserved",
  "queued-resources describe": "--format",
  "queued-resources delete": "--force",
  "tpu-vm describe": "--format",
  "tpu-vm ssh": "--worker --command --ssh-flag --internal-ip",
  "tpu-vm scp": "--worker --scp-flag --internal-ip",
}


def fail(text: str, code: int = 1):
  print(f"ERROR: (gcloud) {text}", file=sys.stderr)
  sys.exit(code)


def get(name: str) -> str:
  path = CLOUD / name
  return path.read_text() if path.exists() else ""


def put(name: str, value: object) -> None:
  (CLOUD / name).write_text(str(value))


def create() -> None:
  life = int(get("life") or 0)
  if get("request"):
    fail("ALREADY_EXISTS: the request is there.")
  if life >= len(json.loads(get("lives.json"))):
    fail("the test has no slice left")
  put("request", "CREATING")
  put("life", life + 1)


def describe(kind: str) -> None:
  state = get(kind) or fail("NOT_FOUND: Resource was not found.")
  print(state)
  if kind == "request" and state in QUEUE:
    put("request", QUEUE[state])
    if QUEUE[state] == "ACTIVE":
      put("node", "READY")
      plots = json.loads(get("lives.json"))[int(get("life")) - 1]
      for number, starts in enumerate(plots):
        (CLOUD / "hosts" / str(number)).mkdir(parents=True)
        put(f"hosts/{number}/plot.json", json.dumps(starts))


def delete() -> None:
  if not get("request"):
    fail("NOT_FOUND: Resource was not found.")
  for name in ("request", "node"):
    (CLOUD / name).unlink(missing_ok=True)
  for path in CLOUD.glob("hosts/*/pids"):
    for pid in path.read_text().split():
      with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGKILL)
  if (CLOUD / "hosts").exists():
    (CLOUD / "past").mkdir(exist_ok=True)
    shutil.move(CLOUD / "hosts", CLOUD / "past" / get("life"))


def chosen(worker: str) -> list[pathlib.Path]:
  """The homes that --worker names."""
  if get("node") != "READY":
    fail(f"the slice is {get('node')}")
  if left := int(get("unreachable") or 0):
    put("unreachable", left - 1)
    fail("ssh: connect to host port 22: Connection timed out", 255)
  hosts = sorted((CLOUD / "hosts").iterdir())
  return hosts if worker == "all" else [hosts[int(worker)]]


def ssh(worker: str, command: str) -> None:
  codes = []
  for home in chosen(worker):
    env, nothing = os.environ | {"HOME": str(home)}, subprocess.DEVNULL
    words = ["bash", "-c", command]
    done = subprocess.run(words, cwd=home, stdin=nothing, env=env)
    codes.append(done.returncode)
  sys.exit(next(filter(None, codes), 0))


def train() -> None:
  """A train.py: does at each start what the plot of its host says.

  exit CODE              prints a line, exits
  taken STATE, CODE      the slice becomes STATE (or GONE), then it exits
  taken STATE, hang      the slice becomes STATE, it goes on
  killed                 dies of SIGKILL
  wait                   runs until there is a file `go` in the home, exits 0
  SIGTERM                makes it exit 42, whatever it does
  """
  home = pathlib.Path(os.environ["HOME"])
  signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
  with open(home / "starts", "a") as f, open(home / "pids", "a") as pids:
    f.write(json.dumps(sys.argv[2:]) + "\n")
    pids.write(f"{os.getpid()}\n")
  number = len((home / "starts").read_text().splitlines())
  plot = json.loads((home / "plot.json").read_text())
  what, _, rest = plot[number - 1].partition(" ")
  print("training", flush=True)
  if what == "taken":
    state, _, rest = rest.partition(", ")
    put("request", "SUSPENDED")
    put("node", "" if state == "GONE" else state)
    if rest == "hang":
      time.sleep(60)
  if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
  if what == "wait":
    rest = "0"
    for _ in range(3000):
      if (home / "go").exists():
        break
      time.sleep(0.02)
  if rest == "1":
    print("error: the disk is full: give it another.", flush=True)
  sys.exit(int(rest))


def main(argv: list[str]) -> None:
  with open(CLOUD / "calls", "a") as f:
    f.write(json.dumps(argv) + "\n")
  if get("broken"):
    fail("There was a problem refreshing your current auth tokens")
  words = [a for a in argv if not a.startswith("--")]
  flags = dict(a.partition("=")[::2] for a in argv if a.startswith("--"))
  command = " ".join(words[2:4])
  known = {*FLAGS[command].split(), "--quiet", "--project", "--zone"}
  assert words[:2] == ["compute", "tpus"] and known >= {*flags}, argv
  assert flags["--zone"] == "z"
  match command:
    case "queued-resources create":
      create()
    case "queued-resources delete":
      delete()
    case "tpu-vm ssh":
      ssh(flags["--worker"], flags["--command"])
    case "tpu-vm scp":
      for home in chosen(flags["--worker"]):
        shutil.copy(words[4], home / words[5].partition(":")[2])
    case _:
      describe("node" if "tpu-vm" in command else "request")


if __name__ == "__main__":
  train() if sys.argv[1:2] == ["train"] else main(sys.argv[1:])
