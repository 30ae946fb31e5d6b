"""Draws the held-out images of a source that knows how many each class has.

Exact and by class, in one pass and without a second copy: of each class's
images, in the source's order, the first goes to `train`, the next to the
held-out splits until they have their share, and the rest to `train`. So a class
with a training image has one whatever files turn out bad, and one of two
different images or more has a held-out one. An image that came before goes
where it went then. A source's order has to be one of chance (`ClassFolders`').
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mixer.datasets.preparation import build_journal
from mixer.datasets.sources import file_names
from mixer.datasets.sources.member import Source
from mixer.errors import UserError

# A chunk's images, in their order: hash of the bytes; label and split.
ROW = np.dtype([("hash", np.uint64), ("value", np.uint32)])


def sizes(source: Source) -> Mapping[str, int] | None:
  """Class -> files with no split, of a source that knows; None of others."""
  return getattr(source, "class_sizes", None)


def shares(
  sizes: Mapping[str, int], hold_out: Mapping[str, int | float]
) -> dict[str, dict[str, int]]:
  """How many images of each class each held-out split gets.

  A fraction is met class by class, by one image at least; a count exactly, by
  shares in proportion. Each class keeps an image for `train`.

  Args:
    sizes: class -> files.
    hold_out: see `Options`.

  Returns:
    Split -> class -> images.

  Raises:
    UserError: a count is more than the classes can spare.
  """
  spare = {name: max(0, size - 1) for name, size in sizes.items()}
  if hold_out and not any(sizes.values()):
    raise UserError(
      f"--hold_out asks for {', '.join(hold_out)}, and the source names the "
      "split of every image; leave it out."
    )
  drawn = {}
  for split, wanted in hold_out.items():
    total = sum(spare.values())
    if isinstance(wanted, int) and wanted > total:
      raise UserError(
        f"--hold_out asks for {wanted:,} images as {split}, and {total:,} can "
        "be spared: each class keeps one for train. Ask for fewer, as in "
        f"--hold_out={split}={max(1, total // 2)}."
      )
    if isinstance(wanted, int):
      drawn[split] = _in_proportion(spare, wanted)
    else:
      drawn[split] = {
        name: min(left, max(1, round(wanted * sizes[name])))
        for name, left in spare.items()
      }
    spare = {name: left - drawn[split][name] for name, left in spare.items()}
  return drawn


def _in_proportion(sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
  """`wanted` divided by largest remainders; none gets more than its size."""
  total = max(1, sum(sizes.values()))
  parts = {name: wanted * size // total for name, size in sizes.items()}
  by_rest = sorted(
    sizes, key=lambda name: (-(wanted * sizes[name] % total), name)
  )
  for name in by_rest[: wanted - sum(parts.values())]:
    parts[name] += 1
  return parts


class Places:
  """Where each image went, by a hash of its bytes; draws where the next goes.

  Sorted arrays, merged when the last is no longer much smaller than the one
  before: 12 bytes an image, some 60 while two merge. That any two different
  images of n share a hash has odds of n^2 / 2^65.
  """

  def __init__(
    self,
    labels: Mapping[str, int],
    splits: Sequence[str],
    sizes: Mapping[str, int],
    hold_out: Mapping[str, int | float],
  ):
    """Knows of no image yet.

    Args:
      labels: class name -> label.
      splits: that the source names, perhaps with "".
      sizes: class -> files of it for which the source names no split.
      hold_out: see `Options`.

    Raises:
      UserError: there are too few images for it.
    """
    self._names = tuple(labels)
    self._hold_out = hold_out
    self._splits = tuple(
      dict.fromkeys(["train", *hold_out, *filter(None, splits)])
    )
    shape = len(labels), len(self._splits)
    self._wanted = np.zeros(shape, np.int64)
    for split, of_class in shares(sizes, hold_out).items():
      for name, count in of_class.items():
        self._wanted[labels[name], self._splits.index(split)] = count
    self._counts = np.zeros(shape, np.int64)  # Committed, and the chunk's.
    self._chunk_counts = np.zeros(shape, np.int64)
    # Hashes, sorted, and values; apart, as to search in takes one piece.
    self._runs: list[tuple[np.ndarray, np.ndarray]] = []
    self._chunk: dict[int, int] = {}
    self._rows: list[tuple[int, int]] = []

  def find(self, hashes: np.ndarray) -> np.ndarray:
    """Where equal images of committed chunks went: int64 [N], -1 for none."""
    found = np.full(len(hashes), -1, np.int64)
    for known, values in reversed(self._runs):
      near = np.searchsorted(known, hashes).clip(max=len(known) - 1)
      found = np.where(known[near] == hashes, values[near], found)
    return found

  def is_new(self, number: int, before: int) -> bool:
    """Whether no image with the hash came, also in this chunk."""
    return before < 0 and number not in self._chunk

  def place(
    self, number: int, before: int, label: int, split: str
  ) -> tuple[str, list[tuple[str, str]]]:
    """Takes an image in.

    Args:
      number: its hash.
      before: what `find` has for it.
      label: of its class.
      split: that the source names for it, or "".

    Returns:
      Its split; kind and sentence of what is odd about an equal one before.
    """
    if before < 0:
      before = self._chunk.get(number, -1)
    if split:
      side = self._splits.index(split)
    elif before >= 0:
      side = before % len(self._splits)
    else:
      side = self._draw(label)
    value = label * len(self._splits) + side
    self._chunk.setdefault(number, value)
    self._rows.append((number, value))
    self._chunk_counts[label, side] += 1
    odd = []
    if before >= 0:
      other, there = divmod(before, len(self._splits))
      same = "has the same bytes as an image before it of the"
      if other != label:
        kind = build_journal.IN_TWO_CLASSES
        odd.append((kind, f"{same} class {self._names[other]}"))
      if there != side:
        kind = build_journal.IN_TWO_SPLITS
        odd.append((kind, f"{same} split {self._splits[there]}"))
    return self._splits[side], odd

  def _draw(self, label: int) -> int:
    counts = self._counts[label] + self._chunk_counts[label]
    if counts[0]:
      for side in range(1, len(self._splits)):
        if counts[side] < self._wanted[label, side]:
          return side
    return 0

  def take_chunk(self) -> np.ndarray:
    """Ends the chunk: its images, which `commit` wants next."""
    chunk = np.array(self._rows, ROW)
    self._rows.clear()
    self._chunk.clear()
    self._chunk_counts[:] = 0
    return chunk

  def commit(self, chunk: np.ndarray) -> None:
    """Adds a chunk's images."""
    if not len(chunk):
      return
    np.add.at(self._counts.reshape(-1), chunk["value"], 1)
    self._runs.append(_first_of_each(chunk["hash"], chunk["value"]))
    while len(self._runs) > 1 and (
      len(self._runs[-2][0]) < 2 * len(self._runs[-1][0])
    ):
      last, before = self._runs.pop(), self._runs.pop()
      both = map(np.concatenate, zip(before, last, strict=True))
      self._runs.append(_first_of_each(*both))

  def warnings(self) -> list[str]:
    """Sentences about what there is when all are in."""
    found = []
    untrained = (self._counts.sum(1) > 0) & (self._counts[:, 0] == 0)
    if untrained.any():
      names = [self._names[i] for i in np.flatnonzero(untrained)]
      found.append(file_names.untrained(names))
    for split, wanted in self._hold_out.items():
      got = int(self._counts[:, self._splits.index(split)].sum())
      if not got:
        found.append(
          f"no image is held out as {split}, as no class has enough different "
          "ones; each keeps one for train"
        )
      elif isinstance(wanted, int) and got != wanted:
        found.append(
          f"{split} has {got:,} images where --hold_out asks for {wanted:,}, "
          "as there are bad or equal files"
        )
    return found


def _first_of_each(
  hashes: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Sorted by hash, of equal ones the first."""
  unique, first = np.unique(hashes, return_index=True)
  return unique, values[first]
