"""The command line of `mixer prepare`."""

import argparse
from typing import Any

from mixer import command_line

# Flags that are fields of `Options`, and those that have another name there.
OPTIONS = (
  "seed",
  "drop_duplicates",
  "short_side",
  "quality",
  "on_mislabelled",
  "on_bad",
  "max_bad",
  "workers",
  "restart",
)
RENAMED = {
  "short_side": "resize",
  "on_bad": "bad",
  "on_mislabelled": "mislabelled",
}


def parser() -> argparse.ArgumentParser:
  """Of the whole command line."""
  parser = command_line.Parser(
    "python -m mixer prepare", "Prepares a data set for training."
  )
  add = parser.add_argument
  add("set", nargs="?", metavar="NAME", help="NAME, NAME/CONFIG; see --list")
  add("--list", action="store_true", help="the sets that are known by name")
  add(
    "--source",
    action="append",
    default=[],
    metavar="PATH",
    help="what you have of it: archives, a folder; may be given more than once",
  )
  add("--data_dir", default="", help="where data sets lie; TFDS's own default")
  own = parser.add_argument_group(
    "for files of yours (folder, imagenet21k and others that --list names)"
  )
  add = own.add_argument
  add("--name", help="of the set that `folder` makes")
  add("--classes", metavar="FILE", help="the classes, one a line, in order")
  add(
    "--resize",
    dest="short_side",
    type=_number(int, 0, 10**5),
    default=0,
    metavar="SHORT_SIDE",
    help="make images with a longer short side so small; 0: keep every byte",
  )
  add(
    "--quality",
    type=_number(int, 1, 100),
    default=95,
    help="of JPEG, where images are encoded anew",
  )
  add(
    "--upright",
    action=argparse.BooleanOptionalAction,
    help="turn images as their EXIF orientation says (folder does)",
  )
  add(
    *("--bad", "--on_bad"),
    dest="on_bad",
    choices=("skip", "fail"),
    default="skip",
    help="what becomes of files that don't decode",
  )
  add(
    "--max_bad",
    type=_number(float, 0, 1),
    default=0.1,
    metavar="SHARE",
    help="stop where more than this share of the files is bad",
  )
  add(
    *("--mislabelled", "--on_mislabelled"),
    dest="on_mislabelled",
    choices=("keep", "skip", "fail"),
    default="keep",
    help="what becomes of a PNG that is called .jpg, and the like",
  )
  add(
    "--drop_duplicates",
    action="store_true",
    help="of images with equal bytes keep one",
  )
  add(
    "--accept_truncated",
    action="store_true",
    help="take what is there of a tar that breaks off",
  )
  add(
    "--hold_out",
    type=hold_out,
    metavar="PARTS",
    help="10%%, 5000, or validation=10%%,test=5%%, or none: of the images that "
    "the source gives no split; of a folder exactly, and of each class",
  )
  add("--seed", type=_number(int, 0, 2**63), default=0, help="of that draw")
  add(
    "--workers",
    type=_number(int, 0, 1000),
    help="processes that look at images; one a core by default",
  )
  add(
    "--restart",
    action="store_true",
    help="discard what a stopped preparation has done; prepare anew what is "
    "there, which stays until then",
  )
  return parser


def _number(kind: Any, least: Any, most: Any) -> Any:
  """A parser of numbers within bounds."""

  def parse(text: str) -> Any:
    value = kind(text)
    if not least <= value <= most:
      raise argparse.ArgumentTypeError(f"{text} is not within {least}..{most}")
    return value

  parse.__name__ = kind.__name__  # Of which argparse's errors speak.
  return parse


def hold_out(text: str) -> dict[str, int | float]:
  """Parses --hold_out: "10%", "5000" (of `validation`), "NAME=PART,...".

  Raises:
    ArgumentTypeError: it is something else.
  """
  if text == "none":
    return {}
  parts: dict[str, int | float] = {}
  for item in text.split(","):
    split, equals, amount = item.strip().rpartition("=")
    split = split if equals else "validation"
    try:
      share = amount.endswith("%")
      value = float(amount[:-1]) / 100 if share else int(amount)
    except ValueError:
      value = 0
    if not split.isidentifier() or split in parts or value <= 0:
      raise argparse.ArgumentTypeError(
        f"{text} is no share or number of images, such as 10%, 5000 or "
        "validation=5000,test=5000"
      )
    parts[split] = value
  return parts
