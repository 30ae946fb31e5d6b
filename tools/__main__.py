"""Lists the commands: `python -m tools`."""

import pathlib
import sys

from mixer import command_line


def commands() -> dict[str, str]:
  """The commands beside train.py, and what each does."""
  found = {}
  for path in sorted(pathlib.Path(__file__).parent.glob("[!_]*.py")):
    text = path.read_text("utf-8")
    if "\ndef main(" in text:
      found[path.stem] = text.splitlines()[0].lstrip('r"')
  return found


def main() -> int:
  """Prints them; returns the exit code."""
  lines = [f"  {name:<11}{what}" for name, what in commands().items()]
  text = "\n".join(("The commands are run as python -m tools.NAME:", *lines))
  end = "Each lists its flags: python -m tools.NAME --help"
  return command_line.run(lambda: print(f"{text}\n{end}"))


if __name__ == "__main__":
  sys.exit(main())
