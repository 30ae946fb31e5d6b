"""Command line flags, in one dialect for all commands, by argparse.

Flags are read before JAX is imported: --help and mistakes are answered at once.
"""

import argparse
import ast
import contextlib
import difflib
import os
import pathlib
import re
import runpy
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mixer import config as config_lib
from mixer.errors import UserError, first_line, printable

DATA_DIR = "where data sets are; default: as in the run, else TFDS's own"
# How the processes of a run find each other: `mixer.distributed`.
CLUSTERS = ("auto", "none", "explicit", "slurm", "gke", "tpu")
_PREFIX = "--config."


class Parser(argparse.ArgumentParser):
  """Reads a command line; what is wrong with it ends the process."""

  def __init__(self, prog: str, description: str | None):
    raw = argparse.RawDescriptionHelpFormatter
    super().__init__(
      prog, None, description, formatter_class=raw, allow_abbrev=False
    )

  def read(self, words: Sequence[str]) -> argparse.Namespace:
    """Parses flags in any order; loads the config, if one is named."""
    has_config = "--config" in self._option_string_actions
    keys = [w for w in words if has_config and w.startswith(_PREFIX)]
    args, unknown = self.parse_known_intermixed_args(
      [w for w in words if w not in keys]
    )
    if unknown:
      self.error(self._unknown(unknown[0].partition("=")[0]))
    if has_config:
      try:
        values = dict(map(override, keys))
        args.config = config_lib.changed(recipe(args.config), values)
      except UserError as e:
        self.error(str(e))
    return args

  def _unknown(self, name: str) -> str:
    """A sentence on a word that is no flag, naming the nearest."""
    known = [*self._option_string_actions]
    if "--config" in known:
      known += [_PREFIX + key for key in config_lib.KEYS]
    near = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"there is no flag {name}{meant}"

  def error(self, message: str) -> NoReturn:
    end = "" if message.endswith((".", "?")) else "."
    help = f"`{self.prog} --help` lists all flags."
    self.exit(1, f"error: {printable(message)}{end} {help}\n")


def number(
  kind: Callable[[str], Any], least: float, most: float
) -> Callable[[str], Any]:
  """Reads an int or float within bounds."""

  def parse(value: str) -> Any:
    with contextlib.suppress(ValueError):
      if least <= (found := kind(value)) <= most:
        return found
    whole = "whole " * (kind is int)
    raise argparse.ArgumentTypeError(
      f"{value!r} is no {whole}number from {least} to {most}"
    )

  return parse


def span(value: str) -> tuple[int, int]:
  """Reads FIRST:LAST, of updates."""
  with contextlib.suppress(ValueError):
    first, last = map(int, value.split(":"))
    if 1 <= first <= last:
      return first, last
  wrong = f"{value!r} is no span of updates, counted from 1, such as 11:15"
  raise argparse.ArgumentTypeError(wrong)


positive = number(int, 1, 10**12)


def some_of(names: Sequence[str]) -> Callable[[str], list[str]]:
  """Reads names with commas between them, each at most once."""

  def parse(value: str) -> list[str]:
    found = value.split(",")
    if not {*found} <= {*names} or len({*found}) < len(found):
      raise argparse.ArgumentTypeError(
        f"{value!r}: expected some of {','.join(names)}, each once"
      )
    return found

  return parse


def image_size(value: str) -> int | tuple[int, int]:
  """Reads 448, or 224x448 for height and width."""
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", value, re.ASCII):
    what = "no size in pixels, such as 448 or 224x448 (height and width)"
    raise argparse.ArgumentTypeError(f"{value!r} is {what}")
  height, _, width = value.partition("x")
  return (int(height), int(width)) if width else int(height)


def add_platform(parser: argparse._ActionsContainer) -> None:
  """Adds --platform."""
  choices, text = ("cpu", "gpu", "tpu"), "refuse to run on another"
  parser.add_argument("--platform", choices=choices, default="", help=text)


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
  """Adds the flags of every command that takes a trained model."""
  group = parser.add_argument_group("the model")
  add = group.add_argument
  add(
    "--checkpoint",
    required=required,
    metavar="PATH",
    help="a workdir of train.py, a checkpoint in it, an .npz or .safetensors "
    "file, a folder of timm's, timm/NAME or hf-hub:OWNER/NAME, or the name of "
    "a released file, such as imagenet1k/Mixer-B_16",
  )
  text = "448, or 224x448 for height and width; default: as trained"
  add("--image_size", type=image_size, metavar="PIXELS", help=text)
  add(
    "--resize",
    choices=("tiles", "interleaved", "resample"),
    default="",
    help="how weights are fitted to another --image_size; default: as suits it",
  )
  add(
    "--dtype",
    choices=("float32", "bfloat16"),
    default="",
    help="of activations; default: as in the run, float32 for released files",
  )
  add_platform(group)


def add_config(parser: argparse.ArgumentParser, beside: str) -> None:
  """Adds --config=FILE and --config.KEY=VALUE; `beside` is for the usage."""
  parser.usage = f"%(prog)s --config=FILE {beside} [--config.KEY=VALUE] ..."
  text, name = "the recipe; --config.KEY=VALUE overrides a key", "FILE[:WORDS]"
  parser.add_argument("--config", required=True, metavar=name, help=text)
  lines = ["keys of the config, with their defaults:"]
  for name, key in config_lib.KEYS.items():
    choices = " or ".join(filter(None, key.choices))
    text = f"{key.meaning}{choices and f' ({choices})'}"
    lines.append(f"  {_PREFIX}{name}={shlex.quote(str(key.default))}")
    lines += [f"      {line}" for line in textwrap.wrap(text, 72)]
  parser.epilog = "\n".join(lines)


def override(word: str) -> tuple[str, Any]:
  """Reads "--config.seed=3" -> ("seed", 3): a value of the default's type."""
  key, _, text = word.removeprefix(_PREFIX).partition("=")
  if key not in config_lib.KEYS:
    raise UserError(config_lib.unknown(key))
  default = config_lib.KEYS[key].default
  kind = type(default)
  try:
    if kind is bool:
      return key, ("false", "true", "0", "1").index(text.lower()) % 2 == 1
    if kind not in (dict, tuple):
      return key, kind(text)
    found = ast.literal_eval(text)
    if kind is dict:
      return key, dict(**found)  # Names, which become arguments.
    return key, tuple(found) if isinstance(found, tuple | list) else (found,)
  except Exception:
    example = {"nesterov": True} if kind is dict else default
    raise UserError(
      f"{word[:100]} is not of type {kind.__name__}; write it as in "
      f"{config_lib.override(key, example)}."
    ) from None


def recipe(name: str) -> config_lib.Config:
  """What `get_config` of FILE, or of FILE:WORDS, returns."""
  path, colon, words = name.partition(":")
  checkout()  # Recipes import each other from there.
  try:
    get_config = runpy.run_path(path)["get_config"]
    config = get_config(words) if colon else get_config()
    return config_lib.changed(config, {})  # A copy, if it is a config.
  except UserError:
    raise
  except Exception as e:
    line = f", line {e.lineno}" if isinstance(e, SyntaxError) else ""
    raise UserError(
      f"--config={name} can't be loaded: {type(e).__name__}: "
      f"{first_line(e)}{line}."
    ) from e


def checkout(command: str = "") -> None:
  """Puts the checkout of this package, or the current folder, on the path.

  UserError if neither is one, and `command` can't do without.
  """
  for folder in (pathlib.Path(__file__).parent.parent, pathlib.Path.cwd()):
    if (folder / "train.py").is_file() and (folder / "configs").is_dir():
      sys.path[:0] = {str(folder)} - {*sys.path}
      return
  if command:
    raise UserError(
      f"{command} needs train.py and configs/: clone the repository, and run "
      "this in its folder."
    )


def add_run(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the commands that train: train.py and sweep."""
  add = parser.add_argument
  text = "where the run lives: made if missing, continued if not"
  add("--workdir", type=_named, required=True, metavar="DIR", help=text)
  add(
    "--allow_change",
    type=lambda value: value.split(","),
    default=[],
    metavar="KEYS",
    help="config keys that may differ from the first start; data_set: its data",
  )
  add_platform(parser)
  add_config(parser, "--workdir=DIR")
  add = parser.add_argument_group("several processes").add_argument
  text = "how they meet: as Slurm, GKE or a TPU VM say, or by the next flags"
  add("--cluster", choices=CLUSTERS, default="auto", help=text)
  for flag, kind, default, help in (
    ("coordinator_address", str, "", "HOST:PORT of process 0"),
    ("num_processes", int, "0", "over all hosts"),
    ("process_id", int, "-1", "of this one, from 0"),
  ):
    default = os.environ.get(f"JAX_{flag.upper()}", default)
    add(f"--{flag}", type=kind, default=default, help=help)
  text = "a process that is not heard of for so long is dead: all others end"
  add("--heartbeat_seconds", type=positive, default=60, help=text)


def _named(value: str) -> str:
  if not value:
    raise argparse.ArgumentTypeError("it is empty: name a folder")
  return value
