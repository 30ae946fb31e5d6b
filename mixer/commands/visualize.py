"""Looks inside a trained Mixer: figures of its weights, and of what it does.

  python -m mixer visualize CHECKPOINT -o DIR
  python -m mixer visualize CHECKPOINT -o DIR --images photo.jpg photos/
  python -m mixer visualize CHECKPOINT -o DIR --figures=tokens,stem

Writes a PNG and an SVG of each figure. The weights alone give `tokens`, `stem`
and `distance`; the others need images: files, and folders with images, or else
some of the run's evaluation split. Prints what each file shows, and what was
left out and why. The exit code is 1 if an image can't be read.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from etils import epy

from mixer import errors, files, flags, stop
from mixer.errors import UserError

with epy.lazy_imports():
  import numpy as np

  from mixer import image_files, predictor, trained
  from mixer.datasets import split as split_lib
  from mixer.insight import figures, kernels

# By how many images it needs. The functions are in mixer.insight.figures.
FIGURES = {"tokens": 0, "stem": 0, "distance": 0, "receptive_field": 1}
FIGURES |= {"similarity": 4, "saliency": 1, "embedding": 5}


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  flags.add_model(parser, required=False)
  add, positive = parser.add_argument, flags.positive
  text = "the model, as for --checkpoint; images may follow"
  add("paths", nargs="*", metavar="CHECKPOINT", help=text)
  add("-o", "--output", required=True, metavar="DIR", help="for the figures")
  text = "files, and folders with images; some of the run's evaluation split"
  add("--images", nargs="+", default=[], metavar="IMAGE", help=text)
  names, text = flags.some_of([*FIGURES]), f"some of {','.join(FIGURES)}; all"
  add("--figures", type=names, default=[*FIGURES], help=text)
  add("--examples", type=positive, default=256, help="images at most; 256")
  text = "images that the saliency is shown for; 6"
  add("--explain", type=positive, default=6, help=text)
  text = "noisy copies for the saliency's gradient; 16; 0 for a plain one"
  add("--smooth", type=flags.number(int, 0, 10**6), default=16, help=text)
  methods = ("pca", "tsne", "umap")
  text = "a second plane of the features, beside PCA"
  add("--embedding", choices=methods, default="pca", help=text)
  add("--data_dir", default="", help=flags.DATA_DIR)


def _images(
  args: argparse.Namespace, model: Any
) -> tuple[np.ndarray, list[str], list[str]]:
  """Images of the command line, else of the run; labels; and problems."""
  problems, sources = [], []
  if args.images:
    paths, empty = image_files.expand(args.images)
    problems = [f"{name}: there is no image in it." for name in empty]
    chosen = [paths[i] for i in kernels.evenly(len(paths), args.examples)]
    sources = [(x, pathlib.Path(x).absolute().parent.name) for x in chosen]
  elif model.config:
    data = model.config.data
    folder = args.data_dir or data.data_dir
    split = split_lib.open_split(data.name, data.eval_split, folder)
    classes = trained.names_for_people(split.class_names)
    places = kernels.evenly(len(split), args.examples).tolist()
    sources = [(r["image"], classes[r["label"]]) for r in split.read(places)]
  else:
    raise UserError("name some with --images.")
  images, labels = [], []
  for source, label in sources:
    try:
      images.append(predictor.fit(source, model))
      labels.append(label)
    except ValueError as e:
      name = source if isinstance(source, str) else f"an image of {label}"
      problems.append(f"{name} can't be used: {e}")
  return np.array(images), labels, problems


def main(args: argparse.Namespace) -> int:
  """Does what the command line says; returns the exit code."""
  words = args.paths  # The first is the checkpoint, if no flag is.
  if args.checkpoint is None:
    if not words:
      raise UserError("the checkpoint is missing: name it first.")
    args.checkpoint, *words = words
  args.images = words + args.images
  folder = pathlib.Path(args.output).expanduser()
  with files.writing(folder, "Name another folder with -o."):
    folder.mkdir(parents=True, exist_ok=True)
  model = trained.of_flags(args)
  print(f"checkpoint    {model.origin}", flush=True)
  images, labels, problems, why, made = (), (), [], ".", 0
  if any(FIGURES[name] for name in args.figures):
    try:
      images, labels, problems = _images(args, model)
    except UserError as e:
      why = f": {e}"
  for problem in problems:
    print(errors.printable(f"error: {problem}"), file=sys.stderr)
  print(f"images        {len(images):,}\nwritten to    {folder}")
  for kind in args.figures:
    try:
      if len(images) < FIGURES[kind]:
        raise UserError(f"it needs {FIGURES[kind]} images at least{why}")
      for name, figure in getattr(figures, kind)(model, images, labels, args):
        figures.save(figure, folder, name)
        what = figure.get_suptitle().splitlines()[0]
        print(f"  {f'{name}.png, .svg':<28}  {what}", flush=True)
        made += 1
    except UserError as e:
      if isinstance(e.__cause__, OSError):  # Of the disk, not of this figure.
        raise
      print(f"left out: {kind}: {e}")
  if not made:
    raise UserError("no figure could be made; see above.")
  return stop.FAILED if problems else stop.DONE
