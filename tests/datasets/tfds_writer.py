"""Writes small sets with the features of TFDS's own builders."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.core import example_serializer, naming, splits


def png(pixels: np.ndarray) -> bytes:
  """uint8 [H, W] or [H, W, 3]."""
  encoded = io.BytesIO()
  Image.fromarray(pixels).save(encoded, "PNG")
  return encoded.getvalue()


def write(
  root: pathlib.Path,
  name: str,
  examples: Sequence[Mapping[str, Any]],
  sizes: Mapping[str, Sequence[int]],
) -> pathlib.Path:
  """Prepares a set as TFDS does, of examples that come again and again.

  Args:
    root: where data sets are.
    name: that TFDS has a builder of, with its config; nothing is downloaded.
    examples: what the builder would hand out, with images as bytes.
    sizes: split -> examples of each shard; each split begins with the first.

  Returns:
    The folder of the set.
  """
  builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
  features = builder.info.features
  serializer = example_serializer.ExampleSerializer(
    features.get_serialized_info()
  )
  records = []
  for example in examples:
    opened = {
      k: io.BytesIO(v) if isinstance(v, bytes) else v
      for k, v in example.items()
    }
    encoded = features.encode_example(opened)
    records.append(serializer.serialize_example(encoded))
  folder = pathlib.Path(builder.data_dir)
  folder.mkdir(parents=True)
  infos = []
  for split, shards in sizes.items():
    template = naming.ShardedFileTemplate(
      data_dir=builder.data_path,
      dataset_name=builder.name,
      filetype_suffix="array_record",
      split=split,
    )
    done = 0
    for number, size in enumerate(shards):
      path = template.sharded_filepath(
        shard_index=number, num_shards=len(shards)
      )
      writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
      for i in range(done, done + size):
        writer.write(records[i % len(records)])
      writer.close()
      done += size
    infos.append(
      splits.SplitInfo(
        name=split,
        shard_lengths=list(shards),
        num_bytes=done,
        filename_template=template,
      )
    )
  builder.info.set_splits(splits.SplitDict(infos))
  builder.info.write_to_directory(builder.data_path)
  return folder
