"""The commands beside train.py: `python -m mixer COMMAND`."""

import pathlib
import runpy
import sys

from mixer import command_line


def commands() -> dict[str, str]:
  """The commands, and what each does."""
  found = {}
  folder = pathlib.Path(__file__).parent / "commands"
  for path in sorted(folder.glob("[!_]*.py")):
    text = path.read_text("utf-8")
    if "\ndef main(" in text:
      found[path.stem] = text.splitlines()[0].lstrip('r"')
  return found


def main() -> int:
  """Runs one, or lists them; returns the exit code."""
  name = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if name in commands():
    del sys.argv[1]
    runpy.run_module(f"mixer.commands.{name}", run_name="__main__")
  lines = [f"  {name:<11}{what}" for name, what in commands().items()]
  text = "\n".join(("The commands are run as python -m mixer NAME:", *lines))
  end = "Each lists its flags: python -m mixer NAME --help"
  code = command_line.run(lambda: print(f"{text}\n{end}"))
  return code if name in ("--help", "-h", "help") else code or 2


if __name__ == "__main__":
  sys.exit(main())
