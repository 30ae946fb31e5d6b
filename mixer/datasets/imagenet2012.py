"""The TFDS data set `imagenet2012`, from its tars: ImageNet-1k.

What TFDS makes of them, in the same version and with the same labels, but
without TensorFlow, and with every image's bytes as they are: TFDS turns 22 CMYK
images into RGB, and the one PNG into a JPEG, which decoding does here.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from mixer import image_files
from mixer.datasets import wordnet
from mixer.datasets.preparation import build
from mixer.datasets.sources import (
  byte_stream,
  file_names,
  folder_walk,
  layouts,
  synset_folders,
  tar_forms,
  tar_source,
  tar_stream,
)
from mixer.datasets.sources.member import Source
from mixer.errors import UserError

EXPECTED = (
  "Expected is a folder with ILSVRC2012_img_train.tar and "
  "ILSVRC2012_img_val.tar, or these, or one of them; or a folder with train "
  "and val, which have one folder a class (n01440764/*.JPEG, ...)"
)
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# Of the installed TFDS: WordNet ids, one a line, by the images' numbers.
_LABELS = "datasets/imagenet2012/validation_labels.txt"


def open_source(
  paths: Sequence[Path], *, accept_truncated: bool = False
) -> Source:
  """Opens what a user has of the set.

  Args:
    paths: of the tars, or of a folder that holds them or what was unpacked.
    accept_truncated: take what is there of a tar that breaks off.

  Raises:
    UserError: what is there is something else.
  """
  classes = wordnet.classes("imagenet1k")
  if len(paths) == 1 and paths[0].is_dir():
    splits = layouts.imagenet_splits(folder_walk.subfolders(paths[0]))
    if "train" in splits:
      # Images without a split are `train`, and are shuffled.
      named = {"" if s == "train" else s: path for s, path in splits.items()}
      return synset_folders.SynsetFolders(named, classes)
  parts: dict[str, tar_source.TarSource] = {}
  for path in tars(paths, EXPECTED):
    form = _form(path)
    if form in parts:
      raise UserError(
        f"{path} and {parts[form].paths[0]} both hold the {form} images; name "
        "one of them."
      )
    parts[form] = (
      validation(path, classes, accept_truncated)
      if form == "validation"
      else tar_forms.TarOfTars(path, classes, accept_truncated)
    )
  # In this order whatever order they were named in.
  ordered = [parts[form] for form in ("train", "validation") if form in parts]
  source = tar_forms.InTurn(ordered, classes, accept_truncated)
  for form in {"train", "validation"} - set(parts):
    source.warnings.append(f"there is no tar of the {form} images")
  return source


def validation(
  path: Path, classes: Sequence[str], accept_truncated: bool = False
) -> tar_source.TarSource:
  """The tar of the validation images, which has neither folders nor labels."""
  labels = validation_labels()

  def layout(inner: PurePosixPath) -> tar_source.Place:
    number = image_number(inner.name)
    if not 1 <= number <= len(labels):
      error = "its name is none of ILSVRC2012_val_00000001.JPEG to _00050000"
      return tar_source.Place(inner.name, "", "", error)
    return tar_source.Place(inner.name, labels[number - 1], "validation")

  return tar_forms.TarOfFolders(
    path, layout, classes, accept_truncated, "a tar of images"
  )


def image_number(name: str) -> int:
  """Of "ILSVRC2012_val_00000042.JPEG", 42; 0 for other names."""
  match = _VALIDATION.fullmatch(name)
  return int(match[1]) if match else 0


def validation_labels() -> tuple[str, ...]:
  """The WordNet id of each validation image, by number.

  Raises:
    UserError: the installed TFDS has no such list.
  """
  path = tfds.core.tfds_path(_LABELS)
  try:
    labels = tuple(path.read_text().split())
  except OSError as e:
    raise UserError(
      "The labels of ImageNet's validation images are read from the package "
      f"tensorflow-datasets, and the installed one ({tfds.__version__}) has no "
      f"{_LABELS}. Install another: pip install tensorflow-datasets==4.9.10."
    ) from e
  return labels


def tars(paths: Sequence[Path], expected: str) -> list[Path]:
  """The files that are named, or lie in the folder that is.

  Args:
    paths: files, or folders with the archives among them.
    expected: for the sentence.

  Raises:
    UserError: one isn't there; a folder has none.
  """
  found = []
  for path in map(Path, paths):
    if not path.exists():
      raise UserError(f"the source {path} does not exist. {expected}.")
    if not path.is_dir():
      found.append(path)
      continue
    inside = [
      f
      for f in folder_walk.files(path)
      if f.name.lower().endswith((".tar", ".tar.gz", ".tgz"))
      # What others ILSVRC's downloads are kept with.
      and not re.search(r"_(test|train_t3|bbox)", f.name)
    ]
    if not inside:
      raise UserError(
        f"{path} holds no tar, but {folder_walk.content(path)}. {expected}."
      )
    found += inside
  return found


def _form(path: Path) -> str:
  """Which images a tar holds, by the first file in it."""
  name = first_file(path, EXPECTED)
  if file_names.wnid_of_tar(name.name):
    return "train"
  if image_number(name.name):
    return "validation"
  raise UserError(
    f"{path} begins with {name}, as neither the training nor the validation "
    f"images do. {EXPECTED}."
  )


def first_file(path: Path, expected: str) -> PurePosixPath:
  """The first file of a tar, compressed or not.

  Args:
    path: the tar.
    expected: for the sentence.

  Raises:
    UserError: it can't be read, or has none.
  """
  try:
    with byte_stream.Stream(path) as stream:
      for entry in tar_stream.entries(stream):
        inner = PurePosixPath(entry.name)
        if not image_files.is_hidden(inner.name):
          return inner
  except OSError as e:
    raise UserError(f"{path} can't be read: {e.strerror}.") from e
  except (byte_stream.BrokenError, tar_stream.DamagedError) as e:
    raise UserError(
      f"the source {path} is no tar, or a damaged one: {e}. {expected}."
    ) from e
  raise UserError(f"the tar {path} holds no file. {expected}.")


class Imagenet2012(build.ImageBuilder, skip_registration=True):
  """TFDS builder of `imagenet2012`; TFDS's own has the name already."""

  VERSION = tfds.core.Version("5.1.0")

  def __init__(self, *, options: build.Options | None = None, **kwargs: Any):
    """As its base; `options` shuffles if not given."""
    options = options or build.Options(shuffle=True)
    super().__init__(options=options, **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.image_info(
      wordnet.classes("imagenet1k"),
      description=(
        "ImageNet-1k, of the challenge of 2012: 1,281,167 images to train on "
        "and 50,000 for validation, in 1,000 classes. The labels are WordNet "
        "ids."
      ),
      homepage="https://www.image-net.org/challenges/LSVRC/2012/",
      citation=CITATION,
    )


CITATION = """@article{russakovsky2015imagenet,
  title = {{ImageNet} Large Scale Visual Recognition Challenge},
  author = {Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and
            Satheesh, Sanjeev and Ma, Sean and Huang, Zhiheng and Karpathy,
            Andrej and Khosla, Aditya and Bernstein, Michael and Berg, Alexander
            C. and Fei-Fei, Li},
  journal = {International Journal of Computer Vision},
  volume = {115},
  number = {3},
  pages = {211--252},
  year = {2015},
  doi = {10.1007/s11263-015-0816-y},
}"""
