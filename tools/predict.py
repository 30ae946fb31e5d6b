"""Says what is on images.

  python -m tools.predict --checkpoint=runs/my_set photo.jpg
  python -m tools.predict --checkpoint=imagenet1k/Mixer-B_16 DIR '*.png' --top=3

An image is a file, all those in a folder and the folders in it, or those that a
pattern matches. It is turned upright as its EXIF data say, as for a data set
made from a folder, then resized and cropped as for evaluation. Prints the
classes with the highest scores, a line each: probabilities of softmax, or
sigmoids where the model was trained with those. A file that can't be read is
told of on stderr; the rest goes on, and the exit code is 1.
"""

import argparse
import glob
import itertools
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mixer import (
  command_line,
  evaluate,
  inference,
  loader,
  preprocess,
  runtime,
  sharding,
  stop,
  trained,
  trained_flags,
)
from mixer.datasets.preparation import inspection
from mixer.datasets.sources import folder_walk
from mixer.errors import UserError

_PER_DEVICE = 32
# Beyond it a file's name pushes its line to the right.
_WIDEST = 60
_SCORES = {
  "softmax": "probabilities (softmax)",
  "sigmoid": "sigmoids, each class for itself",
}


def find(names: Sequence[str]) -> tuple[list[str], list[str]]:
  """The files that the command line names, each once, in its order.

  Args:
    names: files, which needn't be there, folders, and patterns.

  Returns:
    The files; and those of the folders and patterns in which there is none.

  Raises:
    UserError: there is none at all, or a folder can't be listed.
  """
  found: list[str] = []
  empty = []
  for name in names:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
      own = [entry.path for _, entry in folder_walk.images_below(path)]
    elif glob.has_magic(path) and not os.path.exists(path):
      matches = sorted(glob.glob(path, recursive=True))
      own = [match for match in matches if os.path.isfile(match)]
    else:
      own = [path]
    found += own
    empty += [] if own else [name]
  if not found:
    raise UserError(
      f"there is no image in {', '.join(names)}: expected files, folders with "
      "images such as .jpg or .png, or patterns such as 'photos/*.jpg'."
    )
  return list(dict.fromkeys(found)), empty


def read(path: str, model: trained.Trained) -> np.ndarray:
  """An image as the model takes it, uint8 `[H, W, 3]`.

  The bytes go the way of a data set that is made from a folder: turned
  upright, where they say so, and then as in evaluation.

  Raises:
    ValueError: a sentence that says why it can't be read.
  """
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as e:
    raise ValueError(e.strerror or str(e)) from e
  found = inspection.inspect(data, path, inspection.Options(upright=True))
  if found.problem and found.kind != "mislabelled":
    raise ValueError(found.problem)
  return preprocess.evaluation(found.data, model.image_size, model.short_side)


class Prediction(NamedTuple):
  """What the model says about an image.

  Attributes:
    path: of its file.
    classes: numbers of the classes, int32 `[top]`, the highest score first.
    scores: theirs, float32 `[top]`; see `inference.Inference`.
    problem: why it can't be read; "" if it can.
  """

  path: str
  classes: np.ndarray
  scores: np.ndarray
  problem: str = ""


class _Files:
  """Images for `loader.Pieces`; remembers those that can't be read.

  Attributes:
    size: (height, width) of an image.
    problems: place -> why; of the batches so far.
  """

  def __init__(self, paths: Sequence[str], model: trained.Trained):
    self.size = model.image_size
    self.problems: dict[int, str] = {}
    self._paths, self._model = paths, model

  def __call__(
    self, places: Sequence[int], images: np.ndarray
  ) -> Iterator[tuple[int, bool]]:
    for place, out in zip(places, images, strict=True):
      out[...] = 0
      within = place < len(self._paths)
      if within:
        try:
          out[...] = read(self._paths[place], self._model)
        except ValueError as e:
          self.problems[place] = str(e)
      yield 0, within and place not in self.problems


def predict(
  model: trained.Trained, paths: Sequence[str], top: int = 5
) -> Iterator[Prediction]:
  """What the model says about images, in their order.

  Args:
    model: with a head.
    paths: files.
    top: how many classes, at most.
  """
  mesh = sharding.make_mesh()
  functions = inference.Inference(
    model.module, model.loss, model.num_classes, mesh, top=top
  )
  params = jax.device_put(model.params, sharding.replicated(mesh))
  devices = jax.device_count()
  # Never more than it takes, and all of one size: one compilation.
  size = min(_PER_DEVICE, -(-len(paths) // devices)) * devices
  files = _Files(paths, model)
  pieces = loader.Pieces(files, size, os.cpu_count() or 1, masked=True)
  numbers = range(-(-len(paths) // size))
  batches = (
    {"image": batch["image"], "mask": batch["mask"]}
    for batch in loader.Loader(pieces, numbers, prefetch=2)
  )
  nothing = np.empty(0, np.int32), np.empty(0, np.float32)
  places = iter(range(len(paths)))
  for rows in evaluate.examples(functions, params, batches, mesh):
    done = zip(rows["classes"], rows["scores"], strict=True)
    for place in itertools.islice(places, size):
      problem = files.problems.get(place, "")
      found = nothing if problem else next(done)
      yield Prediction(paths[place], *found, problem)


def run(args: argparse.Namespace) -> int:
  """Does what the command line says; returns how many things failed.

  Raises:
    UserError: something that the user can mend.
  """
  paths, empty = find(args.images)
  model = trained_flags.load(args)
  if not model.num_classes:
    raise UserError(
      f"the checkpoint {args.checkpoint} has no head, so it predicts no "
      "classes; take one that was fine-tuned."
    )
  names = model.class_names or [f"output {k}" for k in range(model.num_classes)]
  height, width = model.image_size
  print(
    f"checkpoint    {model.origin}\n"
    f"images        {len(paths):,}, at {height} x {width} px\n"
    f"scores        {_SCORES[model.loss]}; {model.num_classes:,} classes\n",
    flush=True,
  )
  for name in empty:
    print(f"error: {name}: there is no image", file=sys.stderr)
  failed = len(empty)
  wide = min(max(map(len, paths)), _WIDEST)
  for said in predict(model, paths, args.top):
    if said.problem:
      failed += 1
      print(f"error: {said.path}: {said.problem}", file=sys.stderr)
    label = said.path
    for k, score in zip(said.classes, said.scores, strict=True):
      name = names[k] if k >= 0 else "none: the logits are not numbers"
      print(f"{label:<{wide}}  {score:6.3f}  {name}", flush=True)
      label = ""
  return failed


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.predict",
    description="Says what is on images.",
    allow_abbrev=False,
  )
  trained_flags.add(parser)
  parser.add_argument(
    "images", nargs="+", metavar="IMAGE", help="a file, a folder, or a pattern"
  )
  parser.add_argument(
    "--top",
    type=trained_flags.positive,
    default=5,
    help="how many classes of each",
  )
  args = parser.parse_args(argv)
  failed = []

  def body() -> None:
    runtime.quiet_libraries()
    failed.append(run(args))

  code = command_line.run(body)
  return stop.FAILED if any(failed) else code


if __name__ == "__main__":
  sys.exit(main())
