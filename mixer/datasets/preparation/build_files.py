"""Writes a data set's files so that what is there is whole.

Everything lands on the disk before anything else refers to it.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from mixer import files
from mixer.datasets import stored
from mixer.errors import UserError

# TFDS wants groups of one record. JPEG and PNG don't compress: left as they
# are, the same records take no more room (ratio 1.0012 against 1.0013) and are
# written 1.35 and read 1.15 times as fast as with the default (zstd:3).
WRITER = "group_size:1,uncompressed"

_GO_ON = (
  " and give the same command again: it goes on after the last images that "
  "were committed."
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CHECK_BYTES = 16
RESTART = "--restart discards the preparation and begins anew."


@contextlib.contextmanager
def explained(path: pathlib.Path) -> Iterator[None]:
  """Makes sentences of the disk's refusals.

  Raises:
    UserError: there is no room, or it can't be written.
  """
  try:
    yield
  # ArrayRecord raises RuntimeErrors, with the system's words in them.
  except (OSError, RuntimeError) as e:
    says = str(e).splitlines()[0] if str(e) else type(e).__name__
    full = (isinstance(e, OSError) and e.errno in _FULL) or any(
      os.strerror(number) in says for number in _FULL
    )
    raise UserError(
      (
        f"The disk of {path.parent} is full. Make room there"
        if full
        else f"{path} can't be written: {says}. Mend that"
      )
      + _GO_ON
    ) from e


def sync(path: pathlib.Path) -> None:
  """Waits until a file's content, or a folder's names, are on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes a small file that is there whole or not at all.

  Raises:
    UserError: the disk refuses.
  """
  with files.atomic_write(path, advice=f"Mend that{_GO_ON}") as f:
    f.write(content)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a small JSON file, whole or not at all."""
  write(path, (json.dumps(value) + "\n").encode())


def write_checked(path: pathlib.Path, value: Any) -> None:
  """As `write_json`, with a check of the value; for `read_checked`."""
  check = _check(json.dumps(value).encode()).hex()
  write_json(path, {"check": check, "value": value})


def read_checked(path: pathlib.Path) -> Any:
  """The value, as JSON gives it back.

  Raises:
    UserError: it isn't what was written, or can't be read.
  """
  try:
    found = files.read_json(path, "what a preparation keeps for itself")
  except UserError as e:
    raise UserError(f"{e} {RESTART}") from e
  value = found.get("value")
  if found.get("check") != _check(json.dumps(value).encode()).hex():
    raise UserError(f"{path} is damaged: its check is another's. {RESTART}")
  return value


def write_array(path: pathlib.Path, values: np.ndarray) -> None:
  """Writes an array for `read_array`, which knows the type."""
  content = values.tobytes()
  write(path, _check(content) + content)


def read_array(path: pathlib.Path, dtype: np.dtype) -> np.ndarray:
  """An array of one axis.

  Raises:
    UserError: it isn't what was written, or can't be read.
  """
  with explained(path):
    content = path.read_bytes()
  if content[:_CHECK_BYTES] != _check(content[_CHECK_BYTES:]):
    raise UserError(f"{path} is damaged: its check is another's. {RESTART}")
  return np.frombuffer(content, dtype, offset=_CHECK_BYTES)


def _check(content: bytes) -> bytes:
  return hashlib.blake2b(content, digest_size=_CHECK_BYTES).digest()


@dataclasses.dataclass(frozen=True)
class Shard:
  """A whole ArrayRecord file.

  Attributes:
    file: its name.
    split: "" for candidates of the held-out splits.
    images: records in it.
    bytes: of the records.
    file_bytes: its size.
    sha256: of the file; "" in journals of before there was one.
  """

  file: str
  split: str
  images: int
  bytes: int
  file_bytes: int
  sha256: str = ""


class ShardWriter:
  """One ArrayRecord file in the making."""

  def __init__(self, path: pathlib.Path):
    """Overwrites what lies there.

    Raises:
      UserError: the disk refuses; so do the other methods.
    """
    self.path = path
    self.images = 0
    self.bytes = 0
    with explained(path):
      self._writer = array_record_module.ArrayRecordWriter(str(path), WRITER)

  def write(self, record: bytes) -> None:
    with explained(self.path):
      self._writer.write(record)
    self.images += 1
    self.bytes += len(record)

  def close(self, split: str) -> Shard:
    """Returns when the file is whole and on the disk."""
    with explained(self.path):
      self._writer.close()
      sync(self.path)
      size = self.path.stat().st_size
      sha256 = stored.file_digest(self.path)  # While it is in memory still.
    return Shard(self.path.name, split, self.images, self.bytes, size, sha256)

  def abandon(self) -> None:
    """Lets go of a file that nobody will refer to."""
    with contextlib.suppress(OSError, RuntimeError):
      self._writer.close()


def _field(number: int, content: bytes) -> bytes:
  """A length-delimited field of a protocol buffer."""
  return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
  out = bytearray()
  while value > 0x7F:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  out.append(value)
  return bytes(out)


# Field 1 of an entry is the key, 2 the Feature; 1 of a Feature is a BytesList,
# 3 an Int64List; 1 of a list are its values, numbers packed.
@functools.cache
def _key(name: str) -> bytes:
  return _field(1, name.encode())


def _bytes_feature(name: str, value: bytes) -> bytes:
  return _field(1, _key(name) + _field(2, _field(1, _field(1, value))))


def _int_feature(name: str, values: Sequence[int]) -> bytes:
  packed = b"".join(map(_varint, values))
  numbers = _field(3, _field(1, packed) if values else b"")
  return _field(1, _key(name) + _field(2, numbers))


def encode(
  image: bytes, file_name: bytes, numbers: Mapping[str, Sequence[int]]
) -> bytes:
  """A serialized `tf.train.Example`, with the features sorted by name.

  What TFDS's ExampleSerializer makes, but that goes through numpy and a proto
  of which the features come in an order of chance, different in each process.

  Args:
    image: its bytes.
    file_name: its name.
    numbers: the other features, of numbers from 0 on.
  """
  features = {
    "file_name": _bytes_feature("file_name", file_name),
    "image": _bytes_feature("image", image),
  }
  for name, values in numbers.items():
    features[name] = _int_feature(name, values)
  return _field(1, b"".join(features[name] for name in sorted(features)))
