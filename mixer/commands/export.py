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
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from etils import epy

from mixer import flags
from mixer.errors import UserError

with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from mixer import (
    export,
    export_onnx,
    export_stablehlo,
    export_timm,
    predictor,
    preprocess,
    runtime,
    trained,
  )

# Images in one batch.
_BATCH = 8


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  flags.add_model(parser)
  parser.set_defaults(platform="cpu")
  add = parser.add_argument
  add(
    "--averaged",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="take the average of the weights where the run kept one",
  )
  add(
    "--to",
    choices=("npz", "timm", "onnx", "stablehlo"),
    default="npz",
    help="npz: a file as the released ones; timm: a folder that timm loads, or "
    "FILE.safetensors of weights alone; onnx: a file for ONNX runtimes, uint8 "
    "pixels in; stablehlo: a program for JAX on any device, in a folder with "
    "its weights, or FILE.stablehlo with them inside",
  )
  add(
    *("-o", "--output"),
    required=True,
    metavar="PATH",
    help="a file, or a new folder",
  )
  add(
    "--images",
    nargs="+",
    default=(),
    metavar="IMAGE",
    help="files to compare on, in place of random images",
  )
  add(
    "--platforms",
    type=flags.some_of(("cpu", "cuda", "rocm", "tpu")),
    default=("cpu", "cuda", "tpu"),
    metavar="NAMES",
    help="that a stablehlo program is for; cpu,cuda,tpu",
  )


def main(args: argparse.Namespace) -> None:
  """Does what the command line says."""
  form: Any = {
    "npz": export,
    "timm": export_timm,
    "onnx": export_onnx,
    "stablehlo": export_stablehlo,
  }[args.to]
  more = {"platforms": args.platforms} if args.to == "stablehlo" else {}
  with export.place(args.output, form.SUFFIX, form.MEMBERS) as place:
    export.load(*form.PACKAGES)
    runtime.start(args.platform)
    model = trained.load(
      args.checkpoint, args.image_size, args.resize, args.dtype, args.averaged
    )
    images = args.images or random_images(model.image_size)
    written = form.write(model, place, **more)
    table = ""
    if not written.missing:
      table = f"\n{verify(model, written, images)}\n"
    size = sum(f.stat().st_size for f in place.written())
    place.commit()
  count = sum(x.size for x in jax.tree.leaves(model.params))
  print(
    f"{args.output}: {count:,} parameters of {model.origin}; "
    f"{size / 1e6:,.1f} MB\n{table}"
  )
  for note in written.notes:
    whole: Any = dict(break_long_words=False, break_on_hyphens=False)
    print(textwrap.fill(note, 80, **whole), end="\n\n")
  print("To load it:\n")
  print(textwrap.indent(written.loading, "  "))
  sys.stdout.flush()
  if written.missing:
    print(f"\nNOT VERIFIED: {written.missing}.", file=sys.stderr)


def verify(
  model: trained.Trained, written: export.Written, images: Sequence[Any]
) -> str:
  """Runs what was written beside the model; a table of the differences."""
  assert written.run and written.metadata
  found, wanted = vars(written.metadata), vars(model.metadata)
  if wrong := [k for k in wanted if k != "dtype" and found[k] != wanted[k]]:
    raise UserError(
      "what was written doesn't say what was written to it: "
      f"{', '.join(wrong)} differ. Write it to another disk."
    )
  batches = _batches(images, model)
  dtype = "float32" if written.bound else ""
  ours = export.outputs(export.runner(model, dtype), batches)
  theirs = export.outputs(written.run, batches)
  sizes = [str(len(batch)) for batch in batches]
  bound = f"{written.bound:.0e}" if written.bound else "equal bits"
  lines = [
    f"compared on {sum(map(len, batches))} images, in batches of "
    f"{', '.join(sizes[:-1])} and {sizes[-1]}: mixer and {written.against}",
    f"{'':10}{'absolute':>12}{'relative':>12}{'bound':>12}",
  ]
  wrong = []
  for name, wanted in ours.items():
    absolute, relative = _difference(wanted, theirs[name])
    lines.append(f"{name:10}{absolute:12.1e}{relative:12.1e}{bound:>12}")
    if not relative <= written.bound:  # NaN isn't.
      wrong.append(f"{name} differ by {relative:.1e}")
  if wrong:
    raise UserError(
      f"what was exported of {model.source} computes something else in "
      f"{written.against}: {', '.join(wrong)}, relative to their largest "
      f"magnitude, where {bound} is allowed. Nothing was kept. Take another "
      "version of that package, or report it."
    )
  if "logits" in ours:
    best = (x["logits"].argmax(axis=-1) for x in (ours, theirs))
    lines.append(
      f"{'top-1':10}{np.equal(*best).sum()} of {sum(map(len, batches))} agree"
    )
  if dtype and jnp.dtype(model.module.dtype) == jnp.bfloat16:
    name, wanted = list(ours.items())[-1]
    _, apart = _difference(
      wanted, export.outputs(export.runner(model), batches)[name]
    )
    lines += [
      "Both in float32, in which the export computes; in the model's own",
      f"bfloat16 {name} are {apart:.1e} (relative) from that.",
    ]
  return "\n".join(lines)


def _difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
  """The largest one; the same as a share of the largest magnitude of ours."""
  if ours.shape != theirs.shape:
    return np.inf, np.inf
  absolute = float(np.abs(ours.astype(np.float64) - theirs).max())
  return absolute, absolute / (float(np.abs(ours).max()) or 1.0)


def random_images(size: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
  """Six images uint8 `[H, W, 3]`: noise, smooth, flat; of several shapes."""
  rng = np.random.default_rng(seed)
  h, w = size

  def noise(height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), np.uint8)

  flat = [np.full((h, w, 3), value, np.uint8) for value in (0, 255)]
  smooth = [
    preprocess.resize(noise(4, 4), sides) for sides in ((h, 3 * w), (2 * h, w))
  ]
  return [noise(h, w), *flat, *smooth, noise(h + 1, 2 * w)]


def _batches(images: Sequence[Any], model: trained.Trained) -> list[np.ndarray]:
  """The first image alone, then more at once: two sizes of batch at least."""
  fitted = []
  for image in images:
    try:
      fitted.append(predictor.fit(image, model))
    except ValueError as e:
      raise UserError(f"{image} can't be used: {e}.") from e
  rest = fitted[1:] or (fitted[0], fitted[0])
  starts = range(0, len(rest), _BATCH)
  cut = [np.stack(rest[start : start + _BATCH]) for start in starts]
  return [fitted[0][None], *cut]
