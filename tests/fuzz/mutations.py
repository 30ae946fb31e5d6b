"""Damages valid files as disks, networks and attackers do."""

from collections.abc import Sequence

import numpy as np

_BIG_FILE = 1 << 22
# What length fields and counts are set to: nothing, too much, signs.
_NUMBERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF)
_LARGE = (0x10000, 10**6, 10**8, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def mutated(
  seed: bytes, rng: np.random.Generator, others: Sequence[bytes] = ()
) -> bytes:
  """A file with one to four kinds of damage.

  Args:
    seed: the bytes of a valid file.
    rng: where all the randomness comes from.
    others: valid files of which parts may be spliced in.

  Returns:
    Bytes that mostly, not always, differ from `seed`; at most 4 MiB more.
  """
  data = bytearray(seed)
  for _ in range(int(rng.choice((1, 1, 1, 2, 3, 4)))):
    kind = _KINDS[rng.integers(len(_KINDS))]
    data = kind(data, rng, others)
    del data[len(seed) + _BIG_FILE :]
  return bytes(data)


def _place(data: bytearray, rng: np.random.Generator) -> int:
  """An offset: half of them within the first 256 bytes, where headers are."""
  size = len(data) if rng.random() < 0.5 else min(len(data), 256)
  return int(rng.integers(size + 1))


def _span(data: bytearray, rng: np.random.Generator) -> slice:
  start = _place(data, rng)
  return slice(start, start + int(2 ** rng.uniform(0, 12)))


def _flip(data, rng, others):
  for _ in range(int(2 ** rng.uniform(0, 6))):
    if place := _place(data, rng):
      data[place - 1] ^= 1 << rng.integers(8)
  return data


def _truncate(data, rng, others):
  return data[: _place(data, rng)]


def _number(data, rng, others):
  """Sets a field of 1, 2, 4 or 8 bytes, of either order."""
  size = int(rng.choice((1, 2, 4, 8)))
  value = int(rng.choice(np.array(_NUMBERS + _LARGE, np.uint64)))
  place = _place(data, rng)
  order = "big" if rng.random() < 0.5 else "little"
  field = (value % 256**size).to_bytes(size, order)
  data[place : place + size] = field
  return data


def _digits(data, rng, others):
  """Changes a number that is written in text."""
  at = [i for i, byte in enumerate(data[:65536]) if 48 <= byte <= 57]
  if not at:
    return _number(data, rng, others)
  place = at[rng.integers(len(at))]
  text = (b"9", b"0", b"-1", b"1e999", b"99999999999", b"NaN", b"")
  data[place : place + 1] = text[rng.integers(len(text))]
  return data


def _fill(data, rng, others):
  span = _span(data, rng)
  size = len(data[span])
  kind = rng.integers(3)
  data[span] = (bytes(size), b"\xff" * size, rng.bytes(size))[kind]
  return data


def _delete(data, rng, others):
  del data[_span(data, rng)]
  return data


def _duplicate(data, rng, others):
  part = bytes(data[_span(data, rng)])
  place = _place(data, rng)
  data[place:place] = part * int(2 ** rng.uniform(0, 4))
  return data


def _swap(data, rng, others):
  part = _span(data, rng)
  moved = bytes(data[part])
  del data[part]
  place = _place(data, rng)
  data[place:place] = moved
  return data


def _splice(data, rng, others):
  """Goes on with, or puts in, a part of another file."""
  if not others:
    return _duplicate(data, rng, others)
  other = bytearray(others[rng.integers(len(others))])
  if rng.random() < 0.5:
    place = _place(data, rng)
    return data[:place] + other[place:]
  data[_span(data, rng)] = other[_span(other, rng)]
  return data


_KINDS = (
  _flip,
  _flip,
  _truncate,
  _number,
  _number,
  _digits,
  _fill,
  _delete,
  _duplicate,
  _swap,
  _splice,
)
