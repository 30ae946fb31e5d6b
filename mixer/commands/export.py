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

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epy

from mixer import flags

with epy.lazy_imports():
  import jax

  from mixer import runtime, trained
  from mixer.exporting import (
    npz_file,
    onnx_file,
    packages,
    placing,
    stablehlo,
    timm_weights,
    verification,
  )


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  flags.add_model(parser)
  parser.set_defaults(platform="cpu")
  parser.add_argument(
    "--averaged",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="take the average of the weights where the run kept one",
  )
  parser.add_argument(
    "--to",
    choices=("npz", "timm", "onnx", "stablehlo"),
    default="npz",
    help="npz: a file as the released ones; timm: a folder that timm loads, or "
    "FILE.safetensors of weights alone; onnx: a file for ONNX runtimes, uint8 "
    "pixels in; stablehlo: a program for JAX on any device, in a folder with "
    "its weights, or FILE.stablehlo with them inside",
  )
  parser.add_argument(
    *("-o", "--output"),
    required=True,
    metavar="PATH",
    help="a file, or a new folder",
  )
  parser.add_argument(
    "--images",
    nargs="+",
    default=(),
    metavar="IMAGE",
    help="files to compare on, in place of random images",
  )
  parser.add_argument(
    "--platforms",
    type=flags.some_of(("cpu", "cuda", "rocm", "tpu")),
    default=("cpu", "cuda", "tpu"),
    metavar="NAMES",
    help="that a stablehlo program is for; cpu,cuda,tpu",
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


def _target(to: str) -> _Target:
  match to:
    case "timm":
      return _Target(".safetensors", timm_weights.MEMBERS, ("safetensors",))
    case "onnx":
      return _Target(".onnx", (), ("onnx",))
    case "stablehlo":
      return _Target(".stablehlo", stablehlo.MEMBERS, ("flatbuffers",))
  return _Target(".npz")


def export(
  to: str,
  model: trained.Trained,
  place: placing.Place,
  images: Sequence[Any],
  platforms: Sequence[str],
) -> verification.Outcome:
  """Writes what `to` names, and compares.

  Args:
    to: of --to.
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


def main(args: argparse.Namespace) -> None:
  """Does what the command line says.

  Raises:
    UserError: something that the user can mend.
  """
  target = _target(args.to)
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
