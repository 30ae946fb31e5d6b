"""Records, and files that are whole or not there."""

import errno
import hashlib
import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from hypothesis import example, given
from hypothesis import strategies as st
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_pb2

from mixer.datasets.preparation import build_files
from mixer.errors import UserError

FEATURES = tfds.features.FeaturesDict(
  {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(num_classes=30_000),
    "file_name": tfds.features.Text(),
  }
)
SERIALIZER = example_serializer.ExampleSerializer(
  FEATURES.get_serialized_info()
)


@given(st.binary(max_size=300), st.integers(0, 30_000), st.text(max_size=140))
@example(b"x" * 127, 127, "")
@example(b"x" * 128, 128, "a")
@example(b"x" * 20_000, 16_384, "é" * 100)
@example(b"x" * 3_000_000, 0, "n01440764/n01440764_10026.JPEG")
def test_records_are_those_of_tfds(image, label, name):
  reference = SERIALIZER.get_tf_example(
    {"image": image, "label": label, "file_name": name}
  )
  made = build_files.encode(image, name.encode(), {"label": (label,)})
  # Deterministic: its features sorted by name, else they come as they like.
  assert made == reference.SerializeToString(deterministic=True)
  assert tf_example_pb2.Example.FromString(made) == reference


REAL = tfds.features.FeaturesDict(
  {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "original_label": tfds.features.ClassLabel(num_classes=1000),
    "real_label": tfds.features.Sequence(
      tfds.features.ClassLabel(num_classes=1000)
    ),
    "file_name": tfds.features.Text(),
  }
)


@given(st.integers(0, 999), st.lists(st.integers(0, 999), max_size=70))
@example(3, [])
def test_records_of_several_numbers_are_those_of_tfds(first, labels):
  numbers = {"real_label": labels, "original_label": [first]}
  made = build_files.encode(b"x", b"a.jpg", numbers)
  serializer = example_serializer.ExampleSerializer(REAL.get_serialized_info())
  reference = serializer.get_tf_example(
    {
      "image": b"x",
      "file_name": "a.jpg",
      "original_label": first,
      "real_label": np.array(labels, np.int64),
    }
  )
  assert made == reference.SerializeToString(deterministic=True)


def test_a_shard(tmp_path):
  path = tmp_path / "a"
  writer = build_files.ShardWriter(path)
  for i in range(3):
    writer.write(b"x" * i)
  shard = writer.close("test")
  assert shard == build_files.Shard(
    "a",
    "test",
    *(3, 3, path.stat().st_size),
    hashlib.sha256(path.read_bytes()).hexdigest(),
  )
  reader = array_record_module.ArrayRecordReader(str(path))
  assert reader.read_all() == [b"", b"x", b"xx"]
  assert "group_size:1," in reader.writer_options_string()
  reader.close()


def test_a_full_disk_is_a_sentence():
  full = pathlib.Path("/dev/full")
  if not full.is_char_device():
    pytest.skip("no /dev/full here")
  writer = build_files.ShardWriter(full)
  with pytest.raises(UserError, match="The disk of /dev is full. Make room"):
    for _ in range(1000):
      writer.write(os.urandom(200_000))
  writer.abandon()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room(tmp_path, number):
  with pytest.raises(UserError, match=f"The disk of {tmp_path} is full"):
    with build_files.explained(tmp_path / "x"):
      raise OSError(number, os.strerror(number))


def test_other_refusals_say_what_the_system_says(tmp_path):
  path = tmp_path / "nosuch" / "x"
  for write in (
    lambda: build_files.write(path, b""),
    # Opened in the background: it fails at the end.
    lambda: build_files.ShardWriter(path).close(""),
  ):
    with pytest.raises(UserError) as caught:
      write()
    assert "o such file or directory" in str(caught.value) or (
      "there is no folder" in str(caught.value)
    )
    assert "give the same command again" in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_small_file_is_replaced_whole(tmp_path, monkeypatch):
  path = tmp_path / "x"
  build_files.write(path, b"old")

  def killed(handle):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
      build_files.write(path, b"new")
  assert path.read_bytes() == b"old"
  build_files.write(path, b"new")
  assert path.read_bytes() == b"new"
  assert [p.name for p in tmp_path.iterdir()] == ["x"]
