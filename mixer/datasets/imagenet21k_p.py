"""The TFDS data set `imagenet21k_p`: the processed subset of ImageNet-21k.

The classes with more than 500 images, those resized to 224 x 224 pixels where
they are larger, 50 of each class for validation: by the authors' script, or
from image-net.org as imagenet21k_resized.tar.gz.
"""

from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from mixer.datasets import wordnet
from mixer.datasets.preparation import build
from mixer.datasets.sources import detect, file_names
from mixer.datasets.sources.member import Source

# Release -> (its list of classes, images for training and validation by
# github.com/Alibaba-MIIL/ImageNet21K).
RELEASES = {
  "winter21": ("winter21_p", 11_060_223, 522_500),
  "fall11": ("fall11_p", 11_797_632, 561_052),
}


def open_source(
  paths: Sequence[Path],
  release: str = "winter21",
  *,
  class_file: Path | None = None,
  accept_truncated: bool = False,
) -> Source:
  """Opens what a user has of the set, in any of its forms.

  Args:
    paths: see `detect.detect`.
    release: a key of `RELEASES`.
    class_file: a list of WordNet ids, one a line, in place of the release's.
    accept_truncated: take what is there of a tar that breaks off.

  Raises:
    UserError: what is there fits no form; the list can't be read.
  """
  return detect.detect(
    paths,
    "imagenet21k_p",
    classes=(
      wordnet.classes(RELEASES[release][0])
      if class_file is None
      else file_names.read_classes(class_file)
    ),
    tolerate_truncation=accept_truncated,
  )


class Imagenet21kP(build.ImageBuilder):
  """TFDS builder of `imagenet21k_p/winter21` and `imagenet21k_p/fall11`."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [  # noqa: RUF012  # As TFDS declares it.
    tfds.core.BuilderConfig(
      name=release,
      description=(
        f"Made from the release {release}: {train:,} images for training and "
        f"{validation:,} for validation."
      ),
    )
    for release, (_, train, validation) in RELEASES.items()
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    assert config is not None
    names = file_names.stored_classes(self.data_dir)
    if not names and self.source is not None:
      names = self.source.class_names()
    return self.image_info(
      names or wordnet.classes(RELEASES[config.name][0]),
      description=(
        "ImageNet-21K-P: the classes of ImageNet-21k that have more than 500 "
        "images, for pretraining at less cost. Larger images are squeezed to "
        "224 x 224 pixels; of each class 50 images are for validation. The "
        "labels are WordNet ids."
      ),
      homepage="https://github.com/Alibaba-MIIL/ImageNet21K",
      citation=_CITATION,
    )


_CITATION = """@inproceedings{ridnik2021imagenet21k,
  title = {{ImageNet-21K} Pretraining for the Masses},
  author = {Ridnik, Tal and Ben-Baruch, Emanuel and Noy, Asaf and
            Zelnik-Manor, Lihi},
  booktitle = {NeurIPS Datasets and Benchmarks},
  year = {2021},
  eprint = {2104.10972},
  archiveprefix = {arXiv},
}"""
