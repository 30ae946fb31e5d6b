"""Reads the image and the label out of a prepared data set's records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tensorflow_datasets.proto import tf_example_pb2

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

  TFDS parses every feature of a record into numpy, which takes as long as
  decoding a small image. Two of them are wanted here, as they are.
  """

  def __init__(self, raw: Any, parse: Parse = plain):
    """Wraps a TFDS data source of serialized `tf.train.Example`s."""
    self._raw = raw
    self._parse = parse

  def __len__(self) -> int:
    return len(self._raw)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self._read(self._raw[i])

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Many records at once: cheaper than one after the other."""
    records = self._raw.__getitems__(indices)
    return [self._read(record) for record in records]

  def _read(self, record: bytes) -> dict[str, Any]:
    # Generated code, which type checkers can't see into.
    example = tf_example_pb2.Example  # pyright: ignore
    feature = example.FromString(record).features.feature
    found = self._parse(feature)
    for name in _NAMES:
      if name in feature and (value := feature[name].bytes_list.value):
        found["file_name"] = value[0].decode("utf-8", "surrogateescape")
        break
    return found
