"""Tests of the `digits` data set."""

import io
import socket
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets
from tensorflow_datasets.core.utils import tqdm_utils

from mixer import errors
from mixer.datasets import digits


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A builder that prepared its data with neither network nor TensorFlow."""
  data_dir = tmp_path_factory.mktemp("data")
  attempts = []
  tensorflow = "tensorflow" in sys.modules
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(socket.socket, "connect", lambda *a: attempts.append(a))
    patch.setattr(socket, "getaddrinfo", lambda *a, **k: attempts.append(a))
    patch.setattr(tqdm_utils, "_active", False)
    builder: Any = digits.Digits(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
  assert not attempts
  assert ("tensorflow" in sys.modules) == tensorflow
  return builder


def _decode(encoded):
  return np.asarray(Image.open(io.BytesIO(encoded)))


def _read(builder, split):
  source = builder.as_data_source(
    split=split, decoders={"image": tfds.decode.SkipDecoding()}
  )
  images = np.stack([_decode(source[i]["image"]) for i in range(len(source))])
  labels = np.array([source[i]["label"] for i in range(len(source))])
  return images, labels


def test_load_scales_to_full_range():
  images, labels = digits.load()
  theirs: Any = datasets.load_digits()
  assert images.dtype == np.uint8
  assert (images.min(), images.max()) == (0, 255)
  np.testing.assert_array_equal(np.round(images * (16 / 255)), theirs.images)
  np.testing.assert_array_equal(labels, theirs.target)


def test_splits_are_sklearn_in_order(prepared):
  images, labels = digits.load()
  train_images, train_labels = _read(prepared, "train")
  test_images, test_labels = _read(prepared, "test")
  assert len(train_images) == digits.TRAIN_SIZE == 1400
  assert len(test_images) == digits.TEST_SIZE == 397
  np.testing.assert_array_equal(
    np.concatenate([train_images, test_images]), images
  )
  np.testing.assert_array_equal(
    np.concatenate([train_labels, test_labels]), labels
  )


def test_slices_keep_the_order(prepared):
  images, _ = digits.load()
  kept, _ = _read(prepared, "train[:98%]")
  rest, _ = _read(prepared, "train[98%:]")
  assert len(kept) == 1372
  np.testing.assert_array_equal(np.concatenate([kept, rest]), images[:1400])


def test_skipping_the_decoder_gives_png_bytes(prepared):
  source = prepared.as_data_source(
    split="test", decoders={"image": tfds.decode.SkipDecoding()}
  )
  image = Image.open(io.BytesIO(source[0]["image"]))
  assert (image.format, image.mode, image.size) == ("PNG", "L", (8, 8))


def test_metadata(prepared):
  info = prepared.info
  assert info.name == "digits"
  assert info.supervised_keys == ("image", "label")
  assert info.features["image"].shape == (8, 8, 1)
  assert info.features["label"].names == list("0123456789")
  assert info.description and info.homepage and info.citation


def test_is_known_to_tfds_by_name(prepared):
  builder = tfds.builder("digits", data_dir=prepared.data_dir_root)
  assert builder.info.splits["train"].num_examples == 1400


def test_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "sklearn", None)
  with pytest.raises(errors.UserError, match="pip install scikit-learn"):
    digits.load()
