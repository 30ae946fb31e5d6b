"""Tables of README.md and docs/performance.md, from benchmarks/results/.

  python -m benchmarks.tables [--show] [--results FOLDER]

Renews what stands between the two lines

  <!-- table: NAME -->
  <!-- end -->

NAME is peers, peers_short, step, startup, imports or curves, with the platform
behind it (peers_cpu, peers_short_gpu), or end_to_end, or, of compiled.json,
compiled_gpu, compiled_tpu or remat. Below each table that was timed stand the
machine, the date and the command. `--show` prints all for which there are
results, and changes nothing.
"""

import argparse
import json
import pathlib
import re
import sys

from benchmarks import compiled_tables, records
from benchmarks.table_kinds import KINDS
from mixer import command_line
from mixer.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
PLATFORMS = ("cpu", "gpu", "tpu")
_MARKED = re.compile(
  r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->|(?=<!-- table: )|\Z)",
  re.DOTALL,
)


def render(text: str, results: pathlib.Path = records.RESULTS) -> str:
  """A page with its tables renewed.

  Args:
    text: in Markdown.
    results: folder of the files.

  Raises:
    UserError: a table of an unknown name, without results, or without its
      end.
  """

  def renew(found: re.Match[str]) -> str:
    start, name, _, end = found.groups()
    if not end:
      raise UserError(
        f"the table {name!r} has no end: add a line <!-- end --> below it."
      )
    return f"{start}{table(name, results)}\n{end}"

  return _MARKED.sub(renew, text)


def file_of(name: str) -> str:
  """The file that a table is made of.

  Raises:
    UserError: there is no such table.
  """
  kind, _, platform = name.rpartition("_")
  if name in compiled_tables.TABLES:
    return "compiled.json"
  if name == "end_to_end":
    return f"{name}.json"
  if kind in KINDS and platform in PLATFORMS:
    return f"{_FILES.get(kind, kind)}_{platform}.json"
  others = ", ".join(k for k in KINDS if k != "end_to_end")
  raise UserError(
    f"there is no table {name!r}; there are end_to_end, "
    f"{', '.join(compiled_tables.TABLES)} and, each followed by _cpu, _gpu or "
    f"_tpu, {others}."
  )


# Where it isn't the kind's own name.
_FILES = {"peers_short": "peers", "imports": "startup"}


def table(name: str, results: pathlib.Path = records.RESULTS) -> str:
  """A table, and below it where it comes from.

  Raises:
    UserError: there is no such table, or no file for it.
  """
  path = results / file_of(name)
  if not path.exists():
    raise UserError(
      f"the table {name!r} needs {path}, which isn't there: measure it first "
      "(python -m benchmarks)."
    )
  record = json.loads(path.read_text())
  if name in compiled_tables.TABLES:
    return compiled_tables.TABLES[name](list(record.values()))
  kind = name if name == "end_to_end" else name.rpartition("_")[0]
  return KINDS[kind](record)


def names(results: pathlib.Path = records.RESULTS) -> list[str]:
  """Of all tables for which there are results."""
  every = ["end_to_end", *compiled_tables.TABLES]
  every += [f"{k}_{p}" for p in PLATFORMS for k in KINDS if k not in every]
  return [name for name in every if (results / file_of(name)).exists()]


def body(args: argparse.Namespace) -> None:
  """Prints, or renews the pages.

  Raises:
    UserError: see `render`.
  """
  if args.show:
    for name in names(args.results):
      print(f"{name}:\n\n{table(name, args.results)}\n")
    return
  for page in PAGES:
    text = page.read_text("utf-8")
    new = render(text, args.results)
    page.write_text(new, "utf-8")
    count = len(_MARKED.findall(text))
    state = "renewed" if new != text else "as they should be"
    print(f"{page.relative_to(ROOT)}: {count} tables, {state}")


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="Tables of README.md and docs/performance.md."
  )
  parser.add_argument("--show", action="store_true", help="print them instead")
  parser.add_argument("--results", type=pathlib.Path, default=records.RESULTS)
  return command_line.tool(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
