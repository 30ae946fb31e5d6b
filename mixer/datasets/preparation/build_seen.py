"""Remembers which images were seen, to find those that come again."""

import numpy as np


class Seen:
  """A set of 64-bit hashes that grows by chunks.

  Sorted arrays, merged when the last is no longer much smaller than the one
  before: 8 bytes an image and 16 while two merge, 105 to 210 MB for 13.15
  million. That any two different images of so many share a hash has odds of
  n^2 / 2^65, five in a million.
  """

  def __init__(self):
    """Has seen nothing."""
    self._runs: list[np.ndarray] = []
    self._chunk: set[int] = set()

  def __len__(self) -> int:
    return sum(map(len, self._runs)) + len(self._chunk)

  def known(self, hashes: np.ndarray) -> np.ndarray:
    """Which of the uint64 hashes [N] were committed: bool [N]."""
    found = np.zeros(len(hashes), bool)
    for run in self._runs:
      places = np.searchsorted(run, hashes)
      found |= run[np.minimum(places, len(run) - 1)] == hashes
    return found

  def add(self, value: int) -> bool:
    """Whether it is new in this chunk; remembers it."""
    before = len(self._chunk)
    self._chunk.add(value)
    return len(self._chunk) > before

  def take_chunk(self) -> np.ndarray:
    """Ends the chunk: its hashes, sorted, which `commit` wants next."""
    chunk = np.array(sorted(self._chunk), np.uint64)
    self._chunk.clear()
    return chunk

  def commit(self, chunk: np.ndarray) -> None:
    """Adds a chunk's sorted hashes."""
    if not len(chunk):
      return
    self._runs.append(chunk)
    while len(self._runs) > 1 and (
      len(self._runs[-2]) < 2 * len(self._runs[-1])
    ):
      last = self._runs.pop()
      merged = np.concatenate([self._runs.pop(), last])
      merged.sort(kind="stable")  # Merges the two sorted runs.
      self._runs.append(merged)
