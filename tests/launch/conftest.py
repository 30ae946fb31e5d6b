"""A cloud to launch on."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from tests import conftest

HERE = pathlib.Path(__file__).parent
MAKEFILE = """
setup-%:
\tmkdir -p $(VENV)/bin && ln -sf $(PYTHON) $(VENV)/bin/python
\techo $* >>$(HOME)/extras
"""


class Cloud:
  """A small checkout with the real launch/, and the gcloud of tests."""

  def __init__(self, root: pathlib.Path):
    self.root = root / "checkout"
    self.folder = root / "cloud"
    self.folder.mkdir(parents=True)
    shutil.copytree(conftest.ROOT / "launch", self.root / "launch")
    shutil.copy(HERE / "fake_train.py", self.root / "train.py")
    (self.root / "Makefile").write_text(MAKEFILE)
    self._bin = root / "bin"
    self._bin.mkdir()
    self.program(
      "gcloud", f'exec {sys.executable} -IS {HERE}/fake_gcloud.py "$@"'
    )
    self.program("hostname", 'echo "w-$(basename "$HOME")"')
    # The machine's own Python 3 may be too old.
    self.program("python3", f'exec {sys.executable} "$@"')
    self.env = dict(os.environ) | {
      "PATH": f"{self._bin}:{os.environ['PATH']}",
      "FAKE_CLOUD": str(self.folder),
      "HOME": str(root),
      "GIT_CONFIG_GLOBAL": os.devnull,
    }
    for key in ("MIXER_RUN", "MIXER_VENV"):
      self.env.pop(key, None)
    self._git("init", "--quiet")
    self._git("add", ".")
    self._git("commit", "--quiet", "--message=x")

  def _git(self, *args: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run(
      ["git", *identity, *args], cwd=self.root, env=self.env, check=True
    )

  def program(self, name: str, script: str) -> None:
    """Puts a program on PATH, before what is there."""
    (self._bin / name).write_text(f"#!/bin/sh\n{script}\n")
    (self._bin / name).chmod(0o755)

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

  def starts(self, host: int, life: int | None = None) -> list[list[str]]:
    """The flags of each start of train.py on a host; None: the slice of now."""
    folder = "hosts" if life is None else f"past/{life}"
    path = self.folder / folder / str(host) / "starts"
    return [json.loads(line) for line in path.read_text().splitlines()]

  def start(self, command: str, *args: str) -> subprocess.Popen[str]:
    """Starts launch/tpu_vm.sh."""
    script = str(self.root / "launch" / "tpu_vm.sh")
    return subprocess.Popen(
      [script, command, "--name=m", "--zone=z", *args],
      cwd=self.root.parent,
      env=self.env,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def __call__(
    self, command: str, *args: str
  ) -> subprocess.CompletedProcess[str]:
    """Runs launch/tpu_vm.sh to its end."""
    process = self.start(command, *args)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(
      process.args, process.returncode, out, err
    )


@pytest.fixture(scope="package")
def bare_cloud(tmp_path_factory: pytest.TempPathFactory) -> Cloud:
  """One that nothing is made on."""
  return Cloud(tmp_path_factory.mktemp("bare"))


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> Iterator[Cloud]:
  """An empty cloud; what still runs on it afterwards is ended."""
  cloud = Cloud(tmp_path)
  yield cloud
  (cloud.folder / "broken").unlink(missing_ok=True)
  if (cloud.folder / "request").exists():
    cloud("delete")
