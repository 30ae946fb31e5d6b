"""The TFDS data set `digits`: scikit-learn's handwritten digits, 8 x 8 pixels.

1,797 images that come with the library, so nothing is downloaded: the small
real task on which the demonstration and the tests fine-tune and evaluate.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mixer import errors
from mixer.datasets import tfds_info

TRAIN_SIZE = 1400
TEST_SIZE = 397


def load() -> tuple[np.ndarray, np.ndarray]:
  """Returns the images and labels in the order of scikit-learn.

  Returns:
    [1797, 8, 8] uint8 images, white ink on black, 0..16 scaled to 0..255;
    [1797] int64 labels.

  Raises:
    UserError: scikit-learn is not installed.
  """
  try:
    from sklearn import datasets
  except ImportError as e:
    raise errors.UserError(
      "The data set `digits` comes from scikit-learn, which is not installed. "
      "Run `pip install scikit-learn`."
    ) from e
  pixels, labels = datasets.load_digits(return_X_y=True)
  images = np.round(pixels * (255 / 16)).astype(np.uint8)
  return images.reshape(-1, 8, 8), labels


class Digits(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of `digits`; prepares as ArrayRecord without TensorFlow."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds_info.LocalInfo(
      builder=self,
      description=(
        "1,797 handwritten digits of 8 x 8 pixels by 13 writers: the test "
        "part of the UCI Optical Recognition of Handwritten Digits, as "
        "scikit-learn ships it, scaled to 0..255. The last 397 images in "
        "scikit-learn's order, where each writer's digits lie together, are "
        "the test split: most of it is by writers that `train` lacks."
      ),
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(names=list("0123456789")),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://doi.org/10.24432/C50P49",
      citation=_CITATION,
      # Kept in the writers' order, so that `train[:1200]` and `train[1200:]`
      # divide the writers too.
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    del dl_manager  # Nothing is downloaded.
    images, labels = load()
    return {
      "train": self._generate_examples(
        images[:TRAIN_SIZE], labels[:TRAIN_SIZE]
      ),
      "test": self._generate_examples(images[TRAIN_SIZE:], labels[TRAIN_SIZE:]),
    }

  def _generate_examples(
    self, images: np.ndarray, labels: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      # An open file, not an array: TFDS stores its bytes as they are, and
      # needs no TensorFlow to encode them.
      encoded = io.BytesIO()
      Image.fromarray(image).save(encoded, "PNG")
      encoded.seek(0)
      yield i, {"image": encoded, "label": int(label)}


_CITATION = """@misc{alpaydin1998optical,
  title = {Optical Recognition of Handwritten Digits},
  author = {Alpaydin, E. and Kaynak, C.},
  year = {1998},
  publisher = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}"""
