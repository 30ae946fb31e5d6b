"""Reads what the documents tell readers to type.

`commands` yields every command and snippet of README.md, CONTRIBUTING.md,
docs/, docstrings, and the comments of launch/, requirements and the Makefile;
`messages` every command in the text that programs print. CHANGELOG.md and
docs/log.md are left out: they tell of commands as they were.
"""

import ast
import dataclasses
import pathlib
import re
from collections.abc import Iterator

from tests.conftest import ROOT

PAGES = [
  ROOT / "README.md",
  ROOT / "CONTRIBUTING.md",
  *sorted(p for p in ROOT.glob("docs/*.md") if p.name != "log.md"),
  *sorted(ROOT.glob("mixer/**/README.md")),
]
MODULES = [
  ROOT / "train.py",
  ROOT / "input_pipeline.py",
  *(
    path
    for folder in ("configs", "mixer", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
  ),
]
SCRIPTS = [
  ROOT / "Makefile",
  ROOT / "pyproject.toml",
  ROOT / ".ci" / "run",
  *sorted(ROOT.glob("requirements*.txt")),
  *sorted(p for p in (ROOT / "launch").rglob("*") if p.is_file()),
]

# Names that stand for any of a kind.
ANY_OF_A_KIND = ("mixer NAME", "mixer COMMAND", "benchmarks.NAME")
# What a reader replaces by his own, where words won't parse as they are.
_PLACEHOLDERS = {
  "--step=N": "--step=2",
  "--step=STEP": "--step=2",
  "--config.data.name=NAME": "--config.data.name=my_set",
}

# How a line begins, or code in a sentence, that is a command: one of these
# words, and an argument; or flags alone. A file's name by itself is none.
_PROGRAMS = (
  r"(?:[\w.~/-]*/)?python[\d.]*(?= +(?:-|\w+\.py))|train\.py(?= --)|make|"
  r"benchmarks\.[a-z][\w.]*(?= --)|mixer(?= [a-z]+ --)|launch/\w+\.sh|pip|uv|"
  r"apt|apt-get|git|gcloud|kubectl|sky|sbatch|find|jq|ssh-add|docker|pytest|conda"
)
_COMMAND = re.compile(
  rf"(?:\$ )?((?:{_PROGRAMS}) +[^\s:|=].*|--[a-z].*)", re.DOTALL
)
_MESSAGE = re.compile(
  r"((?:\.venv/bin/)?\bpython (?:-m [a-z][\w.]*|train\.py)[^`\n]*"
  r"|\bpip install [^`\n]*|\blaunch/\w+\.sh [a-z-]+[^`\n]*"
  r"|\bmake (?:setup|bench|test|lint|format|demo|clean)\b[\w{}-]*)"
)
_FLAG = re.compile(r"(?<![\w-])--[a-z](?>[\w.-]*)(?!\{)")


@dataclasses.dataclass(frozen=True)
class Command:
  """What somebody is told to type.

  Attributes:
    path: of the document, from the root on.
    line: of it, from 1.
    text: lines that end in a backslash are joined to the next.
    python: a snippet of Python, else words for a shell.
    block: stands by itself, not in a sentence.
  """

  path: str
  line: int
  text: str
  python: bool = False
  block: bool = True

  def __str__(self) -> str:
    return f"{self.path}:{self.line}: {self.text}"


def commands() -> list[Command]:
  """All of them, in the order in which a reader meets them."""
  found: list[Command] = []
  for path in PAGES:
    found += _of_page(path)
  for path in MODULES:
    found += _of_docstrings(path)
  for path in SCRIPTS:
    found += _of_comments(path)
  return found


def as_typed(text: str) -> str:
  """What a usage leaves open is given, and what stands for a value is one."""
  text = re.sub(r" \[([^\]]*)\](?= |$)", r" \1", text)
  text = re.sub(r" \.\.\.(?=\W|$)", "", text)
  for given, instead in _PLACEHOLDERS.items():
    text = re.sub(rf"{given}\b", instead, text)
  return text


def _command(path: pathlib.Path, line: int, text: str, **how) -> Command:
  return Command(str(path.relative_to(ROOT)), line, text.strip(), **how)


def messages() -> list[Command]:
  """Of what is printed; `{}` stands for what is known only then."""
  found = []
  for path in MODULES:
    tree = ast.parse(path.read_text())
    # Docstrings, and the parts of what is put together by f"...".
    others = {id(node) for node in _docstrings(tree)}
    for node in ast.walk(tree):
      if isinstance(node, ast.JoinedStr):
        others.update(map(id, node.values))
    for node in ast.walk(tree):
      if isinstance(node, ast.expr) and id(node) not in others:
        said = _template(node)
        for text in _MESSAGE.findall(said) + _FLAG.findall(said):
          found.append(_command(path, node.lineno, text))
  for path in SCRIPTS:
    for number, line in enumerate(path.read_text().splitlines(), 1):
      if not line.lstrip().startswith("#"):
        for text in _MESSAGE.findall(line):
          found.append(_command(path, number, text))
  return found


def _template(node: ast.AST) -> str:
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return node.value
  if isinstance(node, ast.JoinedStr):
    return "".join(_template(v) or "{}" for v in node.values)
  return ""


def _docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
  for node in ast.walk(tree):
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
      value = body[0].value
      if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value


def _of_page(path: pathlib.Path) -> list[Command]:
  found = []
  lines = path.read_text().splitlines()
  prose: list[str] = []
  number = 0
  while number < len(lines):
    fence = re.match(r"( *)```(\w*)", lines[number])
    if not fence:
      prose.append(lines[number])
      number += 1
      continue
    indent, language = fence.groups()
    first, end = number + 1, lines.index(f"{indent}```", number + 1)
    prose += [""] * (end + 1 - number)
    inside, number = lines[first:end], end + 1
    if language == "python":
      text = "\n".join(line.removeprefix(indent) for line in inside)
      found.append(_command(path, first + 1, text, python=True))
      continue
    for i, text in _joined(inside):
      if language == "sh" or _COMMAND.match(text):
        found.append(_command(path, first + 1 + i, text))
  found += _of_prose(path, prose, 0, indent=4)
  return sorted(found, key=lambda c: c.line)


def _of_docstrings(path: pathlib.Path) -> Iterator[Command]:
  text = path.read_text()
  lines = text.splitlines()
  for node in _docstrings(ast.parse(text)):
    # As it is written: what a string makes of a backslash is not told there.
    first, end = node.lineno - 1, node.end_lineno or node.lineno
    inside = [line[node.col_offset :] for line in lines[first:end]]
    yield from _of_prose(path, inside, first, indent=2)


def _of_comments(path: pathlib.Path) -> Iterator[Command]:
  lines = path.read_text().splitlines()
  comments = [
    line.lstrip()[1:] if line.lstrip().startswith("#") else "" for line in lines
  ]
  yield from _of_prose(path, comments, 0, indent=2)


def _of_prose(
  path: pathlib.Path, lines: list[str], before: int, indent: int
) -> Iterator[Command]:
  """Indented commands, and code in sentences."""
  found = []
  sentences = list(lines)
  for i, text in _joined(lines):
    match = _COMMAND.fullmatch(text)
    if match and lines[i].startswith(" " * indent):
      # Behind three spaces a usage has its explanation.
      text = re.split(r"\s{3,}(?!#)", match[1])[0]
      found.append(_command(path, before + i + 1, text))
      sentences[i] = ""
  text = "\n".join(sentences)
  for match in re.finditer(r"`([^`]+)`", text):
    code = _COMMAND.fullmatch(" ".join(match[1].split()))
    if code:
      line = before + text.count("\n", 0, match.start()) + 1
      found.append(_command(path, line, code[1], block=False))
  yield from sorted(found, key=lambda c: c.line)


def _joined(lines: list[str]) -> Iterator[tuple[int, str]]:
  """(index of its first line, text) of each command, or line of prose."""
  i = 0
  while i < len(lines):
    first, text = i, lines[i].strip()
    i += 1
    while i < len(lines):
      after = lines[i].strip()
      if text.endswith("\\"):
        text = f"{text[:-1].rstrip()} {after}"
      elif _COMMAND.match(text) and _goes_on(lines[first], lines[i]):
        text = f"{text} {after}"
      elif re.match(r"for \w+ in \$", text) and not text.endswith("done; wait"):
        text = f"{text}\n{after}"
      else:
        break
      i += 1
    if text and not text.startswith("#"):
      yield first, text


def _goes_on(line: str, after: str) -> bool:
  """Of a usage: further in, and flags."""
  deeper = len(after) - len(after.lstrip()) > len(line) - len(line.lstrip())
  return deeper and re.match(r" *(\[|--)", after) is not None
