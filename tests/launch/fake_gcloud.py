"""A gcloud for tests: one Cloud TPU slice, whose hosts are folders here.

Run as a program, with the folder of the cloud in FAKE_CLOUD. There are:

  node, request    their states; missing: there is no such thing
  lives.json       for each slice that gets created, what each host's train.py
                   does at each start; see `fake_train.py`
  hosts/N          the home of host N; old ones are in past/LIFE
  unreachable      how many of the next ssh commands fail
  broken           gcloud itself fails
  calls            every command line, a JSON list a line

ssh runs commands for real, with bash, in the home of each host.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
QUEUE = {"CREATING": "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES": "ACTIVE"}


def fail(text: str, code: int = 1):
  print(f"ERROR: (gcloud) {text}", file=sys.stderr)
  sys.exit(code)


def get(name: str) -> str | None:
  path = CLOUD / name
  return path.read_text() if path.exists() else None


def put(name: str, value: str | None) -> None:
  path = CLOUD / name
  if value is None:
    path.unlink(missing_ok=True)
  else:
    path.write_text(value)


def hosts() -> list[pathlib.Path]:
  return sorted((CLOUD / "hosts").iterdir())


def create() -> None:
  lives = json.loads(get("lives.json") or "")
  life = int(get("life") or 0)
  if get("request"):
    fail("ALREADY_EXISTS: the request is there.")
  if life == len(lives):
    fail("the test has no slice left")
  put("request", "CREATING")
  put("life", str(life + 1))


def provide() -> None:
  put("node", "READY")
  life = int(get("life") or 0)
  plot = json.loads(get("lives.json") or "")[life - 1]
  for number, starts in enumerate(plot):
    home = CLOUD / "hosts" / str(number)
    home.mkdir(parents=True)
    (home / "plot.json").write_text(json.dumps(starts))


def delete() -> None:
  if not get("request"):
    fail("NOT_FOUND: Resource was not found.")
  put("request", None)
  put("node", None)
  if not (CLOUD / "hosts").exists():
    return
  for home in hosts():
    pid = home / "mixer-run" / "pid"
    if pid.exists() and not (home / "mixer-run" / "exit").exists():
      try:
        os.kill(int(pid.read_text()), signal.SIGKILL)
      except ProcessLookupError:
        pass
  (CLOUD / "past").mkdir(exist_ok=True)
  shutil.move(CLOUD / "hosts", CLOUD / "past" / (get("life") or ""))


def chosen(flags: dict[str, str]) -> list[pathlib.Path]:
  """The homes that --worker names; the default is gcloud's."""
  if get("node") != "READY":
    fail(f"the slice is {get('node')}")
  if left := int(get("unreachable") or 0):
    put("unreachable", str(left - 1))
    fail("ssh: connect to host port 22: Connection timed out", 255)
  worker = flags.get("--worker", "0")
  return hosts() if worker == "all" else [hosts()[int(worker)]]


def ssh(flags: dict[str, str]) -> None:
  codes = []
  for home in chosen(flags):
    out = None
    if "--output-directory" in flags:
      out = open(f"{flags['--output-directory']}/{home.name}.log", "w")
    code = subprocess.run(
      ["bash", "-c", flags["--command"]],
      cwd=home,
      stdin=subprocess.DEVNULL,
      stdout=out,
      env=dict(os.environ) | {"HOME": str(home)},
    ).returncode
    codes.append(code)
  sys.exit(next((c for c in codes if c), 0))


def main(argv: list[str]) -> None:
  with open(CLOUD / "calls", "a") as f:
    f.write(json.dumps(argv) + "\n")
  if get("broken"):
    fail("There was a problem refreshing your current auth tokens")
  words = [a for a in argv if not a.startswith("--")]
  split = [a.partition("=") for a in argv if a.startswith("--")]
  flags = {flag: value for flag, _, value in split}
  assert words[:2] == ["compute", "tpus"], words
  match words[2:4]:
    case ["queued-resources", "create"]:
      create()
    case ["queued-resources", "delete"]:
      delete()
    case ["queued-resources", "describe"]:
      state = get("request")
      if state is None:
        fail("NOT_FOUND: Resource was not found.")
      print(state)
      if state in QUEUE:
        put("request", QUEUE[state])
        if QUEUE[state] == "ACTIVE":
          provide()
    case ["tpu-vm", "describe"]:
      state = get("node")
      if state is None:
        fail("NOT_FOUND: Resource was not found.")
      print(state)
    case ["tpu-vm", "ssh"]:
      ssh(flags)
    case ["tpu-vm", "scp"]:
      for home in chosen(flags):
        shutil.copy(words[4], home / words[5].partition(":")[2])
    case other:
      fail(f"no such command: {other}", 2)


if __name__ == "__main__":
  main(sys.argv[1:])
