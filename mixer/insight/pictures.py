"""The images that a model is looked at with: from files, or of its data set."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from mixer import image_files, predictor, preprocess, trained
from mixer.datasets import split as split_lib
from mixer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Images with what is known of them.

  Attributes:
    images: uint8 `[N, H, W, 3]`, as the model takes them.
    names: of each, for people.
    labels: of each its class, or its folder; None where nobody knows.
    what: the labels are: "class" or "folder".
    problems: a sentence for each image that can't be read.
  """

  images: np.ndarray
  names: tuple[str, ...]
  labels: tuple[str, ...] | None
  what: str
  problems: tuple[str, ...] = ()


def find(paths: Sequence[str]) -> tuple[list[str], list[str]]:
  """Image files, each once, in the order of the command line.

  Args:
    paths: files, which needn't be there, and folders.

  Returns:
    The files; and a sentence for each folder without images.

  Raises:
    UserError: a folder can't be listed.
  """
  found: list[str] = []
  problems = []
  for path in map(os.path.expanduser, paths):
    if os.path.isdir(path):
      own = [entry.path for _, entry in image_files.find(path)]
      if not own:
        problems.append(f"{path}: there is no image in it.")
      found += own
    else:
      found.append(path)
  return list(dict.fromkeys(found)), problems


def of_files(
  files: Sequence[str], model: trained.Trained, most: int
) -> Pictures:
  """Reads files; of more than `most` some that are evenly spaced.

  They are labelled by the folder they lie in, if those are several. One that
  can't be read is told of in `problems` and left out.
  """
  images, good, problems = [], [], []
  for path in (files[i] for i in evenly(len(files), most)):
    try:
      images.append(predictor.read(path, model))
      good.append(path)
    except UserError as e:
      problems.append(str(e))
  folders = tuple(
    os.path.basename(os.path.dirname(os.path.abspath(path))) for path in good
  )
  names = tuple(os.path.basename(path) for path in good)
  several = len(set(folders)) > 1
  if several:
    names = tuple(map(os.path.join, folders, names))
  return Pictures(
    np.array(images, np.uint8).reshape(-1, *model.image_size, 3),
    names,
    folders if several else None,
    "folder",
    tuple(problems),
  )


def of_data(model: trained.Trained, data_dir: str, most: int) -> Pictures:
  """Some of what the run that a model comes from is evaluated on.

  Args:
    model: with the config of its run.
    data_dir: where data sets lie; "" for where the run has them.
    most: how many images, evenly spaced over the split.

  Raises:
    UserError: the data set is not there, or a record can't be read.
  """
  assert model.config is not None
  data = model.config.data
  split = split_lib.open_split(
    data.name, data.eval_split, data_dir or data.data_dir
  )
  images, labels, names = [], [], []
  people = trained.names_for_people(split.class_names)
  for i in evenly(len(split), most):
    record = split[i]
    try:
      images.append(
        preprocess.evaluation(
          record["image"], model.image_size, model.short_side
        )
      )
    except ValueError as e:
      raise split.decode_error(record["index"], e) from e
    labels.append(people[record["label"]])
    names.append(f"{labels[-1]} ({data.eval_split} {i})")
  return Pictures(np.stack(images), tuple(names), tuple(labels), "class")


def evenly(count: int, most: int) -> list[int]:
  """At most `most` of `count` places, evenly spaced."""
  return [i * count // min(count, most) for i in range(min(count, most))]
