"""Writes a trained model to a file that other programs take.

  python -m mixer export --checkpoint=WORKDIR --to=npz --output=weights.npz
  python -m mixer export --checkpoint=WORKDIR --to=timm --output=DIR1
  python -m mixer export --checkpoint=WORKDIR --to=onnx --output=model.onnx
  python -m mixer export --checkpoint=WORKDIR --to=stablehlo --output=DIR2

npz: weights in the layout of the released files, which every command here
takes. timm: weights for PyTorch. onnx: the model from uint8 pixels to logits.
stablehlo: the same as a program for JAX, with the same bits. Class names, the
kind of loss and the preprocessing of images go along: inside of .onnx and
.safetensors, in info.json of a folder, or in FILE.json beside FILE.

Where the run kept an average of its weights that is what is taken;
--no-averaged takes the last weights themselves. Before anything is put in
place, what was written is run beside the model itself, on the images given or
on random ones, each prepared as its own metadata say, and a table says how far
the two are apart. Beyond the bound
nothing is kept, and the exit code is 1. All this runs on the CPU, unless
--platform names another.
"""

# First of all, so that a wrong flag and --help are answered at once.
from mixer.commands import arguments

if __name__ == "__main__":
  arguments.export().parse_args()

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from mixer import command_line, runtime, trained
from mixer.exporting import (
  npz_file,
  onnx_file,
  packages,
  placing,
  stablehlo,
  timm_weights,
  verification,
)


class _Target(NamedTuple):
  """What a value of --to stands for.

  Attributes:
    suffix: of its file.
    members: files of its folder; () where it is always one file.
    packages: that it takes to write it.
  """

  suffix: str
  members: tuple[str, ...] = ()
  packages: tuple[str, ...] = ()


_TARGETS = {
  "npz": _Target(".npz"),
  "timm": _Target(
    ".safetensors",
    timm_weights.MEMBERS,
    ("safetensors",),
  ),
  "onnx": _Target(".onnx", (), ("onnx",)),
  "stablehlo": _Target(
    ".stablehlo",
    stablehlo.MEMBERS,
    ("flatbuffers",),
  ),
}


def export(
  to: str,
  model: trained.Trained,
  place: placing.Place,
  images: Sequence[Any],
  platforms: Sequence[str],
) -> verification.Outcome:
  """Writes what `to` names, and compares.

  Args:
    to: of `_TARGETS`.
    model: any.
    place: where.
    images: to compare on, as files are: paths, or arrays of any size.
    platforms: of "stablehlo".

  Raises:
    UserError: it can't hold the model, can't be written or computes otherwise.
  """
  if to == "npz":
    npz_file.refuse(model)
    outcome = npz_file.export(model, place, images)
  elif to == "timm":
    outcome = timm_weights.export(model, place, images)
  elif to == "onnx":
    outcome = onnx_file.export(model, place, images)
  else:
    outcome = stablehlo.export(model, place, images, platforms)
  if outcome.comparison is not None:
    verification.check(outcome.comparison, model)
  return outcome


def run(args: argparse.Namespace) -> None:
  """Does what the command line says.

  Raises:
    UserError: something that the user can mend.
  """
  target = _TARGETS[args.to]
  with placing.place(args.output, target.suffix, target.members) as place:
    if target.packages:
      packages.load(*target.packages)
    runtime.start(args.platform)
    model = trained.load(
      args.checkpoint, args.image_size, args.resize, args.dtype, args.averaged
    )
    images = args.images or verification.random_images(model.image_size)
    batches = verification.batches(images, model)
    outcome = export(args.to, model, place, images, args.platforms)
    size = place.size()
    place.commit()
  count = sum(x.size for x in jax.tree.leaves(model.params))
  print(
    f"{args.output}: {count:,} parameters of {model.origin}; "
    f"{size / 1e6:,.1f} MB"
  )
  if outcome.comparison is not None:
    sizes = [len(batch) for batch in batches]
    print("\n" + verification.table(outcome.comparison, sizes))
  for note in outcome.notes:
    print("\n" + _wrapped(note))
  print("\nTo load it:\n")
  print("\n".join(f"  {line}".rstrip() for line in outcome.loading.split("\n")))
  sys.stdout.flush()
  if outcome.missing:
    print(f"\nNOT VERIFIED: {outcome.missing}.", file=sys.stderr)


def _wrapped(text: str) -> str:
  return textwrap.fill(text, 80, break_long_words=False, break_on_hyphens=False)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  args = arguments.export().parse_args(argv)
  return command_line.tool(run, args)


if __name__ == "__main__":
  sys.exit(main())
