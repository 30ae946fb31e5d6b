"""The TFDS data set `imagenet2012_real`: ImageNet's validation, labelled anew.

Beyer et al. 2020 (arXiv 2006.07159) asked people which of the 1,000 classes an
image shows: one, several, or none, and then the image doesn't count.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mixer.datasets import imagenet2012, tfds_info, wordnet
from mixer.datasets.preparation import build
from mixer.datasets.sources import file_names, folder_walk, mapped
from mixer.datasets.sources.member import Member
from mixer.errors import UserError

_URL = "https://github.com/google-research/reassessed-imagenet"
EXPECTED = (
  "Expected are ILSVRC2012_img_val.tar and real.json (from "
  f"{_URL}), or a folder with both"
)


def open_source(
  paths: Sequence[Path], *, accept_truncated: bool = False
) -> mapped.Mapped:
  """Opens the tar of images and the file of labels.

  Args:
    paths: both, or a folder with both.
    accept_truncated: take what is there of a tar that breaks off.

  Raises:
    UserError: one is missing or something else.
  """
  classes = wordnet.classes("imagenet1k")
  listed, others = [], []
  for path in map(Path, paths):
    found = [
      file
      for file in (folder_walk.files(path) if path.is_dir() else [path])
      if file.name.lower().endswith(".json")
    ]
    listed += found
    if path.is_dir() or not found:
      others.append(path)
  if len(listed) != 1:
    what = f"{len(listed)} files" if listed else "no file"
    raise UserError(
      f"--source names {what} of labels, a .json. {EXPECTED}; name both, each "
      "by a --source of its own."
    )
  images = [
    tar
    for tar in imagenet2012.tars(others, EXPECTED)
    if imagenet2012.image_number(imagenet2012.first_file(tar, EXPECTED).name)
  ]
  if len(images) != 1:
    raise UserError(
      f"--source names {len(images) or 'no'} tar with images called "
      f"ILSVRC2012_val_00000001.JPEG and so on. {EXPECTED}."
    )
  labels = _read(listed[0], len(classes))

  def add(member: Member) -> Member:
    number = imagenet2012.image_number(member.name)
    right = labels[number - 1] if number else ()
    return dataclasses.replace(member, more=(("real_label", right),))

  source = imagenet2012.validation(images[0], classes, accept_truncated)
  stamp = file_names.fingerprint(listed)
  return mapped.Mapped(source, add, classes, stamp)


def _read(path: Path, num_classes: int) -> list[tuple[int, ...]]:
  """The right classes of each image, by number.

  Raises:
    UserError: the file can't be read, or isn't that of the images.
  """
  try:
    value: Any = json.loads(path.read_text("utf-8-sig"))
  except (OSError, ValueError, RecursionError) as e:
    raise UserError(
      f"{path} can't be read as JSON: {e}. Get real.json again from {_URL}."
    ) from e
  wanted = len(imagenet2012.validation_labels())
  if not isinstance(value, list) or len(value) != wanted:
    what = f"{len(value):,} entries" if isinstance(value, list) else "no list"
    raise UserError(
      f"{path} holds {what}, and a list of {wanted:,} is expected, one for "
      f"each validation image of ImageNet. Get real.json from {_URL}."
    )
  for i, right in enumerate(value):
    if not isinstance(right, list) or not all(
      type(label) is int and 0 <= label < num_classes for label in right
    ):
      raise UserError(
        f"entry {i} of {path} is {str(right)[:60]}, and a list of classes from "
        f"0 to {num_classes - 1} is expected. Get real.json from {_URL}."
      )
  return [tuple(right) for right in value]


class Imagenet2012Real(build.ImageBuilder, skip_registration=True):
  """TFDS builder of `imagenet2012_real`; TFDS's own has the name already."""

  VERSION = tfds.core.Version("1.0.0")
  LABEL_FEATURE = "original_label"

  def _info(self) -> tfds.core.DatasetInfo:
    names = list(wordnet.classes("imagenet1k"))
    return tfds_info.LocalInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "original_label": tfds.features.ClassLabel(names=names),
          "real_label": tfds.features.Sequence(
            tfds.features.ClassLabel(names=names)
          ),
          "file_name": tfds.features.Text(),
        }
      ),
      supervised_keys=("image", "real_label"),
      description=(
        "The 50,000 validation images of ImageNet-1k, with the classes that "
        "people see in them: one, several, or none."
      ),
      homepage=_URL,
      citation=_CITATION,
    )


_CITATION = """@misc{beyer2020imagenet,
  title = {Are we done with {ImageNet}?},
  author = {Beyer, Lucas and H{\\'e}naff, Olivier J. and Kolesnikov, Alexander
            and Zhai, Xiaohua and van den Oord, A{\\"a}ron},
  year = {2020},
  eprint = {2006.07159},
  archiveprefix = {arXiv},
}"""
