"""Counts what there is to read, and how deep imports go: `make size`.

Fails above the limits below, which rose by 400 lines and 3 files for CIFAR-10
and its two studies, and else only fall. The second version's own are 14,000
lines in 100 files, no circle and 9 floors.
"""

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).parent.parent
LIMITS = {"lines": 19_900, "files": 107, "circles": 0, "floors": 9}
KINDS = (".py", ".js", ".css", ".html", ".sh")


def tracked() -> list[str]:
  """Files of the project that count, in git's order."""
  words = ["git", "ls-files", "-z"]
  done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True)
  names = done.stdout.decode().split("\0")
  return [n for n in names if n.endswith(KINDS) and "/vendor/" not in n]


def lines(names: Iterable[str]) -> int:
  """As `wc -l` counts them."""
  return sum((ROOT / name).read_bytes().count(b"\n") for name in names)


def imports(names: Iterable[str]) -> dict[str, set[str]]:
  """Module -> modules of ours that it imports when it is loaded."""
  modules = {
    n.removesuffix(".py").removesuffix("/__init__").replace("/", "."): n
    for n in names
    if n.endswith(".py")
  }
  found: dict[str, set[str]] = {}
  for module, name in modules.items():
    tree = ast.parse((ROOT / name).read_text("utf-8"))
    wanted = set()
    for node in _at_import(tree):
      if isinstance(node, ast.Import):
        wanted |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.module:
        wanted |= {f"{node.module}.{alias.name}" for alias in node.names}
        wanted.add(node.module)
    found[module] = (wanted & modules.keys()) - {module}
  # A package's own file without code has nothing that is imported.
  empty = {m for m, n in modules.items() if n.endswith("__init__.py")}
  return {m: {x for x in w if x not in empty} for m, w in found.items()}


def _at_import(tree: ast.AST) -> Iterable[ast.AST]:
  """Statements that run when a module is loaded."""
  for node in ast.iter_child_nodes(tree):
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      yield node
      yield from _at_import(node)


def floors(graph: dict[str, set[str]]) -> tuple[int, list[list[str]]]:
  """The longest way down, and circles."""
  depth: dict[str, int] = {}
  circles: list[list[str]] = []

  def visit(module: str, way: list[str]) -> int:
    if module in way:
      circles.append(way[way.index(module) :])
      return 0
    if module not in depth:
      below = [visit(m, [*way, module]) for m in sorted(graph[module])]
      depth[module] = 1 + max(below, default=0)
    return depth[module]

  return max(visit(m, []) for m in graph), circles


def main() -> int:
  names = tracked()
  tests = [n for n in names if n.startswith("tests/")]
  code = [n for n in names if not n.startswith(("tests/", "docs/"))]
  docs = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
  deepest, circles = floors(imports(code))
  found = {
    "lines": lines(code),
    "files": len(code),
    "circles": len(circles),
    "floors": deepest,
  }
  for name, value in found.items():
    print(f"code: {value:,} {name} (at most {LIMITS[name]:,})")
  print(f"tests: {lines(tests):,} lines in {len(tests)} files")
  print(f"documents: {lines(map(str, docs)):,} lines in {len(docs)} files")
  for circle in circles:
    print(f"circle: {' -> '.join([*circle, circle[0]])}")
  above = [name for name in found if found[name] > LIMITS[name]]
  if above:
    print(f"error: too many {', '.join(above)}; see tests/size.py")
  return int(bool(above))


if __name__ == "__main__":
  sys.exit(main())
