"""Flags, with a sentence where absl and ml_collections give a traceback."""

import re
import sys

from absl import flags

from mixer import config as config_lib


def parse(argv: list[str]) -> list[str]:
  """Parses the command line; for `absl.app.run(main, flags_parser=parse)`.

  A config file, and overrides of its keys, are evaluated while flags are
  parsed, so whatever is wrong with them comes up here.

  Args:
    argv: of the process.

  Returns:
    What is left beside flags, the program's name first.
  """
  try:
    rest = flags.FLAGS(argv)
    if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
      # A file that can't be loaded says so only when it is looked into.
      flags.FLAGS["config"].value.keys()
  except Exception as e:
    print(f"error: {_sentence(e, argv)}", file=sys.stderr)
    sys.exit(1)
  return rest


def _sentence(error: Exception, argv: list[str]) -> str:
  full = str(error.args[0] if error.args else error).strip()
  text = " ".join(full.split())
  override = re.search(r"flag --config\.([\w.]+)=([^\s:]*)", text)
  if override:
    known = config_lib.flatten(config_lib.default())
    key, value = override.groups()
    if key in known:
      kind = type(known[key]).__name__
      return (
        f"--config.{key}={value} is not of type {kind}; write it as in "
        f"--config.{key}={known[key]}."
      )
  meant = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
  if meant:
    return (
      f"the config has no key {meant.group(2)!r}; did you mean "
      f"{meant.group(1)!r}? mixer/config.py lists them all."
    )
  if isinstance(error, KeyError | AttributeError):
    return f"the config has no key {text}; mixer/config.py lists them all."
  if "Error whilst parsing config file" in text:
    name = re.search(r"flag --config=(\S+):", text)
    return (
      f"--config={name.group(1) if name else ''} can't be loaded: "
      + full.splitlines()[-1]
    )
  files = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
  if files and not isinstance(error, flags.Error):
    if "No such file" in text:
      return f"--config={files[-1]}: there is no such file."
    kind, where = type(error).__name__, ""
    if isinstance(error, SyntaxError):
      where = f", line {error.lineno}"
    return f"--config={files[-1]} can't be loaded: {kind}: {text}{where}."
  return text.rstrip(".") + "."
