"""Writes the weights of a trained model to a file, without its optimizer.

  python -m tools.export --checkpoint=WORKDIR --to=npz --output=weights.npz

What is written is read back and compared. Where the run kept an average of its
weights that is what is taken; --no-averaged takes the last weights themselves.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import jax

from mixer import command_line, npz, released, runtime, trained, weights
from mixer.errors import UserError
from mixer.storage import digests


def to_npz(model: trained.Trained, path: str) -> None:
  """Writes a file in the layout of the released ones, and proves it.

  Raises:
    UserError: such a file can't hold this model, can't be written, or doesn't
      hold what was written.
  """
  if model.module.permute:
    raise UserError(
      f"{model.source} was trained on images with their {model.module.permute} "
      "permuted, of which an .npz file can't tell; it would be taken for a "
      "model of images as they are."
    )
  released.save(model.params, path)
  written = digests.of(npz.read(pathlib.Path(path).expanduser()))
  wrong = digests.different(written, digests.of(model.params))
  if wrong:
    raise UserError(
      f"{path} doesn't hold what was written to it: {weights.shorten(wrong)} "
      "differ. Write it to another disk."
    )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.export",
    description="Writes the weights of a trained model to a file.",
    allow_abbrev=False,
  )
  parser.add_argument(
    "--checkpoint",
    required=True,
    metavar="PATH",
    help="a workdir of train.py, a checkpoint in it, an .npz file or the name "
    "of a released one, as imagenet1k/Mixer-B_16",
  )
  parser.add_argument(
    "--to",
    choices=("npz",),
    default="npz",
    help="npz: as the released files, which every command here takes",
  )
  parser.add_argument("--output", required=True, metavar="FILE")
  parser.add_argument(
    "--averaged",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="take the average of the weights where the run kept one",
  )
  args = parser.parse_args(argv)

  def body() -> None:
    runtime.quiet_libraries()
    runtime.start("cpu")
    model = trained.load(args.checkpoint, averaged=args.averaged)
    to_npz(model, args.output)
    count = sum(x.size for x in jax.tree.leaves(model.params))
    print(f"{args.output}: {count:,} parameters of {model.origin}")

  return command_line.run(body)


if __name__ == "__main__":
  sys.exit(main())
