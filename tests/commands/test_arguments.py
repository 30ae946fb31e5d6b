"""A command's flags are read, and told of, before its imports."""

import re
import subprocess
import sys

import pytest

from mixer import __main__ as mixer_command
from mixer import config as config_lib
from mixer import distributed, resolution, run_flags, trained_flags
from mixer.commands import arguments, export
from mixer.exporting import stablehlo
from mixer.insight import activations, figures
from mixer.prediction import formats
from tests import conftest

_COMMANDS = [
  "train.py",
  *(f"-m mixer {name}" for name in mixer_command.commands()),
]
_HEAVY = ("jax", "flax", "optax", "orbax", "tensorflow_datasets", "numpy")
# One that only that command has.
_FLAGS = {
  "train.py": "--allow_change",
  "sweep": "--allow_change",
  "demo": "--workdir",
  "evaluate": "--same_classes",
  "export": "--platforms",
  "inspect": "OTHER",
  "plan": "--core_rate",
  "predict": "--features",
  "prepare": "--hold_out",
  "replay": "--step",
  "report": "--evaluate",
  "visualize": "--smooth",
}


def run(command, *words):
  """Runs it; none of what takes long may have been imported."""
  done = subprocess.run(
    [sys.executable, "-X", "importtime", *command.split(), *words],
    cwd=conftest.ROOT,
    capture_output=True,
    text=True,
  )
  err = re.sub(r"(?m)^import time:.*\| *(\S+)\n", r"\1|", done.stderr)
  *imported, done.stderr = err.split("|")
  assert "mixer.command_line" in imported
  assert not {*imported} & {*_HEAVY}
  return done


@pytest.mark.parametrize("command", _COMMANDS)
def test_help(command):
  done = run(command, "--help")
  assert (done.returncode, done.stderr) == (0, "")
  assert _FLAGS[command.removeprefix("-m mixer ")] in done.stdout
  if command in ("train.py", "-m mixer sweep", "-m mixer plan"):
    for key, (default, _) in config_lib.KEYS.items():
      assert f"  {config_lib.override(key, default)}\n      " in done.stdout
  assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_flag_that_is_not_there(command):
  done = run(command, "--nosuch")
  assert done.returncode in (1, 2) and done.stdout == ""
  assert "Traceback" not in done.stderr
  assert re.search("nosuch|required: |is missing: ", done.stderr)


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_command_alone_says_what_it_needs(command):
  if command == "-m mixer demo":
    return  # It needs nothing.
  done = run(command)
  assert done.returncode in (1, 2) and done.stdout == ""
  said = "name a |required: |is missing: name it"
  assert re.search(said, done.stderr.splitlines()[-1])


def test_the_commands_are_listed(capsys, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["mixer"])
  assert mixer_command.main() == 0
  said = capsys.readouterr().out
  for name in ("predict", "prepare", "sweep"):
    assert re.search(rf"(?m)^  {name} +\w.*\.$", said)
  assert "arguments" not in said


def test_choices_are_what_there_is():
  assert arguments.EMBEDDINGS == tuple(activations.METHODS)
  assert arguments.FIGURES == tuple(figures.DRAW)
  assert arguments.FORMATS == formats.NAMES
  assert arguments.PLATFORMS == stablehlo.PLATFORMS
  assert tuple(arguments.TARGETS) == tuple(export._TARGETS)
  assert trained_flags._METHODS == resolution.METHODS
  assert run_flags._CLUSTERS == distributed.CLUSTERS
