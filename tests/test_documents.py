"""What the documents tell readers to type works, and what they say is so.

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
from collections.abc import Sequence
from typing import Any

import pytest

from mixer import cli, validation
from mixer import config as config_lib
from mixer import model as model_lib
from tests import documents
from tests.conftest import ROOT

COMMANDS = documents.commands()
# Programs that aren't ours: a shell has to understand the line, and
# tests/test_documents_run.py says what becomes of it.
FOREIGN = {
  *("apt", "apt-get", "dpkg", "unzip", "ssh-add", "find", "jq"),
  *("gcloud", "kubectl", "sky"),
}
# Of other programs, as sentences name them: gcsfuse, gcloud, git, tar, pip.
FOREIGN_FLAGS = {
  *("file-cache-max-size-mb", "cache-dir", "target-size-policy-mode"),
  *("logdir", "service-account", "short", "sparse", "force-reinstall", "help"),
  "xla_cpu_experimental_ynn_fusion_type",
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
    text = cli.parser(name).format_help()
  elif name == "tpu_vm":
    text = (ROOT / "launch/tpu_vm.sh").read_text()
  else:  # A module, as `benchmarks.step`.
    last = name.removeprefix("benchmarks").strip(".") or "__main__"
    places = (ROOT / f"benchmarks/{file}.py" for file in (last, "__init__"))
    text = "".join(p.read_text() for p in places)
  return {*re.findall(r"(?<![\w-])--(\w[\w.-]*)", text), "help"}


@functools.cache
def all_flags() -> set[str]:
  """Of all our commands, and those of others that sentences name."""
  modules = [f"benchmarks.{p.stem}" for p in ROOT.glob("benchmarks/*.py")]
  programs = ("train.py", "tpu_vm", *cli.COMMANDS, *modules)
  keys = {"config", *(f"config.{k}" for k in ("KEY", "data", *config_lib.KEYS))}
  return FOREIGN_FLAGS.union(keys, *map(flags_of, programs))


def there(paths: Sequence[str]) -> None:
  for path in paths:
    assert (ROOT / path).exists(), f"there is no {path}"


def dry(*words: str) -> None:
  done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def check(command: documents.Command) -> None:
  """Raises where it can't work."""
  if command.python:
    compile(command.text, command.path, "exec")
    return
  subprocess.run(["bash", "-n"], input=command.text, text=True, check=True)
  if not command.text.startswith("for "):  # A shell's own loop.
    for words in simple_commands(command.text):
      there([w for w in words[1:] if re.match(r"launch/|configs/", w)])
      check_words(words)


def check_words(words: list[str]) -> None:
  match [words[0].removeprefix(".venv/bin/"), *words[1:]]:
    case [flag, *_] if flag.startswith("--"):  # Without their command.
      for word in words:
        name, given, _ = word.removeprefix("--").partition("=")
        if name == "config" or (name.startswith("config.") and given):
          reads("train.py", [word] if name != "config.KEY" else [])
        elif word.startswith("--"):
          assert name in all_flags(), f"no command here has a flag --{name}"
    case ["python", "-m", "mixer", name, *rest] | ["mixer", name, *rest]:
      if name not in ("NAME", "COMMAND", "--help"):
        reads(name, rest)
    case ["python", "train.py", *rest] | ["train.py", *rest]:
      reads("train.py", rest)
    case ["sbatch", *rest]:
      script = next(i for i, w in enumerate(rest) if w.endswith(".sbatch"))
      there([rest[script]])
      reads("train.py", rest[script + 1 :])
    case ["python", "-m", "pip", *rest] | ["pip", *rest]:
      extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
      assert rest[0] in ("install", "download")
      for extra in re.findall(r"\.\[(\w+)\]", " ".join(rest)):
        assert extra in extras["optional-dependencies"], "there is no extra"
      there([w for w in rest if w.endswith(".txt")])
    case ["python", "-m", "pytest", *paths]:
      there(paths)
    case ["python", "-m", module, *rest] | [module, *rest] if module.startswith(
      "benchmarks"
    ):
      if module not in documents.ANY_OF_A_KIND:
        named = re.findall(r"--(?:no-)?([\w.-]+)", " ".join(rest))
        assert {*named} <= flags_of(module)
    case ["python", "-X", "importtime"]:
      pass
    case ["make", *rest]:
      dry("make", "-n", *rest)
      setups = re.findall(r"setup-(\w+)", " ".join(rest))
      there([f"requirements-{name}.txt" for name in setups])
    case ["launch/tpu_vm.sh", name, *rest]:
      if rest:
        dry("launch/tpu_vm.sh", name, "--dry-run", *rest)
      else:  # Named, without what it needs.
        usage = (ROOT / "launch/tpu_vm.sh").read_text()
        assert re.search(rf"(?m)^  {name}  |{name}\)", usage), name
      if "--" in rest:
        reads("train.py", rest[rest.index("--") + 1 :])
    case [program, *_]:
      assert program in FOREIGN, f"no test knows the program {program}"


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
  messages = documents.messages()
  makes = [m for m in messages if m.text.startswith("make ")]
  found = complaints(makes) + [
    str(m)
    for m in messages
    if m not in makes
    and m.text.removeprefix("--").rstrip(".") not in all_flags()
  ]
  assert not found, "\n".join(found)


@pytest.mark.parametrize(
  ("text", "complaint"),
  [
    ("find . | frobnicate", "no test knows the program frobnicate"),
    ("python -m mixer prepare --sorce=DIR", "no flag --sorce; did you"),
    ("python train.py --config=configs/nosuch.py", "No such file"),
    ("python train.py --config.batch_size=0", "batch_size"),
    ("launch/tpu_vm.sh until-done --name=x", "--zone"),
    ("pip install -e '.[nosuch]'", "there is no extra"),
    ("--sorce", "no command here has a flag --sorce"),
    ("make test | (", "bash"),
  ],
)
def test_what_does_not_work_is_found(text, complaint):
  with pytest.raises(Exception, match=complaint):
    check(documents.Command("x.md", text))


def test_all_places_are_read():
  for path, text in (
    ("README.md", ".venv/bin/python -m mixer inspect runs/smoke"),  # Fenced.
    ("docs/experiments.md", '--config.total="300 steps"'),  # In a sentence.
    ("docs/results.md", "python -m mixer prepare fashion_mnist --source=DIR"),
    ("requirements.txt", "make setup"),  # A comment.
  ):
    assert documents.Command(path, text) in COMMANDS
  assert any(c.python for c in COMMANDS)


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda p: p.name)
def test_files_that_pages_name_are_there(page):
  text = page.read_text()
  for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
    assert (page.parent / link).exists(), link
  there(
    re.findall(r"`((?:configs|docs|mixer|tests)/[a-z\d_/.]+\.(?:py|md))", text)
  )


def test_the_models_in_the_readme_are_those_of_the_code():
  text = (ROOT / "README.md").read_text()
  rows = {}
  for line in re.findall(r"(?m)^\|(.*)\|$", text):
    name, *cells = (c.strip() for c in line.split("|"))
    rows[name] = cells
  assert sorted(rows[""]) == sorted(model_lib.VARIANTS)
  for i, name in enumerate(rows[""]):
    m = model_lib.build(name, 1000)
    flop = model_lib.training_flop(m, 224) / 1e9
    assert {row: cells[i] for row, cells in rows.items() if row in _MODEL} == {
      "blocks": str(m.num_blocks),
      "channels C": str(m.hidden_dim),
      "token MLP D_S": str(m.tokens_mlp_dim),
      "channel MLP D_C": str(m.channels_mlp_dim),
      "tokens at 224 px": str((224 // m.patch_size) ** 2),
      "training GFLOP an image": f"{flop:.1f}",
    }


_MODEL = (
  *("blocks", "channels C", "token MLP D_S", "channel MLP D_C"),
  *("tokens at 224 px", "training GFLOP an image"),
)


def test_the_code_in_the_data_page_runs(capsys):
  text = (ROOT / "docs" / "data.md").read_text()
  (code,) = re.findall(r"```python\n(from mixer.*?)```", text, re.DOTALL)
  found = {}
  exec(code, found)
  assert found["columns"].shape == (10450,)
  assert "dog" in capsys.readouterr().out
