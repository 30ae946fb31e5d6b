"""How large known data sets are, for plans made where they aren't prepared."""

import re

from mixer.errors import UserError

# name -> (classes, examples of each split). ImageNet-21k: the release of winter
# 2021 and its splits in mixer/datasets/imagenet21k.py; 21K-P: its authors'
# counts (arXiv 2104.10972); JFT-300M: arXiv 2010.11929; VTAB-1k: arXiv
# 1910.04867; the others: their own pages, as TFDS has them.
SIZES = {
  "imagenet21k": (
    19_167,
    {"train": 13_153_500 - 51_200, "validation": 25_600, "test": 25_600},
  ),
  "imagenet21k_p": (10_450, {"train": 11_060_223, "validation": 522_500}),
  "imagenet2012": (1_000, {"train": 1_281_167, "validation": 50_000}),
  "jft_300m": (18_291, {"train": 300_000_000}),
  "cifar10": (10, {"train": 50_000, "test": 10_000}),
  "cifar100": (100, {"train": 50_000, "test": 10_000}),
  "oxford_iiit_pet": (37, {"train": 3_680, "test": 3_669}),
  "oxford_flowers102": (
    102,
    {"train": 1_020, "validation": 1_020, "test": 6_149},
  ),
  "mnist": (10, {"train": 60_000, "test": 10_000}),
  "fashion_mnist": (10, {"train": 60_000, "test": 10_000}),
  "digits": (10, {"train": 1_400, "test": 397}),
  "glyphs": (102, {"train": 36_720, "test": 4_080}),
}
_SLICE = re.compile(r"(\w+)(?:\[(-?\d*)(%?):(-?\d*)(%?)\])?")


def find(name: str, split: str) -> tuple[int, int] | None:
  """(examples, classes) of a known set; None where it isn't known.

  Args:
    name: of the data set, without config and version.
    split: TFDS split expression.

  Raises:
    UserError: the set has no such split, or it can't be read here.
  """
  if name not in SIZES:
    return None
  classes, splits = SIZES[name]
  match = _SLICE.fullmatch(split)
  if not match or match.group(1) not in splits:
    raise UserError(
      f"the size of {name}'s split {split!r} isn't known here; there are "
      + ", ".join(splits)
      + ', or one part of these as in "train[:98%]". Give it by --examples=N.'
    )
  whole = splits[match.group(1)]

  def place(number: str, percent: str, default: int) -> int:
    if not number:
      return default
    n = int(number)
    if percent:  # As TFDS rounds: to the nearest example.
      n = round(n * whole / 100)
    return min(max(n + whole if n < 0 else n, 0), whole)

  _, first, per_cent, last, per_cent_too = match.groups()
  start = place(first or "", per_cent or "", 0)
  stop = place(last or "", per_cent_too or "", whole)
  return max(stop - start, 0), classes
