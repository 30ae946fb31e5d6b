"""Small data sets in TFRecord files, written without TensorFlow."""

import json
import pathlib
import struct
from collections.abc import Iterable, Sequence

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from mixer.datasets import shipped
from tests.datasets import tfds_writer

CLASSES = tuple("0123456789")


def slow_crc32c(data: bytes) -> int:
  """Bit by bit, as the polynomial's definition has it."""
  register = 0xFFFFFFFF
  for byte in data:
    register ^= byte
    for _ in range(8):
      register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
  return register ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
  crc = slow_crc32c(data)
  rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
  return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def framed(record: bytes) -> bytes:
  length = struct.pack("<Q", len(record))
  return length + masked(length) + record + masked(record)


def write(path: pathlib.Path, records: Iterable[bytes]) -> None:
  path.write_bytes(b"".join(framed(record) for record in records))


def example(image: bytes, label: int) -> bytes:
  proto = tf_example_pb2.Example()
  proto.features.feature["image"].bytes_list.value.append(image)
  proto.features.feature["label"].int64_list.value.append(label)
  return proto.SerializeToString()


def records(count: int) -> list[bytes]:
  """Images of digits, and their labels."""
  images, labels = shipped.load_digits()
  return [
    example(tfds_writer.png(images[i]), int(labels[i])) for i in range(count)
  ]


def make(
  data_dir: pathlib.Path,
  name: str = "others",
  config: str = "",
  shards: Sequence[int] = (7, 5),
  test: int = 4,
) -> pathlib.Path:
  """Writes NAME[/CONFIG]/2.1.0 as TFDS would; returns that folder."""
  folder = data_dir / name / config / "2.1.0"
  folder.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(8, 8, 1)),
      "label": tfds.features.ClassLabel(names=CLASSES),
    }
  )
  features.save_config(folder)
  everything = iter(records(sum(shards) + test))
  splits = []
  for split, lengths in (("train", shards), ("test", (test,))):
    for i, n in enumerate(lengths):
      write(
        folder / f"{name}-{split}.tfrecord-{i:05d}-of-{len(lengths):05d}",
        [next(everything) for _ in range(n)],
      )
    splits.append(
      {
        "name": split,
        "shardLengths": [str(n) for n in lengths],
        "numBytes": "1000",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      }
    )
  info = {
    "name": name,
    "version": "2.1.0",
    "description": "Digits – drawn by hand.",
    "fileFormat": "tfrecord",
    "splits": splits,
  }
  if config:
    info["configName"] = config
  (folder / "dataset_info.json").write_text(json.dumps(info), "utf-8")
  return folder
