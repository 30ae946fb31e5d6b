"""Reads the image and the label out of a prepared data set's records."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

# Under which a data set may have the name of an image's file.
_NAMES = ("file_name", "image/filename", "filename")


def plain(feature: Any) -> dict[str, Any]:
  """Of a set with `image` and `label`."""
  return {
    "image": feature["image"].bytes_list.value[0],
    "label": feature["label"].int64_list.value[0],
  }


def real(feature: Any) -> dict[str, Any]:
  """Of ImageNet with the ReaL labels: `valid_labels` beside ImageNet's own."""
  return {
    "image": feature["image"].bytes_list.value[0],
    "label": feature["original_label"].int64_list.value[0],
    "valid_labels": frozenset(feature["real_label"].int64_list.value),
  }


class Records:
  """Random access to records of encoded images and labels."""

  def __init__(self, raw: Any, parse: Callable[[Any], dict[str, Any]] = plain):
    """Wraps a data source of serialized `tf.train.Example`s.

    Args:
      raw: such as `ArrayRecordDataSource`.
      parse: the features of an example -> a record.
    """
    self._raw = raw
    self._parse = parse

  def __len__(self) -> int:
    return len(self._raw)

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Many records at once: cheaper than one after the other.

    Raises:
      ValueError: what is stored is no such record.
    """
    parse = example_class().FromString
    found = []
    for i, data in zip(indices, self._raw.__getitems__(indices), strict=True):
      try:
        feature = parse(data).features.feature
        record = self._parse(feature)
      except (DecodeError, LookupError) as e:
        raise ValueError(f"record {i} is no example with an image") from e
      for name in _NAMES:
        if name in feature and (value := feature[name].bytes_list.value):
          record["file_name"] = value[0].decode("utf-8", "surrogateescape")
          break
      found.append(record)
    return found


def encode(features: Mapping[str, bytes | Sequence[int]]) -> bytes:
  """A serialized `tf.train.Example`, with the features sorted by name.

  Those that TFDS writes come in an order of chance, different in each process.
  """
  example = example_class()()
  for name, value in features.items():
    feature = example.features.feature[name]
    if isinstance(value, bytes):
      feature.bytes_list.value.append(value)
    else:
      feature.int64_list.value.extend(value)
  return example.SerializeToString(deterministic=True)


@functools.cache
def example_class() -> Any:
  """The message `tf.train.Example`: TFDS's own takes a second to import."""
  field: Any = descriptor_pb2.FieldDescriptorProto

  def message(name: str, *fields: tuple[str, int | str], **more: Any) -> Any:
    described = []
    for number, (own, kind) in enumerate(fields, 1):
      spec = {"name": own, "number": number, "label": 1, "type": kind}
      if isinstance(kind, str):
        spec |= {"type": field.TYPE_MESSAGE, "type_name": f".mixer.{kind}"}
      described.append(spec | more)
    return {"name": name, "field": described}

  entry = message(
    "FeatureEntry", ("key", field.TYPE_STRING), ("value", "Feature")
  )
  entry["options"] = {"map_entry": True}
  one_of = ("bytes_list", "BytesList"), ("float_list", "FloatList")
  one_of += (("int64_list", "Int64List"),)
  many = {"label": field.LABEL_REPEATED}
  file: Any = descriptor_pb2.FileDescriptorProto(
    name="example.proto",
    package="mixer",
    syntax="proto3",
    message_type=[
      message("BytesList", ("value", field.TYPE_BYTES), **many),
      message("FloatList", ("value", field.TYPE_FLOAT), **many),
      message("Int64List", ("value", field.TYPE_INT64), **many),
      message("Feature", *one_of, oneof_index=0)
      | {"oneof_decl": [{"name": "kind"}]},
      message("Features", ("feature", "Features.FeatureEntry"), **many)
      | {"nested_type": [entry]},
      message("Example", ("features", "Features")),
    ],
  )
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(
    pool.FindMessageTypeByName("mixer.Example")
  )
