"""What the documents tell readers to type works.

Every command is looked at here: flags are parsed, configs loaded and validated,
files that are named exist. tests/test_documents_run.py runs them.
"""

import contextlib
import functools
import io
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mixer import cli, validation
from mixer import config as config_lib
from tests import documents
from tests.conftest import ROOT

COMMANDS = documents.commands()
MESSAGES = documents.messages()
# Programs that aren't ours: a shell has to understand the line, and
# tests/test_documents_run.py says what becomes of it.
FOREIGN = {
  *("apt", "apt-get", "dpkg", "unzip", "ssh-add"),  # Of a system.
  *("gcloud", "kubectl", "sky"),  # Of a cloud.
  *("find", "jq"),
}
# Of other programs, as sentences name them.
FOREIGN_FLAGS = {
  *("file-cache-max-size-mb", "cache-dir"),  # gcsfuse
  *("target-size-policy-mode", "service-account"),  # gcloud
  *("helpfull", "helpshort"),  # absl
  *("short", "sparse", "force-reinstall"),  # git, tar, pip
  "xla_cpu_experimental_ynn_fusion_type",
  "help",
}


def simple_commands(text: str) -> list[list[str]]:
  """The words of each command of a line."""
  lexer = shlex.shlex(
    documents.as_typed(text), posix=True, punctuation_chars="|&;<>"
  )
  lexer.whitespace_split = True
  found: list[list[str]] = [[]]
  into = False  # What follows is the name of a file.
  for word in lexer:
    if set(word) <= set("|&;"):
      found.append([])
    elif not into and not set(word) <= set("<>"):
      found[-1].append(word)
    into = set(word) <= set("<>")
  return [words for words in found if words]


def reads(name: str, words: Sequence[str]) -> Any:
  """The flags of train.py or of a command, as it reads them."""
  parser = cli.parser(name)
  for action in parser._actions:
    action.required = False  # A sentence may name some alone.
  words = [
    w.replace("--config=...", "--config=configs/smoke.py").replace(
      "--config=", f"--config={ROOT}/"
    )
    for w in words
  ]
  if "--config" in parser._option_string_actions:
    words.insert(0, f"--config={ROOT}/configs/finetune.py")
  with contextlib.redirect_stderr(io.StringIO()) as err:
    try:
      args = parser.read(words)
    except SystemExit as e:
      assert not e.code, err.getvalue()
      return None
  if hasattr(args, "config"):
    validation.validate(args.config, 1)
  return args


@functools.cache
def flags_of(name: str) -> set[str]:
  """Names of all flags of a program, without dashes."""
  if name in ("train.py", *cli.COMMANDS):
    said = cli.parser(name).format_help()
  else:  # A module, as `benchmarks.step`.
    path = ROOT.joinpath(*name.split("."))
    places = path.with_suffix(".py"), path / "__main__.py"
    places += (ROOT / name.partition(".")[0] / "__init__.py",)
    said = "".join(p.read_text() for p in places if p.exists())
  return {*re.findall(r"(?<![\w-])--(\w[\w.-]*)", said), "help"}


@functools.cache
def all_flags() -> set[str]:
  """Of all our commands, and those of others that sentences name."""
  usage = (ROOT / "launch/tpu_vm.sh").read_text()
  modules = [f"benchmarks.{p.stem}" for p in ROOT.glob("benchmarks/*.py")]
  return FOREIGN_FLAGS.union(
    re.findall(r"(?m)^  --([\w-]+)", usage),
    *map(flags_of, ("train.py", *cli.COMMANDS, *modules)),
  )


def only_flags(words: list[str]) -> None:
  """Flags that are named without their command."""
  for word in words:
    name, given, _ = word.removeprefix("--").partition("=")
    key = name.removeprefix("config.")
    if name == "config" or (key != name and given and key != "KEY"):
      reads("train.py", [word])
    elif key != name:
      assert key in {"KEY", *config_lib.KEYS}, f"the config has no key {key}"
    elif word.startswith("--"):
      assert name in all_flags(), (
        f"no command here has a flag --{name}; if it is another program's, "
        "name it in FOREIGN_FLAGS of tests/test_documents.py"
      )


def python(words: list[str]) -> None:
  match words:
    case ["-m", "mixer", *rest]:
      mixer(rest)
    case ["-m", module, *rest] if re.match(r"benchmarks|mixer\.", module):
      if module not in documents.ANY_OF_A_KIND:
        for word in rest:
          flag = word.removeprefix("--").partition("=")[0].replace("no-", "")
          assert not word.startswith("--") or flag in flags_of(module), word
    case ["-m", "pip", *rest]:
      pip(rest)
    case ["-m", "pytest", *paths]:
      there(paths)
    case ["train.py", *rest]:
      reads("train.py", rest)
    case ["-X", "importtime"]:
      pass
    case _:
      raise AssertionError("no test knows what Python is to run here")


def mixer(words: list[str]) -> None:
  name, *rest = words
  if name not in ("NAME", "COMMAND", "--help"):
    reads(name, rest)


def pip(words: list[str]) -> None:
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())
  extras = project["project"]["optional-dependencies"]
  assert words[0] in ("install", "download")
  for word in words:
    extra = re.fullmatch(r"\.\[(\w+)\]", word)
    assert not extra or extra[1] in extras, f"there is no extra {word}"
    there([word] * word.endswith(".txt"))


def dry(*words: str) -> None:
  done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def make(words: list[str]) -> None:
  dry("make", "-n", *words)
  for word in words:
    if word.startswith("setup-"):
      there([f"requirements-{word.removeprefix('setup-')}.txt"])


def tpu_vm(words: list[str]) -> None:
  command, *rest = words
  if rest:
    dry("launch/tpu_vm.sh", command, "--dry-run", *rest)
  else:  # Named, without what it needs.
    usage = (ROOT / "launch/tpu_vm.sh").read_text()
    assert re.search(rf"(?m)^  {command}  |{command}\)", usage)
  if "--" in rest:
    reads("train.py", rest[rest.index("--") + 1 :])


def sbatch(words: list[str]) -> None:
  (script,) = (w for w in words if w.endswith(".sbatch"))
  there([script])
  reads("train.py", words[words.index(script) + 1 :])


def there(paths: Sequence[str]) -> None:
  for path in paths:
    assert (ROOT / path).exists(), f"there is no {path}"


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
  "python": python,
  ".venv/bin/python": python,
  "train.py": lambda words: reads("train.py", words),
  "mixer": mixer,
  "make": make,
  "pip": pip,
  "launch/tpu_vm.sh": tpu_vm,
  "sbatch": sbatch,
}


def check(command: documents.Command) -> None:
  """Raises where it can't work."""
  if command.python:
    compile(command.text, command.path, "exec")
    return
  subprocess.run(["bash", "-n"], input=command.text, text=True, check=True)
  if command.text.startswith("for "):
    return  # A shell's own loop: it has to understand it.
  for words in simple_commands(command.text):
    program, *rest = words
    if program.startswith("--"):
      only_flags(words)
      continue
    if program.startswith("benchmarks."):
      program, rest = "python", ["-m", *words]
    there([w for w in rest if re.match(r"launch/|configs/", w)])
    if program not in FOREIGN:
      assert program in PROGRAMS, (
        f"no test knows the program {program}: give it a function in PROGRAMS "
        "of tests/test_documents.py, or name it in FOREIGN"
      )
      PROGRAMS[program](rest)


def complaints(commands: Sequence[documents.Command]) -> list[str]:
  """What is wrong with each."""
  found = []
  for command in commands:
    try:
      check(command)
    except Exception as e:
      found.append(f"{command}\n  {type(e).__name__}: {e}")
  return found


@pytest.mark.parametrize("path", sorted({c.path for c in COMMANDS}))
def test_commands_are_understood(path):
  found = complaints([c for c in COMMANDS if c.path == path])
  assert not found, "\n".join(found)


def test_flags_and_targets_in_messages():
  found = []
  for message in MESSAGES:
    program, _, target = message.text.partition(" ")
    name = program.removeprefix("--").removeprefix("config.").rstrip(".")
    if target:
      found += complaints([message])
    elif name not in {*all_flags(), *config_lib.KEYS, "KEY", "config"}:
      found.append(str(message))
  assert not found, "\n".join(found)


@pytest.mark.parametrize(
  ("text", "complaint"),
  [
    ("find . | frobnicate", "no test knows the program frobnicate"),
    ("python other.py x", "no test knows what Python is to run"),
    ("python -m mixer prepare --sorce=DIR", "no flag --sorce; did you"),
    ("python train.py --config=configs/nosuch.py", "No such file"),
    ("python train.py --config.batch_size=0", "batch_size"),
    ("make setpu", "No rule to make target"),
    ("launch/tpu_vm.sh until-done --name=x", "--zone"),
    ("launch/tpu_vm.sh begin", "begin"),
    ("pip install -e '.[nosuch]'", "there is no extra"),
    ("--sorce", "no command here has a flag --sorce"),
    ("--config.lr=1", "no key 'lr'"),
    ("make test | (", "bash"),
  ],
)
def test_what_does_not_work_is_found(text, complaint):
  with pytest.raises(Exception, match=complaint):
    check(documents.Command("x.md", text))


@pytest.mark.parametrize(
  ("path", "text"),
  [
    ("README.md", ".venv/bin/python -m mixer inspect runs/smoke"),  # Fenced.
    ("docs/experiments.md", '--config.total="300 steps"'),  # In a sentence.
    ("docs/results.md", "python -m mixer prepare fashion_mnist --source=DIR"),
    (
      "benchmarks/prepare.py",
      "python -m benchmarks.prepare [--images=6000] [--side=400] [--rounds=3]",
    ),
    ("requirements.txt", "make setup"),  # A comment.
  ],
)
def test_all_places_are_read(path, text):
  assert documents.Command(path, text) in COMMANDS
  assert any(c.python for c in COMMANDS)
