"""Reads what the documents tell readers to type.

CHANGELOG.md and docs/log.md are left out: they tell of commands as they were.
"""

import ast
import dataclasses
import re
import textwrap
from collections.abc import Iterator

from tests.conftest import ROOT

PAGES = [
  ROOT / "README.md",
  ROOT / "CONTRIBUTING.md",
  *sorted(p for p in ROOT.glob("docs/*.md") if p.name != "log.md"),
]
MODULES = [
  *(ROOT / "train.py", ROOT / "input_pipeline.py"),
  *sorted(
    p
    for folder in ("configs", "mixer", "benchmarks")
    for p in (ROOT / folder).rglob("*.py")
  ),
]
SCRIPTS = [
  *(ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run"),
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
_FLAG = re.compile(r"(?<![\w-])--[a-z](?>[\w.-]*)(?!\{)")


@dataclasses.dataclass(frozen=True)
class Command:
  """What somebody is told to type: words for a shell, or a Python snippet."""

  path: str
  text: str
  python: bool = False


def commands() -> list[Command]:
  """All of them, in the order in which a reader meets them."""
  found: list[Command] = []
  for path in PAGES + MODULES + SCRIPTS:
    lines = path.read_text().splitlines()
    if path in MODULES:  # Their docstrings, as they are written.
      kept = [""] * len(lines)
      for node in _docstrings(ast.parse("\n".join(lines))):
        for i in range(node.lineno - 1, node.end_lineno or node.lineno):
          kept[i] = lines[i][node.col_offset :]
      lines = kept
    elif path in SCRIPTS:  # Their comments.
      lines = [re.sub(r"^\s*#|.+", "", line, count=1) for line in lines]
    indent, name = 4 if path in PAGES else 2, str(path.relative_to(ROOT))
    for _, text, python in sorted(_of_text(_joined("\n".join(lines)), indent)):
      found.append(Command(name, text, python))
  return found


def messages() -> list[Command]:
  """Flags and targets of make in what is printed."""
  found = []
  for path in MODULES:
    tree = ast.parse(path.read_text())
    docstrings = {id(node) for node in _docstrings(tree)}
    for node in ast.walk(tree):
      if isinstance(node, ast.Constant) and id(node) not in docstrings:
        text = str(node.value)
        for word in re.findall(r"\bmake setup-\w+", text) + _FLAG.findall(text):
          found.append(Command(str(path.relative_to(ROOT)), word.rstrip(".")))
  return found


def as_typed(text: str) -> str:
  """What a usage leaves open is given, and what stands for a value is one."""
  text = re.sub(r" \[([^\]]*)\](?= |$)", r" \1", text)
  text = re.sub(r" \.\.\.(?=\W|$)", "", text)
  for given, instead in _PLACEHOLDERS.items():
    text = re.sub(rf"{given}\b", instead, text)
  return text


def _docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
  for node in ast.walk(tree):
    match getattr(node, "body", None):
      case [ast.Expr(value=ast.Constant(value=str()) as constant), *_]:
        yield constant


def _joined(text: str) -> str:
  """Lines that are one command become one line."""
  text = re.sub(r" *\\\n *", " ", text)
  loop = re.compile(r"(?ms)^for \w+ in \$.*?done; wait$")
  text = loop.sub(lambda m: " ".join(m[0].split()), text)
  # Of a usage: further in, and flags.
  usage = re.compile(
    rf"(?m)^( *)((?:\$ )?(?:(?:{_PROGRAMS}) |--[a-z]).*)\n\1 +(?=\[|--)"
  )
  while usage.search(text):
    text = usage.sub(r"\1\2 ", text)
  return text


def _of_text(text: str, indent: int) -> Iterator[tuple[int, str, bool]]:
  """(place, command, whether it is Python): fenced, indented, in sentences."""

  def blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])

  fence = re.compile(r"(?ms)^( *)```(\w*)[^\n]*\n(.*?)^\1```$")
  for match in fence.finditer(text):
    _, language, inside = match.groups()
    if language == "python":
      yield match.start(), textwrap.dedent(inside).strip(), True
      continue
    for line in re.finditer(r"(?m)^ *([^\s#].*)$", inside):
      if language == "sh" or _COMMAND.match(line[1]):
        yield match.start(3) + line.start(), line[1].strip(), False
  text = fence.sub(blank, text)
  own = re.compile(rf"(?m)^ {{{indent},}}(\S.*)$")
  for line in own.finditer(text):
    if match := _COMMAND.fullmatch(line[1]):
      # Behind three spaces a usage has its explanation.
      command = re.split(r"\s{3,}(?!#)", match[1])[0]
      yield line.start(), command.strip(), False
  text = own.sub(lambda m: blank(m) if _COMMAND.fullmatch(m[1]) else m[0], text)
  for code in re.finditer(r"`([^`]+)`", text):
    if match := _COMMAND.fullmatch(" ".join(code[1].split())):
      yield code.start(), match[1].strip(), False
