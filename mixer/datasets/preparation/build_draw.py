"""Draws the held-out images, in one pass over images of unknown number.

An image's key is the keyed hash of its bytes as found, then its name. Those
with the smallest keys are held out, so the draw depends neither on the order
of the source nor on its form, and equal images fall on the same side (all but
perhaps those at a boundary between two splits).

A count k: an image may be among the k smallest of the whole set only if it is
among the k smallest so far. Such candidates are put aside; of n images some
k (1 + ln(n / k)) ever are. What they were measured by changes only when a
chunk of images is committed, so that a resumed preparation does the same.

A fraction f: those whose hash, as a fraction of the largest, is below f.
"""

import hashlib
from collections.abc import Iterable, Mapping

from mixer.errors import UserError

DIGEST_BYTES = 16


def digest(data: bytes, seed: int) -> bytes:
  """The 128-bit keyed hash of an image's bytes."""
  key = seed.to_bytes(16, "little", signed=True)
  return hashlib.blake2b(data, digest_size=DIGEST_BYTES, key=key).digest()


def key(image_digest: bytes, name: str) -> bytes:
  """What images are ordered by."""
  return image_digest + name.encode(errors="surrogateescape")


def _bound(fraction: float) -> bytes:
  # Exact: a float times a power of two loses nothing.
  return int(fraction * 2 ** (8 * DIGEST_BYTES)).to_bytes(DIGEST_BYTES, "big")


class Candidates:
  """Tells which images may yet be held out."""

  def __init__(self, hold_out: Mapping[str, int | float]):
    """Knows of no image yet."""
    self._count = 0
    self._smallest: list[bytes] = []
    # Keys below enter; None lets all enter.
    self._bound: bytes | None = b""
    if any(isinstance(share, float) for share in hold_out.values()):
      self._bound = _bound(sum(hold_out.values()))
    elif hold_out:
      self._count = int(sum(hold_out.values()))
      self._bound = None

  def enters(self, image_key: bytes) -> bool:
    return self._bound is None or image_key < self._bound

  def may_be_chosen(self, image_key: bytes) -> bool:
    """Whether one that has entered is still among the smallest."""
    return self.enters(image_key) or image_key == self._bound

  def commit(self, keys: Iterable[bytes]) -> None:
    """Takes note of a chunk's images that entered."""
    if self._count:
      self._smallest = sorted([*self._smallest, *keys])[: self._count]
      if len(self._smallest) == self._count:
        self._bound = self._smallest[-1]


def divide(
  keys: Iterable[bytes], hold_out: Mapping[str, int | float]
) -> dict[str, list[bytes]]:
  """Hands the candidates' keys to the splits.

  Returns:
    Split -> its keys, sorted. Candidates in no list are left over.

  Raises:
    UserError: a split gets too few.
  """
  ordered = sorted(keys)
  splits = {}
  share = 0.0
  start = 0
  for split, wanted in hold_out.items():
    if isinstance(wanted, int):
      end = start + wanted
    else:
      share += wanted
      # Not a sum of rounded shares: the last bound is that of `Candidates`.
      end = sum(k < _bound(share) for k in ordered)
    splits[split] = ordered[start:end]
    start = end
    if len(splits[split]) < (wanted if isinstance(wanted, int) else 1):
      raise UserError(
        f"--hold_out asks for {wanted:,} images as {split}, and there are "
        f"{len(splits[split]):,} left to draw from; ask for fewer, with "
        "--restart."
        if isinstance(wanted, int)
        else f"--hold_out asks for {100 * wanted:g}% of the images as {split}, "
        "and chance gave it none of so few; ask for a number, as in "
        f"--hold_out={split}=10, with --restart."
      )
  return splits
