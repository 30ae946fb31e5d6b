"""Which images are held out of `train`: by hash, or exactly and by class."""

import collections
import hashlib
from collections.abc import Callable, Mapping

from mixer.errors import UserError

HoldOut = Mapping[str, int | float]  # Split -> number or share of the images.
# Takes the digest of an image, its label, and the split that its source names,
# or ""; gives its split, and kind and sentence of what is odd about it.
Place = Callable[[bytes, int, str], tuple[str, list[tuple[str, str]]]]
_IN_TWO = {"class": "in two classes", "split": "in two splits"}


def digest(data: bytes, seed: int) -> bytes:
  """The 128-bit keyed hash of an image's bytes."""
  key = seed.to_bytes(16, "little", signed=True)
  return hashlib.blake2b(data, digest_size=16, key=key).digest()


def by_hash(hold_out: HoldOut, images: int) -> Place:
  """Holds out, of so many images (0: unknown), those with a hash below a bound.

  That takes one pass, depends neither on the order of an archive nor on its
  form, and puts equal images on the same side. Their number is up to chance: k
  becomes k +- sqrt(k).
  """
  bounds: dict[str, int] = {}
  share = 0.0
  for split, wanted in hold_out.items():
    if isinstance(wanted, int) and wanted >= images:
      raise UserError(
        f"--hold_out asks for {wanted:,} images as {split}, of {images:,} (0: "
        f"unknown); ask for a share, as in --hold_out={split}=1%."
      )
    share += wanted / images if isinstance(wanted, int) else wanted
    bounds[split] = int(share * 2**128)  # Exact.

  def place(key: bytes, label: int, split: str):
    if split in bounds:
      raise UserError(
        f"--hold_out draws a split {split}, and the source has one of its own; "
        "leave it out of --hold_out."
      )
    number = int.from_bytes(key, "big")
    drawn = [s for s, bound in bounds.items() if number < bound]
    return split or (drawn or ["train"])[0], []

  return place


def by_class(
  hold_out: HoldOut, sizes: Mapping[str, int], labels: Mapping[str, int]
) -> Place:
  """Divides each class's images, in an order of chance; `sizes` by class.

  The first goes to `train`, the next to the held-out splits until they have
  their share, and the rest to `train`. So a class with a usable image has one
  in `train`, whatever files turn out bad, and one of two different images or
  more has a held-out one. An image that came before goes where it went then.
  """
  names, wanted = [*labels], shares(sizes, hold_out)
  counts = collections.Counter[tuple[str, str]]()  # By class and split.
  seen: dict[bytes, tuple[str, str]] = {}

  def place(key: bytes, label: int, split: str):
    name = names[label]
    if not split:
      split = seen[key][1] if key in seen else draw(name)
    before = seen.setdefault(key, (name, split))
    counts[name, split] += 1
    odd = []
    for what, then, now in zip(_IN_TWO, before, (name, split), strict=True):
      if then != now:
        same = f"has the same bytes as an image before it of the {what} {then}"
        odd.append((_IN_TWO[what], same))
    return split, odd

  def draw(name: str) -> str:
    if counts[name, "train"]:
      for split in hold_out:
        if counts[name, split] < wanted[split][name]:
          return split
    return "train"

  return place


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
        "be spared: each class keeps one for train. Ask for fewer."
      )
    else:
      parts = {name: wanted * left // total for name, left in spare.items()}
      rests = {name: wanted * left % total for name, left in spare.items()}
      by_rest = sorted(rests, key=lambda name: (-rests[name], name))
      for name in by_rest[: wanted - sum(parts.values())]:
        parts[name] += 1
    drawn[split] = parts
    spare = {name: left - parts[name] for name, left in spare.items()}
  return drawn
