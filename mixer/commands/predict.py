r"""Says what is on images, or writes their features.

  python -m mixer predict --checkpoint=runs/my_set photo.jpg
  python -m mixer predict --checkpoint=imagenet1k/Mixer-B_16 DIR '*.png' --top=3
  python -m mixer predict --checkpoint=runs/my_set DIR --format=csv > all.csv
  find . -name '*.jpg' | python -m mixer predict --checkpoint=runs/my_set \
    --files=- --features=features.npy

An image is a file, all those in a folder and the folders in it, those that a
pattern matches, or those that a list names. It is turned upright as its EXIF
data say and put on white ground where it is transparent, as for a data set made
from a folder, then resized and cropped as for evaluation; of an animation it is
the first frame. What comes out are the classes with the highest scores:
probabilities of softmax, or sigmoids where the model was trained with those; as
a table, as JSON Lines (an object a line, for jq) or as CSV (a line a class).
Everything else goes to stderr. With --features it is what the head sees
(pre-logits), in a .npy file with a .csv of the paths beside it, or in a
.parquet file; mixer/prediction/feature_files.py has more.

A file that can't be read is told of on stderr, has its `error` in JSON, CSV and
features, and the rest goes on; the exit code is 1 in the end. A file that is
written is named FILE.partial until it is whole. Ctrl-C leaves that, with what
was done, and exits with 130.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TextIO

from etils import epy

from mixer import cli, errors, flags, stop
from mixer.errors import UserError

with epy.lazy_imports():
  from mixer import predictor
  from mixer.prediction import (
    counting,
    feature_files,
    finding,
    formats,
    partial,
  )


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  flags.add_model(parser)
  parser.add_argument(
    "images", nargs="*", metavar="IMAGE", help="a file, a folder, or a pattern"
  )
  parser.add_argument(
    "--files",
    default="",
    metavar="LIST",
    help="a file with the path of an image on each line; - for stdin",
  )
  parser.add_argument(
    "--top", type=flags.positive, help=f"how many classes of each; {TOP}"
  )
  parser.add_argument(
    "--format",
    choices=("table", "json", "csv"),
    default="",
    help="json is an object a line (JSON Lines), csv a line a class; as the "
    "suffix of --output says, else a table",
  )
  parser.add_argument(
    *("-o", "--output"),
    default="",
    metavar="FILE",
    help="write there in place of stdout; FILE.partial until it is whole",
  )
  parser.add_argument(
    "--features",
    default="",
    metavar="FILE",
    help="write pre-logits in place of classes: FILE.npy, with the paths in "
    "FILE.csv, or FILE.parquet",
  )
  parser.add_argument(
    "--batch_size",
    type=flags.positive,
    metavar="IMAGES",
    help="at a time, over all devices; 32 on each",
  )


TOP = 5  # Classes of each image.
# Beyond it a file's name pushes its line to the right.
_WIDEST = 60
_SCORES = {
  "softmax": "probabilities (softmax)",
  "sigmoid": "sigmoids, each class for itself",
}
_SUFFIXES = {".json": "json", ".jsonl": "json", ".csv": "csv"}


def main(args: argparse.Namespace) -> int:
  """Does what the command line says; returns the exit code.

  Raises:
    UserError: something that the user can mend.
  """
  _check(args)
  paths, empty = finding.find(args.images, args.files)
  for name in empty:
    said = errors.printable(f"error: {name}: there is no image")
    print(said, file=sys.stderr)
  file = args.features or args.output
  # On a terminal the results show by themselves how far it is.
  counter = counting.Counter(len(paths), bool(file) or not sys.stdout.isatty())
  try:
    if args.features:
      _write_features(args, paths, counter)
    else:
      _predict(args, paths, counter)
  except KeyboardInterrupt as e:
    real = os.path.realpath(file) if os.path.islink(file) else file
    part = f"{real}.partial"
    kept = f"; they are in {part}" if file and os.path.exists(part) else ""
    name, code = cli.interruption(e)
    stop.say(
      f"{name}: stopped after {counter.done:,} of {len(paths):,} images{kept}",
      sys.stderr,
    )
    return code
  return stop.FAILED if counter.failed or empty else stop.DONE


def _check(args: argparse.Namespace) -> None:
  """Refuses flags that don't go together."""
  if args.features and (args.output or args.format or args.top):
    raise UserError(
      "--features writes features alone: leave out --output, --format and "
      "--top, or run twice."
    )
  if not args.images and not args.files:
    raise UserError(
      "no image is named: give files, folders or patterns, or a list of files "
      "by --files."
    )


def _predict(
  args: argparse.Namespace, paths: Sequence[str], counter: counting.Counter
) -> None:
  suffix = pathlib.Path(args.output).suffix.lower()
  kind = args.format or _SUFFIXES.get(suffix, "table")
  # Before the model is loaded: it may be refused.
  with partial.text(args.output, kind != "table") as write:
    model = predictor.Predictor(flags.load_model(args), args.batch_size)
    said = model.stream(paths, args.top or TOP)
    plain = kind == "table" and not args.output
    _describe(model, len(paths), sys.stdout if plain else sys.stderr)
    write(formats.header(kind))
    width = min(max(map(len, paths)), _WIDEST)
    for one in counter.count(said):
      write(formats.text(kind, one, width))


def _write_features(
  args: argparse.Namespace, paths: Sequence[str], counter: counting.Counter
) -> None:
  with feature_files.open_file(args.features) as file:
    model = predictor.Predictor(flags.load_model(args), args.batch_size)
    rows = model.stream_features(paths)
    _describe(model, len(paths), sys.stderr, features=True)
    for one in counter.count(rows):
      file.write(one)


def _describe(
  model: predictor.Predictor, images: int, to: TextIO, features: bool = False
) -> None:
  height, width = model.model.image_size
  print(f"checkpoint    {model.model.origin}", file=to)
  print(f"images        {images:,}, at {height} x {width} px", file=to)
  if features:
    channels = model.model.module.hidden_dim
    print(f"features      {channels:,} of each: pre-logits", file=to)
  else:
    meaning = _SCORES[model.model.loss]
    classes = f"{model.model.num_classes:,} classes"
    print(f"scores        {meaning}; {classes}", file=to)
    if model.model.unnamed:
      print(f"classes       {model.model.unnamed}", file=to)
  if to is sys.stdout:
    print(flush=True)  # The table comes below.
