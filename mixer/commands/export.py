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

Where the run kept an average of its weights that is what is taken. Before
anything is put in place, what was written is run beside the model, on the
images given or on random ones, and a table says how far the two are apart.
Beyond the bound nothing is kept, and the exit code is 1. All this runs on the
CPU, unless --platform names another.
"""

from __future__ import annotations

import argparse
import functools
import sys
import textwrap

from etils import epy

from mixer import flags

with epy.lazy_imports():
  import jax

  from mixer import (
    export,
    export_onnx,
    export_stablehlo,
    export_timm,
    runtime,
    trained,
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


def main(args: argparse.Namespace) -> None:
  """Does what the command line says.

  Raises:
    UserError: something that the user can mend.
  """
  suffix, members, packages, write = ".npz", (), (), export.write_npz
  if args.to != "npz":
    form = {
      "timm": export_timm,
      "onnx": export_onnx,
      "stablehlo": export_stablehlo,
    }[args.to]
    suffix, members, packages = form.SUFFIX, form.MEMBERS, form.PACKAGES
    write = form.write
  if args.to == "stablehlo":
    write = functools.partial(write, platforms=args.platforms)
  with export.place(args.output, suffix, members) as place:
    export.load(*packages)
    runtime.start(args.platform)
    model = trained.load(
      args.checkpoint, args.image_size, args.resize, args.dtype, args.averaged
    )
    images = args.images or export.random_images(model.image_size)
    written = write(model, place)
    table = ""
    if not written.missing:
      table = f"\n{export.verify(model, written, images)}\n"
    size = sum(f.stat().st_size for f in place.written())
    place.commit()
  count = sum(x.size for x in jax.tree.leaves(model.params))
  print(
    f"{args.output}: {count:,} parameters of {model.origin}; "
    f"{size / 1e6:,.1f} MB\n{table}"
  )
  for note in written.notes:
    lines = textwrap.wrap(
      note, 80, break_long_words=False, break_on_hyphens=False
    )
    print("\n".join(lines), end="\n\n")
  print("To load it:\n")
  print(textwrap.indent(written.loading, "  "))
  sys.stdout.flush()
  if written.missing:
    print(f"\nNOT VERIFIED: {written.missing}.", file=sys.stderr)
