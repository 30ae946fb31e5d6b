"""Which images are held out of `train`."""

import collections
import hashlib
from collections.abc import Callable, Mapping

from mixer.datasets.prepare import sources
from mixer.datasets.prepare.sources import Source
from mixer.errors import UserError

HoldOut = Mapping[str, int | float]  # Split -> number or share of the images.
# Kind of problem and sentence, of an equal image that came before.
Odd = list[tuple[str, str]]
IN_TWO = ("in two classes", "in two splits")


def digest(data: bytes, seed: int) -> bytes:
  """The 128-bit keyed hash of an image's bytes."""
  key = seed.to_bytes(16, "little", signed=True)
  return hashlib.blake2b(data, digest_size=16, key=key).digest()


def by_hash(
  hold_out: HoldOut, images: int
) -> Callable[[bytes, int, str], tuple[str, Odd]]:
  """Holds out the images whose hash is below a bound.

  That takes one pass, depends neither on the order of an archive nor on its
  form, and puts equal images on the same side. Their number is up to chance: k
  becomes k +- sqrt(k).

  Args:
    hold_out: what to hold out.
    images: of how many; 0 if that isn't known.

  Returns:
    A function as `ByClass.place`.
  """
  bounds: dict[str, int] = {}
  share = 0.0
  for split, wanted in hold_out.items():
    if isinstance(wanted, int) and wanted >= images:
      raise UserError(
        f"--hold_out asks for {wanted:,} images as {split}, of "
        f"{f'{images:,}' if images else 'an unknown number'}; ask for a "
        f"share, as in --hold_out={split}=1%."
      )
    share += wanted / images if isinstance(wanted, int) else wanted
    bounds[split] = int(share * 2**128)  # Exact.

  def place(key: bytes, label: int, split: str) -> tuple[str, Odd]:
    del label
    if split in bounds:
      raise UserError(
        f"--hold_out draws a split {split}, and the source has one of its own; "
        "leave it out of --hold_out."
      )
    number = int.from_bytes(key, "big")
    drawn = [s for s, bound in bounds.items() if number < bound]
    return split or (drawn or ["train"])[0], []

  return place


class ByClass:
  """Exact and by class, of a source that knows how many images each class has.

  Of each class's images, in the source's order, the first goes to `train`, the
  next to the held-out splits until they have their share, and the rest to
  `train`. So a class with a usable image has one in `train`, whatever files
  turn out bad, and one of two different images or more has a held-out one. An
  image that came before goes where it went then. The source's order has to be
  one of chance.
  """

  def __init__(self, hold_out: HoldOut, source: Source, labels: dict[str, int]):
    """Divides the images; a UserError if there are too few."""
    self._names, self._hold_out = tuple(labels), hold_out
    self._wanted = {
      (labels[name], split): count
      for split, of_class in shares(source.class_sizes or {}, hold_out).items()
      for name, count in of_class.items()
    }
    self._counts = collections.Counter[tuple[int, str]]()
    # Digest -> label and split.
    self._seen: dict[bytes, tuple[int, str]] = {}

  def place(self, key: bytes, label: int, split: str) -> tuple[str, Odd]:
    """The split of an image, and what is odd about it.

    Args:
      key: its `digest`.
      label: of its class.
      split: that the source names for it, or "".
    """
    before = self._seen.get(key)
    split = split or (before[1] if before else self._draw(label))
    self.restore(key, label, split)
    odd: Odd = []
    same = "has the same bytes as an image before it of the"
    if before and before[0] != label:
      odd.append((IN_TWO[0], f"{same} class {self._names[before[0]]}"))
    if before and before[1] != split:
      odd.append((IN_TWO[1], f"{same} split {before[1]}"))
    return split, odd

  def _draw(self, label: int) -> str:
    if self._counts[label, "train"]:
      for split in self._hold_out:
        if self._counts[label, split] < self._wanted[label, split]:
          return split
    return "train"

  def restore(self, key: bytes, label: int, split: str) -> None:
    """Takes in what has been placed, by an earlier process too."""
    self._seen.setdefault(key, (label, split))
    self._counts[label, split] += 1

  def warnings(self, counts: Mapping[str, int]) -> list[str]:
    """About what there is in the end; `counts` has images by split."""
    found = [
      f"{split} has {counts[split]:,} images where --hold_out asks for "
      f"{wanted:,}, as there are bad or equal files"
      for split, wanted in self._hold_out.items()
      if isinstance(wanted, int) and counts[split] != wanted
    ]
    has = sorted({label for label, _ in self._counts})
    lacking = [self._names[k] for k in has if not self._counts[k, "train"]]
    if lacking:
      found.append(
        f"{len(lacking):,} classes have images, but none in train: "
        f"{sources.some(lacking)}"
      )
    return found


def shares(
  sizes: Mapping[str, int], hold_out: HoldOut
) -> dict[str, dict[str, int]]:
  """Split -> class -> images that it gets, of so many files of each class.

  A share is met class by class, by one image at least; a number exactly, in
  proportion, by largest remainders. Each class keeps an image for `train`.
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
    if isinstance(wanted, float):
      parts = {
        name: min(left, max(1, round(wanted * sizes[name])))
        for name, left in spare.items()
      }
    elif wanted > total:
      raise UserError(
        f"--hold_out asks for {wanted:,} images as {split}, and {total:,} can "
        "be spared: each class keeps one for train. Ask for fewer, as in "
        f"--hold_out={split}={max(1, total // 2)}."
      )
    else:
      exact = {name: wanted * left for name, left in spare.items()}
      parts = {name: part // total for name, part in exact.items()}
      by_rest = sorted(exact, key=lambda name: (-(exact[name] % total), name))
      for name in by_rest[: wanted - sum(parts.values())]:
        parts[name] += 1
    drawn[split] = parts
    spare = {name: left - parts[name] for name, left in spare.items()}
  return drawn
