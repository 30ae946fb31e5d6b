"""The command line of `mixer plan`, read before its imports."""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from mixer import command_line
from mixer.errors import UserError


def parse() -> None:
  """Reads the process's flags; what is wrong, and --help, end it."""
  define()
  command_line.parse_early(check)


def define() -> None:
  """Defines them, where train.py's aren't."""
  config_flags.DEFINE_config_file("config", None, "The recipe.")
  flags.DEFINE_string("hardware", "", "Slice, such as v5e-64 or h100-8.")
  flags.DEFINE_integer(
    "examples", None, "Of the training split.", lower_bound=1
  )
  flags.DEFINE_integer("classes", None, "Of the data set.", lower_bound=1)
  flags.DEFINE_float("price", None, "Dollars a chip and hour.", lower_bound=0.0)
  flags.DEFINE_float("cores", None, "Of each host.", lower_bound=0.01)
  flags.DEFINE_float(
    "core_rate", None, "Images/s that one core decodes.", lower_bound=0.01
  )
  flags.DEFINE_bool("compile", False, "Ask the real compiler too.")
  flags.DEFINE_bool("json", False, "For programs.")
  flags.DEFINE_bool("formulas", False, "Print the formulas too.")


def check(argv: Sequence[str]) -> None:
  """Refuses a command line without what it needs.

  Args:
    argv: what is left of it beside flags.

  Raises:
    UserError: a word that is no flag; no recipe or no hardware.
  """
  if len(argv) > 1:
    raise UserError(f"{argv[1]!r} is no flag; flags start with --.")
  if flags.FLAGS.config is None or not flags.FLAGS.hardware:
    raise UserError(
      "name a recipe and what it is to run on: python -m mixer plan "
      "--config=configs/mixer_b16_i21k.py --hardware=v5e-64; --help lists all "
      "flags and keys."
    )
