"""Reads the image and the label out of a prepared data set's records."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

# Under which a data set may have the name of an image's file.
_NAMES = ("file_name", "image/filename", "filename")
# Of the features of a `tf.train.Example` makes what `Records` hands out.
Parse = Callable[[Any], dict[str, Any]]


class Numbers(Mapping[str, Sequence[float]]):
  """The numbers of a record's features, by name."""

  def __init__(self, feature: Any):
    """Wraps the features of a `tf.train.Example`."""
    self._feature = feature

  def __getitem__(self, name: str) -> Sequence[float]:
    value = self._feature[name]
    return value.int64_list.value or value.float_list.value

  def __iter__(self) -> Iterator[str]:
    return iter(self._feature)

  def __len__(self) -> int:
    return len(self._feature)


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


class Derived:
  """Of a set whose label is made of other features; picklable."""

  def __init__(self, record: Callable[[bytes, Numbers], dict[str, Any]]):
    """Takes a function of the encoded image and the record's numbers."""
    self._record = record

  def __call__(self, feature: Any) -> dict[str, Any]:
    image = feature["image"].bytes_list.value[0]
    return self._record(image, Numbers(feature))


class Records:
  """Random access to records of encoded images and labels; picklable.

  Of a record's features two are wanted here, as they are.
  """

  def __init__(self, raw: Any, parse: Parse = plain):
    """Wraps a data source of serialized `tf.train.Example`s."""
    self._raw = raw
    self._parse = parse

  def __len__(self) -> int:
    return len(self._raw)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self.__getitems__([i])[0]

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Many records at once: cheaper than one after the other.

    Raises:
      ValueError: what is stored is no such record.
    """
    parse = _example().FromString
    found = []
    for i, record in zip(indices, self._raw.__getitems__(indices), strict=True):
      try:
        found.append(self._read(parse(record).features.feature))
      except (DecodeError, LookupError) as e:
        raise ValueError(f"record {i} is no example with an image") from e
    return found

  def _read(self, feature: Any) -> dict[str, Any]:
    found = self._parse(feature)
    for name in _NAMES:
      if name in feature and (value := feature[name].bytes_list.value):
        found["file_name"] = value[0].decode("utf-8", "surrogateescape")
        break
    return found


@functools.cache
def _example() -> Any:
  """The message `tf.train.Example`: TFDS's own takes a second to import."""
  field: Any = descriptor_pb2.FieldDescriptorProto
  file: Any = descriptor_pb2.FileDescriptorProto(
    name="example.proto", package="mixer", syntax="proto3"
  )

  def message(name: str, *fields: tuple[str, str | int, bool]) -> Any:
    made = file.message_type.add(name=name)
    for number, (own, kind, repeated) in enumerate(fields, 1):
      label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
      added = made.field.add(name=own, number=number, label=label)
      if isinstance(kind, str):
        added.type_name = f".mixer.{kind}"
        added.type = field.TYPE_MESSAGE
      else:
        added.type = kind
    return made

  message("BytesList", ("value", field.TYPE_BYTES, True))
  message("FloatList", ("value", field.TYPE_FLOAT, True))
  message("Int64List", ("value", field.TYPE_INT64, True))
  feature = message(
    "Feature",
    ("bytes_list", "BytesList", False),
    ("float_list", "FloatList", False),
    ("int64_list", "Int64List", False),
  )
  feature.oneof_decl.add(name="kind")
  for one in feature.field:
    one.oneof_index = 0
  features = message("Features", ("feature", "Features.FeatureEntry", True))
  entry = features.nested_type.add(name="FeatureEntry")
  entry.options.map_entry = True
  entry.field.add(name="key", number=1, label=1, type=field.TYPE_STRING)
  entry.field.add(
    name="value",
    number=2,
    label=1,
    type=field.TYPE_MESSAGE,
    type_name=".mixer.Feature",
  )
  message("Example", ("features", "Features", False))
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(
    pool.FindMessageTypeByName("mixer.Example")
  )
