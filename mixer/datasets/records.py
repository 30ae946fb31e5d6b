"""Reads the image and the label out of a prepared data set's records."""

from collections.abc import Sequence
from typing import Any

from tensorflow_datasets.proto import tf_example_pb2


class Records:
  """Random access to records of encoded images and labels; picklable.

  TFDS parses every feature of a record into numpy, which takes as long as
  decoding a small image. Two of them are wanted here, as they are.
  """

  def __init__(self, raw: Any):
    """Wraps a TFDS data source of serialized `tf.train.Example`s."""
    self._raw = raw

  def __len__(self) -> int:
    return len(self._raw)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return _parse(self._raw[i])

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Many records at once: cheaper than one after the other."""
    return [_parse(record) for record in self._raw.__getitems__(indices)]


def _parse(record: bytes) -> dict[str, Any]:
  # Generated code, which type checkers can't see into.
  example = tf_example_pb2.Example  # pyright: ignore
  feature = example.FromString(record).features.feature
  return {
    "image": feature["image"].bytes_list.value[0],
    "label": feature["label"].int64_list.value[0],
  }
