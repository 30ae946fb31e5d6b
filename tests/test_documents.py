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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from mixer import cli, validation
from mixer import config as config_lib
from tests import conftest, documents

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
    elif set(word) <= set("<>"):
      into = True
    elif into:
      into = False
    else:
      found[-1].append(word)
  return [words for words in found if words]


def reads(name: str, words: Sequence[str]) -> Any:
  """The flags of train.py or of a command, as it reads them."""
  parser = cli.parser(name)
  for action in parser._actions:
    action.required = False  # A sentence may name some alone.
  words = [
    w.replace("--config=...", "--config=configs/smoke.py") for w in words
  ]
  words = [w.replace("--config=", f"--config={conftest.ROOT}/") for w in words]
  if "--config" in parser.format_help():
    words.insert(0, f"--config={conftest.ROOT}/configs/finetune.py")
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
    path = conftest.ROOT.joinpath(*name.split("."))
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    said = path.read_text() + (path.parent / "__init__.py").read_text()
  return {*re.findall(r"(?<![\w-])--(\w[\w.-]*)", said)}


def module_reads(name: str, words: Sequence[str]) -> None:
  """Looks at the names of the flags of a module."""
  for word in words:
    flag = word.removeprefix("--").partition("=")[0].replace("no-", "")
    assert not word.startswith("--") or flag in {*flags_of(name), "help"}, word


@functools.cache
def all_flags() -> set[str]:
  """Of all our commands."""
  found = {*FOREIGN_FLAGS}
  for name in ("train.py", *cli.COMMANDS):
    found |= flags_of(name)
  for path in (conftest.ROOT / "benchmarks").glob("*.py"):
    found |= flags_of(f"benchmarks.{path.stem}")
  usage = (conftest.ROOT / "launch/tpu_vm.sh").read_text()
  return found | {*re.findall(r"(?m)^  --([\w-]+)", usage)}


def only_flags(words: list[str]) -> None:
  """Flags that are named without their command."""
  for word in words:
    key = re.match(r"--config\.([\w.]+)", word)
    if word.startswith("--config="):
      reads("train.py", [word])
    elif key and "=" in word and key[1] != "KEY":
      reads("train.py", words)
    elif key:
      keys = {"KEY", *config_lib.KEYS}
      assert key[1] in keys, f"the config has no key {key[1]}"
    elif word.startswith("--"):
      name = word.removeprefix("--").partition("=")[0]
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
        module_reads(module, rest)
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
  project = tomllib.loads((conftest.ROOT / "pyproject.toml").read_text())
  extras = project["project"]["optional-dependencies"]
  assert words[0] in ("install", "download")
  for word in words:
    extra = re.fullmatch(r"\.\[(\w+)\]", word)
    assert not extra or extra[1] in extras, f"there is no extra {word}"
    if word.endswith(".txt"):
      there([word])


def make(words: list[str]) -> None:
  done = subprocess.run(
    ["make", "-n", *words], cwd=conftest.ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  for word in words:
    if word.startswith("setup-"):
      there([f"requirements-{word.removeprefix('setup-')}.txt"])


def tpu_vm(words: list[str]) -> None:
  command, *rest = words
  if rest:
    done = subprocess.run(
      [conftest.ROOT / "launch/tpu_vm.sh", command, "--dry-run", *rest],
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
  else:  # Named, without what it needs.
    usage = (conftest.ROOT / "launch/tpu_vm.sh").read_text()
    assert re.search(rf"(?m)^  {command}  |{command}\)", usage)
  if "--" in rest:
    reads("train.py", rest[rest.index("--") + 1 :])


def sbatch(words: list[str]) -> None:
  (script,) = (w for w in words if w.endswith(".sbatch"))
  there([script])
  reads("train.py", words[words.index(script) + 1 :])


def there(paths: Sequence[str]) -> None:
  for path in paths:
    assert (conftest.ROOT / path).exists(), f"there is no {path}"


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
  "python": python,
  ".venv/bin/python": python,
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
  # A shell's own loops and the like: it has to understand them.
  subprocess.run(["bash", "-n"], input=command.text, text=True, check=True)
  if command.text.startswith("for "):
    return
  for words in simple_commands(command.text):
    program, *rest = words
    if program.startswith("benchmarks."):
      program, rest = "python", ["-m", program, *rest]
    elif program == "train.py":
      program, rest = "python", words
    elif program.startswith("--"):
      only_flags(words)
      continue
    assert program in PROGRAMS or program in FOREIGN, (
      f"no test knows the program {program}: give it a function that checks "
      "its words in PROGRAMS of tests/test_documents.py, or name it in FOREIGN"
    )
    there([w for w in rest if re.match(r"launch/|configs/", w)])
    if program in PROGRAMS:
      PROGRAMS[program](rest)


def complaints(
  commands: Sequence[documents.Command],
  test: Callable[[documents.Command], None],
) -> Iterator[str]:
  """What is wrong with each."""
  for command in commands:
    try:
      test(command)
    except Exception as e:
      yield f"{command}\n  {type(e).__name__}: {e}"


@pytest.mark.parametrize("path", sorted({c.path for c in COMMANDS}))
def test_commands_are_understood(path):
  mine = [c for c in COMMANDS if c.path == path]
  found = list(complaints(mine, check))
  assert not found, "\n".join(found)


def check_message(message: documents.Command) -> None:
  text = message.text
  if text.startswith("--"):
    only_flags([text.rstrip(".")])
  for target in re.findall(r"\bmake ([a-z][\w-]*\b)(?!-)", text):
    make([target])
  for extra in re.findall(r"\.\[\w+\]", text):
    pip(["install", extra])
  for script, word in re.findall(r"launch/(\w+\.sh) ([a-z-]+)", text):
    if word != "--help":
      {"tpu_vm.sh": tpu_vm}[script]([word])
  ours = re.search(
    r"(?:python (?:-m )?)?(mixer [a-z]+|benchmarks(?:\.\w+)*|train(?=\.py))"
    r"(?:\.py)?(?![\w.{])(.*)",
    text,
  )
  if ours and ours[1] not in documents.ANY_OF_A_KIND:
    module, rest = ours.groups()
    name = "train.py" if module == "train" else module.removeprefix("mixer ")
    for flag in re.findall(r"(?<!\S)--(\w[\w.]*)", rest):
      assert flag in flags_of(name), f"{module} has no flag --{flag}"
    there(re.findall(r"\bconfigs/\w+\.py", rest))


@pytest.mark.parametrize("path", sorted({c.path for c in MESSAGES}))
def test_commands_in_messages_are_understood(path):
  mine = [c for c in MESSAGES if c.path == path]
  found = list(complaints(mine, check_message))
  assert not found, "\n".join(found)


@pytest.mark.parametrize(
  ("text", "complaint"),
  [
    ("frobnicate all", "no test knows the program frobnicate"),
    ("find . | frobnicate", "no test knows the program frobnicate"),
    ("python other.py x", "no test knows what Python is to run"),
    (
      "python -m mixer prepare --sorce=DIR",
      "no flag --sorce; did you",
    ),
    ("mixer evaluate --shots=x --checkpoint=y", "'x' is no whole number"),
    (
      "python train.py --conf=configs/smoke.py",
      "no flag --conf; did",
    ),
    ("python train.py --config=configs/nosuch.py", "there is no such file"),
    (
      "python train.py --config=configs/smoke.py --config.batch_size=0",
      "batch_size",
    ),
    ("python train.py --config=configs/smoke.py --config.lr=1", "no key 'lr'"),
    ("make setpu", "No rule to make target"),
    ("make setup-nosuch", "No rule|there is no requirements-nosuch.txt"),
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
    check(documents.Command("x.md", 1, text))


def test_all_places_are_read():
  """One of each kind; pages, docstrings and comments by file and text."""
  texts = {(c.path, c.text) for c in COMMANDS}
  prepare = "python -m mixer prepare"
  for path, text in [
    ("README.md", f".venv/bin/{prepare} --list"),  # A fenced block.
    ("docs/experiments.md", '--config.total="300 steps"'),  # In a sentence.
    ("docs/data.md", f"{prepare} vtab/pets"),
    (
      "docs/data.md",
      f"{prepare} folder --name=my_set --source=DIR",
    ),  # A table.
    ("docs/results.md", f"{prepare} fashion_mnist --source=DIR"),  # Indented.
    (
      "configs/smoke.py",
      "python train.py --config=configs/smoke.py --workdir=runs/smoke",
    ),
    (
      "benchmarks/prepare.py",
      "python -m benchmarks.prepare [--images=6000] [--side=400] [--rounds=3]",
    ),
    ("requirements.txt", "make setup"),
  ]:
    assert (path, text) in texts
  assert any(c.python for c in COMMANDS)
  said = {(c.path, c.text) for c in MESSAGES}
  assert ("mixer/commands/prepare.py", "python train.py {}") in said
