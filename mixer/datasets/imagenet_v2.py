"""The TFDS data set `imagenet_v2`: new test images for ImageNet-1k.

Recht et al. 2019 (arXiv 1902.10811). Its folders are named by the number of the
class, 0 to 999, which don't sort as numbers; the classes are ImageNet's.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from mixer.datasets import imagenet2012, wordnet
from mixer.datasets.preparation import build
from mixer.datasets.sources import (
  class_folders,
  file_names,
  folder_walk,
  mapped,
  tar_forms,
  tar_source,
)
from mixer.datasets.sources.member import Member, Source
from mixer.errors import UserError

# Config of TFDS's -> what the archive and its folder have in their names.
VARIANTS = {
  "matched-frequency": "matched-frequency",
  "threshold-0.7": "threshold0.7",
  "topimages": "top-images",
}
_URL = "https://huggingface.co/datasets/vaishaal/ImageNetV2"
EXPECTED = (
  f"Expected is imagenetv2-matched-frequency.tar.gz or another one of {_URL}, "
  "or the folder that was unpacked from it, with the folders 0 to 999"
)


def open_source(
  paths: Sequence[Path], release: str, *, accept_truncated: bool = False
) -> Source:
  """Opens one of the three variants.

  Args:
    paths: a single one, of the archive or the folder.
    release: a key of `VARIANTS`.
    accept_truncated: take what is there of a tar that breaks off.

  Raises:
    UserError: it is something else, or another variant.
  """
  classes = wordnet.classes("imagenet1k")
  if len(paths) != 1:
    raise UserError(
      f"imagenet_v2 is prepared from one archive or folder, and --source is "
      f"given {len(paths)} times. {EXPECTED}."
    )
  path = Path(paths[0])
  if path.is_dir():
    inside = folder_walk.subfolders(path)
    if len(inside) == 1 and not inside[0].name.isdecimal():
      (path,) = inside
    _check_variant(path.resolve().name, path, release)
    if any(folder.name.isdecimal() for folder in folder_walk.subfolders(path)):
      return _folders(path, classes)
  (tar,) = imagenet2012.tars([path], EXPECTED)[:1]
  first = imagenet2012.first_file(tar, EXPECTED)
  _check_variant(str(first), tar, release)
  return tar_forms.TarOfFolders(tar, _layout, classes, accept_truncated)


def _layout(path: PurePosixPath) -> tar_source.Place:
  name = "/".join(path.parts[-2:])
  wnid = _wnid(path.parent.name)
  error = "" if wnid else "lies in no folder called 0 to 999"
  return tar_source.Place(file_names.readable(name), wnid, "test", error)


def _wnid(folder: str) -> str:
  """The class of a folder by its number, "" for none."""
  classes = wordnet.classes("imagenet1k")
  if not (folder.isascii() and folder.isdecimal()):
    return ""
  return classes[int(folder)] if int(folder) < len(classes) else ""


def _folders(path: Path, classes: Sequence[str]) -> Source:
  def rename(member: Member) -> Member:
    wnid = _wnid(member.class_name)
    if not wnid:
      error = "lies in no folder called 0 to 999"
      return dataclasses.replace(member, data=b"", error=error)
    return dataclasses.replace(member, class_name=wnid, split="test")

  return mapped.Mapped(
    class_folders.ClassFolders(path, {"": path}), rename, classes
  )


def _check_variant(name: str, path: Path, release: str) -> None:
  for variant, part in VARIANTS.items():
    if part in name and variant != release:
      raise UserError(
        f"{path} is of the variant {variant}: prepare it as "
        f"imagenet_v2/{variant}."
      )


class ImagenetV2(build.ImageBuilder, skip_registration=True):
  """TFDS builder of `imagenet_v2`; TFDS's own has the name already."""

  VERSION = tfds.core.Version("3.0.0")
  BUILDER_CONFIGS = [  # noqa: RUF012  # As TFDS declares it.
    tfds.core.BuilderConfig(name=variant) for variant in VARIANTS
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    return self.image_info(
      wordnet.classes("imagenet1k"),
      description=(
        "10,000 new test images for ImageNet-1k, collected as the first ones "
        "were. The variants differ in how many people had to see the class in "
        "an image."
      ),
      homepage=_URL,
      citation=_CITATION,
    )


_CITATION = """@inproceedings{recht2019imagenet,
  title = {Do {ImageNet} Classifiers Generalize to {ImageNet}?},
  author = {Recht, Benjamin and Roelofs, Rebecca and Schmidt, Ludwig and
            Shankar, Vaishaal},
  booktitle = {International Conference on Machine Learning},
  year = {2019},
  eprint = {1902.10811},
  archiveprefix = {arXiv},
}"""
