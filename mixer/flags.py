"""Command line flags, in one dialect for all commands, by argparse.

Nothing heavy is imported here: flags are read before JAX is imported, so that
--help and mistakes are answered at once.
"""

import argparse
import ast
import difflib
import importlib.util
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mixer import config as config_lib
from mixer import errors
from mixer.errors import UserError

PLATFORMS = ("cpu", "gpu", "tpu")
DATA_DIR = "where data sets are; default: as in the run, else TFDS's own"


class Parser(argparse.ArgumentParser):
  """Reads a command line; what is wrong with it ends the process."""

  def __init__(self, prog: str, description: str | None):
    super().__init__(
      prog=prog,
      description=description,
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )

  def read(self, words: Sequence[str]) -> argparse.Namespace:
    """Parses flags and words in any order; loads the config, if one is named.

    Raises:
      SystemExit: after --help, or a sentence on what is wrong.
    """
    for word in words:
      if word.endswith("=--"):  # Of which argparse makes no value at all.
        self.error(f"{word}: -- is no value")
    args, unknown = self.parse_known_intermixed_args(words)
    if unknown:
      self.error(self._unknown(unknown[0]))
    if hasattr(args, "config"):
      try:
        args.config = _config(args)
      except UserError as e:
        self.error(str(e))
    return args

  def _unknown(self, word: str) -> str:
    """A sentence on a word that is no flag, naming the nearest."""
    name = word.partition("=")[0]
    known = self._option_string_actions
    if not name.startswith("-"):
      return f"{name!r} is no flag; flags start with --"
    if name.startswith("--config.") and "--config" in known:
      return config_lib.unknown(name.removeprefix("--config."))
    own = [flag for flag in known if not flag.startswith("--config.")]
    near = difflib.get_close_matches(name, own, n=1, cutoff=0.75)
    key = config_lib.near(name.lstrip("-")) if "--config" in known else ""
    if not near and key:
      near = [config_lib.override(key, config_lib.KEYS[key].default)]
    return f"there is no flag {name}" + (
      f"; did you mean {near[0]}?" if near else ""
    )

  def error(self, message: str) -> NoReturn:
    """Ends with a sentence; names in it may be anybody's."""
    end = "" if message.endswith((".", "?")) else "."
    message = errors.printable(message)
    with errors.safe_output():
      help = f"`{self.prog} --help` lists all flags."
      print(f"error: {message}{end} {help}", file=sys.stderr)
    self.exit(1)

  def print_help(self, file: Any = None) -> None:
    """Prints it, unless stdout takes nothing."""
    from mixer import cli

    code = cli.run(lambda _: print(self.format_help(), end="", file=file))
    if code:
      self.exit(code)


def positive(value: str) -> int:
  """A whole number above 0."""
  if not value.isdecimal() or not int(value):
    raise argparse.ArgumentTypeError(f"{value!r} is no whole number above 0")
  return int(value)


def number(
  kind: Callable[[str], Any], least: float, most: float
) -> Callable[[str], Any]:
  """Reads an int or float within bounds."""

  def parse(value: str) -> Any:
    found = kind(value)
    if not least <= found <= most:
      raise argparse.ArgumentTypeError(f"{value} is not within {least}..{most}")
    return found

  parse.__name__ = kind.__name__  # argparse's errors name it.
  return parse


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


def add_platform(parser: argparse.ArgumentParser) -> None:
  """Adds --platform."""
  parser.add_argument(
    "--platform", choices=PLATFORMS, default="", help="refuse to run on another"
  )


# A trained model.


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
  """Adds the flags of every command that takes a trained model."""
  group = parser.add_argument_group("the model")
  group.add_argument(
    "--checkpoint",
    required=required,
    metavar="PATH",
    help="a workdir of train.py, a checkpoint in it, an .npz file or the name "
    "of a released one, such as imagenet1k/Mixer-B_16",
  )
  group.add_argument(
    "--image_size",
    type=_image_size,
    metavar="PIXELS",
    help="448, or 224x448 for height and width; default: as trained",
  )
  group.add_argument(
    "--resize",
    choices=("tiles", "interleaved", "resample"),
    default="",
    help="how weights are fitted to another --image_size; default: as suits it",
  )
  group.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    default="",
    help="of activations; default: as in the run, float32 for released files",
  )
  add_platform(group)  # pyright: ignore[reportArgumentType]


def _image_size(value: str) -> int | tuple[int, int]:
  match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", value)
  if not match:
    raise argparse.ArgumentTypeError(
      f"{value!r} is neither a number of pixels, such as 448, nor height and "
      "width, such as 224x448"
    )
  height, width = match.groups()
  return (int(height), int(width)) if width else int(height)


# A config.


def add_config(parser: argparse.ArgumentParser, beside: str) -> None:
  """Adds --config=FILE, and --config.KEY=VALUE for each key there is.

  Args:
    parser: to add them to.
    beside: what else is required, for the usage.
  """
  parser.usage = f"%(prog)s --config=FILE {beside} [--config.KEY=VALUE] ..."
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE[:WORDS]",
    help="the recipe; --config.KEY=VALUE overrides a key",
  )
  group = parser.add_argument_group("keys of the config, with their defaults")
  for name, key in config_lib.KEYS.items():
    choices = " or ".join(filter(None, key.choices))
    group.add_argument(
      f"--config.{name}",
      type=_value(name, key.default),
      default=argparse.SUPPRESS,
      metavar=shlex.quote(str(key.default)),
      help=f"{key.meaning}{choices and f' ({choices})'}".replace("%", "%%"),
    )


def _value(key: str, default: Any) -> Callable[[str], Any]:
  """Reads a value of the default's type."""
  kind = type(default)

  def parse(value: str) -> Any:
    try:
      if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[
          value.lower()
        ]
      if kind is dict:
        found = dict(ast.literal_eval(value))
        if not all(map(str.isidentifier, found)):
          raise ValueError
        return found
      if kind is tuple:
        found = ast.literal_eval(value)
        return tuple(found) if isinstance(found, tuple | list) else (found,)
      return kind(value)
    except (
      *(ValueError, KeyError, TypeError),
      *(SyntaxError, MemoryError, RecursionError),
    ):
      shown = {"nesterov": True} if kind is dict else default
      raise argparse.ArgumentTypeError(
        f"{value[:100]!r} is not of type {kind.__name__}; write it as in "
        f"{config_lib.override(key, shown)}"
      ) from None

  return parse


def _config(args: argparse.Namespace) -> config_lib.Config:
  """The recipe, with what the command line overrides.

  Raises:
    UserError: the file can't be loaded.
  """
  config = load_recipe(args.config)
  prefix = "config."
  changes = {k: v for k, v in vars(args).items() if k.startswith(prefix)}
  for name in changes:
    delattr(args, name)
  return config_lib.changed(
    config, {k.removeprefix(prefix): v for k, v in changes.items()}
  )


def load_recipe(name: str) -> config_lib.Config:
  """What `get_config` of a Python file returns.

  Args:
    name: FILE, or FILE:WORDS where `get_config` takes these words.

  Raises:
    UserError: it can't be loaded.
  """
  path, colon, words = name.partition(":")
  where = f"--config={name}"
  checkout()  # Recipes import each other from there.
  try:
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None or spec.loader is None:
      raise UserError(f"{where} is no Python file, such as configs/smoke.py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(words) if colon else module.get_config()
    return config_lib.changed(config, {})  # A copy, if it is a config.
  except UserError:
    raise
  except FileNotFoundError as e:
    raise UserError(f"{where}: there is no such file.") from e
  except Exception as e:
    said = " ".join(str(e.args[0] if e.args else e).split())
    if meant := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', said):
      raise UserError(
        f"{where} sets a key {meant[2]!r}, which the config hasn't; did you "
        f"mean {meant[1]!r}? mixer/config.py lists them all."
      ) from e
    line = f", line {e.lineno}" if isinstance(e, SyntaxError) else ""
    what = f"{type(e).__name__}: {said}".rstrip(":. ")
    raise UserError(f"{where} can't be loaded: {what}{line}.") from e


def checkout(command: str = "") -> pathlib.Path | None:
  """The checkout that this package, or the current folder, is in.

  It is put on the path, so that train.py and configs/ can be imported.

  Args:
    command: that can't do without one; "" if it can.

  Raises:
    UserError: there is none.
  """
  for folder in (pathlib.Path(__file__).parent.parent, pathlib.Path.cwd()):
    if (folder / "train.py").is_file() and (folder / "configs").is_dir():
      if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
      return folder
  if command:
    raise UserError(
      f"{command} needs train.py and configs/ of a checkout, and there is none "
      "here: clone the repository, and run this in its folder."
    )
  return None


# A run.


def _named(value: str) -> str:
  if not value:
    raise argparse.ArgumentTypeError("it is empty: name a folder")
  return value


def _keys(value: str) -> list[str]:
  return value.split(",")


def add_run(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the commands that train: train.py and sweep."""
  add = parser.add_argument
  text = "where the run lives: made if missing, continued if not"
  add("--workdir", type=_named, required=True, metavar="DIR", help=text)
  text = "config keys that may differ from the first start; data_set: its data"
  add("--allow_change", type=_keys, default=[], metavar="KEYS", help=text)
  add_platform(parser)
  add_config(parser, "--workdir=DIR")
  group = parser.add_argument_group("several processes")
  add = group.add_argument
  add(
    "--cluster",
    choices=("auto", "none", "explicit", "slurm", "gke", "tpu"),
    default="auto",
    help="how the processes of a run find each other: as Slurm, GKE or a TPU "
    "VM's metadata say, by the address in the next flags, or not at all",
  )
  add("--coordinator_address", default="", help="HOST:PORT of process 0")
  add("--num_processes", type=int, default=0, help="over all hosts")
  add("--process_id", type=int, default=-1, help="of this one, from 0")
  add(
    "--heartbeat_seconds",
    type=positive,
    default=60,
    help="a process that is not heard of for so long is dead: all others end",
  )
