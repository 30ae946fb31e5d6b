"""Reads TFRecord files, checksums included, without TensorFlow.

A record is its length (8 bytes, little-endian), the masked CRC-32C of those
bytes (4), the data, and the data's masked CRC-32C (4).
"""

import functools
import os
import pathlib
import struct
from collections.abc import Iterator

import numpy as np

from mixer.errors import UserError

_HEADER = struct.Struct("<QI")
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed.
_LANE = 1024


def _advanced(table: np.ndarray, crc: np.uint32) -> np.uint32:
  """Applies the linear map of `table [4, 256]` to a register."""
  out = table[0][crc & 0xFF]
  for i in range(1, 4):
    out = out ^ table[i][(crc >> 8 * i) & 0xFF]
  return out


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
  """What a byte adds to the register by its place; what a lane's zeros do.

  Returns:
    uint32 `[_LANE * 256]`: entry 256 * i + b is the register after a lane
    that is zero but for byte b at i; uint32 `[4, 256]`, for `_advanced`: the
    register moved on by a lane of zeros.
  """
  last = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    last = np.where(last & 1, (last >> 1) ^ np.uint32(_POLYNOMIAL), last >> 1)
  places = np.empty((_LANE, 256), np.uint32)
  places[-1] = last
  for i in range(_LANE - 2, -1, -1):  # One more zero byte behind it.
    places[i] = last[places[i + 1] & 0xFF] ^ (places[i + 1] >> 8)
  # A register of which only byte k is set does what that byte does as the
  # k-th of the lane: the register is XORed into the first four.
  return places.ravel(), places[:4].copy()


def crc32c(data: bytes) -> int:
  """CRC-32C (Castagnoli), as RFC 3720 defines it.

  A CRC is linear, so all bytes of a lane are looked up at once, each in the
  table of its place, and lanes are joined from left to right: some 500 MB/s
  in numpy, where a loop over bytes would make 5.
  """
  places, zeros = _tables()
  head = bytes(b ^ 0xFF for b in data[:4].ljust(4, b"\0"))
  size = -len(data) % _LANE
  if len(data) < 4:  # The register's start reaches beyond the data.
    register = 0xFFFFFFFF
    for byte in data:
      register = int(places[-256 + ((register ^ byte) & 0xFF)]) ^ register >> 8
    return register ^ 0xFFFFFFFF
  # Zeros in front change nothing: the register's start, all ones, is in the
  # first four bytes already.
  lanes = np.frombuffer(bytes(size) + head + data[4:], np.uint8)
  lanes = lanes.reshape(-1, _LANE) + np.arange(0, _LANE * 256, 256)
  register = np.uint32(0)
  for lane in np.bitwise_xor.reduce(places.take(lanes), axis=1):
    register = _advanced(zeros, register) ^ lane
  return int(register) ^ 0xFFFFFFFF


def masked(crc: int) -> int:
  """A CRC as TFRecord stores it."""
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read(path: str | os.PathLike[str]) -> Iterator[bytes]:
  """The records of a file, in their order.

  Raises:
    UserError: the file ends within a record, or a checksum is wrong.
  """
  path = pathlib.Path(path)
  with path.open("rb", buffering=2**20) as f:
    left = os.fstat(f.fileno()).st_size
    number = 0
    while left:
      header = f.read(_HEADER.size)
      if len(header) < _HEADER.size:
        raise _damaged(path, number, "the file ends within it")
      length, crc = _HEADER.unpack(header)
      if masked(crc32c(header[:8])) != crc:
        raise _damaged(path, number, "its length has a wrong checksum")
      left -= _HEADER.size + length + 4
      # Asked before reading: no memory for a length that can't be.
      if left < 0:
        raise _damaged(path, number, "the file ends within it")
      data = f.read(length)
      if masked(crc32c(data)) != int.from_bytes(f.read(4), "little"):
        raise _damaged(path, number, "its data has a wrong checksum")
      yield data
      number += 1


def _damaged(path: pathlib.Path, number: int, what: str) -> UserError:
  return UserError(
    f"{path} is damaged at record {number} (counted from 0): {what}. Fetch or "
    "prepare that file anew."
  )
