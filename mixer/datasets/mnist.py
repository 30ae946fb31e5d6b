"""The TFDS data sets `mnist` and `fashion_mnist`, from their own files.

What TFDS makes of them, in the same version and with the same classes, but
without TensorFlow and without a network.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from mixer.datasets.preparation import build
from mixer.datasets.sources import idx_files
from mixer.errors import UserError

SIZES = {"train": 60_000, "test": 10_000}
CLASSES = {
  "mnist": tuple("0123456789"),
  "fashion_mnist": (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
  ),
}
# The first labels of `train`: the files of both sets have the same names.
_BEGIN = {
  "mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
  "fashion_mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
}


def open_source(paths: Sequence[Path], name: str) -> idx_files.IdxFiles:
  """Opens the four idx files of a set.

  Args:
    paths: the folder that holds them.
    name: a key of `CLASSES`.

  Raises:
    UserError: the folder doesn't hold them, or those of the other set.
  """
  if len(paths) != 1:
    raise UserError(
      f"{name} is prepared from one folder, and --source is given {len(paths)} "
      f"times; put the files into one. {idx_files.expected()}."
    )
  source = idx_files.IdxFiles(Path(os.path.expanduser(paths[0])), CLASSES[name])
  first = tuple(map(int, source.labels["train"][:10]))
  for other, labels in _BEGIN.items():
    if other != name and first == labels:
      raise UserError(
        f"{paths[0]} holds the files of {other}, whose names are the same; "
        f"prepare it as {other}, or name a folder with those of {name}."
      )
  for split, size in SIZES.items():
    found = len(source.labels[split])
    if found != size:
      source.warnings.append(
        f"the split {split} has {found:,} images, and {name} {size:,}"
      )
  return source


class Mnist(build.ImageBuilder, skip_registration=True):
  """TFDS builder of `mnist`; TFDS's own has the name already."""

  VERSION = tfds.core.Version("3.0.1")

  def _info(self) -> tfds.core.DatasetInfo:
    return self.image_info(
      CLASSES[self.name],
      image=_image(self.options),
      description=(
        "MNIST: 70,000 handwritten digits of 28 x 28 pixels, white on black."
      ),
      homepage="https://yann.lecun.com/exdb/mnist/",
      citation=_MNIST,
    )


class FashionMnist(build.ImageBuilder, skip_registration=True):
  """TFDS builder of `fashion_mnist`; TFDS's own has the name already."""

  VERSION = tfds.core.Version("3.0.1")

  def _info(self) -> tfds.core.DatasetInfo:
    return self.image_info(
      CLASSES[self.name],
      image=_image(self.options),
      description=(
        "Fashion-MNIST: 70,000 gray photographs of clothes, of 28 x 28 pixels, "
        "light on black, from the catalogue of Zalando."
      ),
      homepage="https://github.com/zalandoresearch/fashion-mnist",
      citation=_FASHION,
    )


def _image(options: build.Options) -> tfds.features.Image:
  """Of TFDS's size, unless other images are asked for."""
  if options.short_side:
    return tfds.features.Image(shape=(None, None, 1))
  side = idx_files.SIDE
  return tfds.features.Image(shape=(side, side, 1), encoding_format="png")


_MNIST = """@article{lecun1998gradient,
  title = {Gradient-based learning applied to document recognition},
  author = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner,
            Patrick},
  journal = {Proceedings of the IEEE},
  volume = {86},
  number = {11},
  pages = {2278--2324},
  year = {1998},
  doi = {10.1109/5.726791},
}"""
_FASHION = """@misc{xiao2017fashion,
  title = {{Fashion-MNIST}: a Novel Image Dataset for Benchmarking Machine
           Learning Algorithms},
  author = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  year = {2017},
  eprint = {1708.07747},
  archiveprefix = {arXiv},
}"""
