"""Flags of every command that takes a trained model."""

import argparse
import re
import typing

if typing.TYPE_CHECKING:
  from mixer import trained

# Those of `mixer.resolution`.
_METHODS = ("tiles", "interleaved", "resample")


def add(parser: argparse.ArgumentParser, required: bool = True) -> None:
  """Adds them; `load` reads them.

  Args:
    parser: of the command.
    required: whether the checkpoint has to be given as a flag; else the command
      may take it from elsewhere, and sets `checkpoint`.
  """
  own = parser.add_argument_group("the model")
  own.add_argument(
    "--checkpoint",
    required=required,
    metavar="PATH",
    help="a workdir of train.py, a checkpoint in it, an .npz file or the name "
    "of a released one, as imagenet1k/Mixer-B_16",
  )
  own.add_argument(
    "--image_size",
    type=_size,
    metavar="PIXELS",
    help="448, or 224x448 for height and width; what it was trained at",
  )
  own.add_argument(
    "--resize",
    choices=_METHODS,
    default="",
    help="how it is fitted to another --image_size; as suits the size",
  )
  own.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    default="",
    help="of activations; as in its run, float32 for released files",
  )
  own.add_argument(
    "--platform",
    choices=("cpu", "gpu", "tpu"),
    default="",
    help="refuse to run on another",
  )


def load(args: argparse.Namespace) -> "trained.Trained":
  """Starts JAX, and loads the model that the flags name.

  Raises:
    UserError: no such platform; or see `trained.load`.
  """
  # Here, as what only reads flags needn't wait for it.
  from mixer import runtime, trained

  runtime.start(args.platform)
  return trained.load(args.checkpoint, args.image_size, args.resize, args.dtype)


def positive(text: str) -> int:
  """A flag's value that is a whole number above 0."""
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
  return int(text)


def _size(text: str) -> int | tuple[int, int]:
  """Reads "448" or "224x448"."""
  match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
  if not match:
    raise argparse.ArgumentTypeError(
      f"{text!r} is neither a number of pixels, such as 448, nor height and "
      "width, such as 224x448"
    )
  height, width = match.groups()
  return (int(height), int(width)) if width else int(height)
