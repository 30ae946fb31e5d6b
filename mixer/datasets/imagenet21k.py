"""The TFDS data set `imagenet21k`: all of ImageNet.

ImageNet-21k was released twice: in fall 2011 (14,197,122 images in 21,841
classes), which the published checkpoints were trained on, and in winter 2021,
without the classes of people that were found unsafe (13,153,500 images in
19,167 classes), which image-net.org hands out today.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mixer.datasets import wordnet
from mixer.datasets.preparation import build
from mixer.datasets.sources import detect, file_names
from mixer.datasets.sources.member import Source

# Drawn from all images, as in the reference (Kolesnikov et al. 2020).
HOLD_OUT = {"test": 25_600, "validation": 25_600}
# Release -> its number of classes.
RELEASES = {"winter21": 19_167, "fall11": 21_841}


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
    release: a key of `RELEASES`. Of fall11 the classes are known. Those of
      winter21 are read from the source: at once from folders or one tar a
      class, by skipping through a tar of tars, by unpacking all of a tar.gz.
    class_file: a list of WordNet ids, one a line, in place of that.
    accept_truncated: take what is there of a tar that breaks off.

  Raises:
    UserError: what is there fits no form; the list can't be read.
  """
  if class_file is not None:
    classes = file_names.read_classes(class_file)
  else:
    classes = wordnet.classes("fall11") if release == "fall11" else None
  return detect.detect(
    paths,
    "imagenet21k",
    classes=classes,
    tolerate_truncation=accept_truncated,
  )


def count_warning(release: str, class_names: Sequence[str]) -> str:
  """A sentence if the classes aren't as many as were published, else ""."""
  count, published = len(class_names), RELEASES[release]
  if count == published:
    return ""
  other = next((r for r, n in RELEASES.items() if n == count), "")
  return (
    f"the source has {count:,} classes, and the release {release} has "
    f"{published:,}"
    + (f"; {other} has as many: is it imagenet21k/{other}?" if other else "")
  )


class Imagenet21k(build.ImageBuilder):
  """TFDS builder of `imagenet21k/winter21` and `imagenet21k/fall11`."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [  # noqa: RUF012  # As TFDS declares it.
    tfds.core.BuilderConfig(
      name=release, description=f"The release {release}: {count:,} classes."
    )
    for release, count in RELEASES.items()
  ]

  def __init__(self, *, options: build.Options | None = None, **kwargs: Any):
    """As its base; `options` holds out 25,600 images twice if not given."""
    options = options or build.Options(hold_out=HOLD_OUT)
    super().__init__(options=options, **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    assert config is not None
    names = self._names(config.name)
    return self.image_info(
      names,
      description=(
        "ImageNet-21k: photographs of the nouns of WordNet, one class each, "
        "found on the web and checked by people. The labels are WordNet ids. "
        "A class may be a kind of another one, and then either may be the "
        "label. The reference holds out 25,600 images for `validation` and as "
        "many for `test`; which, was not published. They are drawn here by the "
        "hash of their bytes."
      ),
      homepage="https://www.image-net.org",
      citation=CITATION,
    )

  def _names(self, release: str) -> Sequence[str]:
    stored = file_names.stored_classes(self.data_dir)
    if stored:
      return stored
    if self.source is None:
      return wordnet.classes("fall11") if release == "fall11" else ()
    names = self.source.class_names()
    warning = count_warning(release, names)
    if warning and warning not in self.source.warnings:
      self.source.warnings.append(warning)
    return names


CITATION = """@inproceedings{deng2009imagenet,
  title = {{ImageNet}: A large-scale hierarchical image database},
  author = {Deng, Jia and Dong, Wei and Socher, Richard and Li, Li-Jia and Li,
            Kai and Fei-Fei, Li},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  pages = {248--255},
  year = {2009},
  doi = {10.1109/CVPR.2009.5206848},
}"""
