"""What a preparation is asked for, and what it tells.

Apart from `build`, as worker processes read it and should not load TFDS.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from mixer.errors import UserError


def hold_out_flag(parts: Mapping[str, int | float]) -> str:
  """What to hold out, as the command line has it."""
  texts = [
    f"{split}={part}" if isinstance(part, int) else f"{split}={100 * part:g}%"
    for split, part in parts.items()
  ]
  return f"--hold_out={','.join(texts) or 'none'}"


@dataclasses.dataclass(frozen=True)
class Options:
  """How a source of images becomes a data set.

  All but `workers`, `on_bad`, `max_bad` and `restart` decide what is written:
  a preparation that was stopped goes on only with the same.

  Attributes:
    hold_out: split -> how many of the images for which the source names no
      split. Counts (int, at least 1) are exact; fractions (float, below 1)
      are met to within chance, as an image's own hash decides; of folders of
      classes both are exact and by class, see `build_classes`. Drawn in this
      order; not both kinds at once. The rest is `train`.
    shuffle: write what is left for `train` in the order of hashes, too, so that
      any slice of it is a fair sample; else it stays in the source's order.
      Takes room for twice the images while it is done.
    seed: of the draw.
    drop_duplicates: of images with equal bytes keep the source's first.
    upright: turn images as their EXIF orientation says; else they stay as
      they are stored, as in ImageNet's own copies.
    white_ground: put what is transparent on white ground; else the colour
      stored beneath shows, as in TensorFlow's decoders.
    short_side: images with a longer short side are made so small and encoded
      anew; 0 keeps every image's bytes as found.
    quality: of JPEG encoding, where images are encoded anew.
    on_mislabelled: what becomes of an image whose format isn't the one that
      its name says; it decodes none the less.
    on_bad: what becomes of a file that doesn't decode.
    max_bad: stop if more than this share of the files is bad, as that means a
      wrong or broken source rather than some bad files.
    workers: processes that inspect images; None for one a core, 0 for none
      beside this one.
    restart: discard what a preparation that was stopped has done.
    chunk_images: images, and
    chunk_bytes: bytes of them, after which work is committed; a shard of the
      result holds no more.
  """

  hold_out: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
  shuffle: bool = False
  seed: int = 0
  drop_duplicates: bool = False
  upright: bool = False
  white_ground: bool = False
  short_side: int = 0
  quality: int = 95
  on_mislabelled: Literal["keep", "skip", "fail"] = "keep"
  on_bad: Literal["skip", "fail"] = "skip"
  max_bad: float = 0.1
  workers: int | None = None
  restart: bool = False
  # Readers hold every shard open, and 1,024 open files is a common limit:
  # ImageNet-21k makes some 400 shards of this size.
  chunk_images: int = 32_768
  chunk_bytes: int = 4 << 30

  def __post_init__(self):
    for name, allowed, wanted in (
      ("workers", self.workers is None or self.workers >= 0, "0 or more"),
      ("short_side", self.short_side >= 0, "pixels, or 0"),
      ("quality", 1 <= self.quality <= 100, "1 to 100"),
      ("max_bad", 0 <= self.max_bad <= 1, "a share from 0 to 1"),
      ("on_bad", self.on_bad in ("skip", "fail"), "skip or fail"),
      (
        "on_mislabelled",
        self.on_mislabelled in ("keep", "skip", "fail"),
        "keep, skip or fail",
      ),
    ):
      if not allowed:
        raise UserError(f"{name} is {getattr(self, name)}; give {wanted}.")
    kinds = {isinstance(v, int) for v in self.hold_out.values()}
    whole = kinds == {True}
    if len(kinds) > 1 or any(
      (v < 1) if whole else not 0 < v < 1 for v in self.hold_out.values()
    ):
      raise UserError(
        f"{hold_out_flag(self.hold_out)} is none: give each split a number of "
        "images, or each a share, as in --hold_out=validation=10%,test=5%."
      )
    if not whole and sum(self.hold_out.values()) >= 1:
      raise UserError(
        f"{hold_out_flag(self.hold_out)} leaves nothing for train; let the "
        "shares add up to less than 100%."
      )
    for split in self.hold_out:
      if not split.isidentifier():
        raise UserError(
          f"--hold_out names a split {split!r}; give it a name of letters, "
          "digits and underscores."
        )
    if "train" in self.hold_out:
      raise UserError(
        "--hold_out names the split `train`, which gets what is left over; "
        "name others, such as test."
      )


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a preparation is.

  Attributes:
    stage: "reading" the source, then "drawing" the held-out splits.
    bytes_done: of the source, as it lies on disk; when drawing, records
      written.
    bytes_total: likewise.
    images: in the data set so far.
    bad: files left out as they don't decode.
    mislabelled: images whose format isn't the one their name says.
    duplicates: images left out as equal to one before.
    resumed: files that an earlier, stopped preparation had done.
  """

  stage: str
  bytes_done: int
  bytes_total: int
  images: int = 0
  bad: int = 0
  mislabelled: int = 0
  duplicates: int = 0
  resumed: int = 0


@dataclasses.dataclass(frozen=True)
class Report:
  """What a preparation made.

  Attributes:
    data_dir: the data set's folder, with its version.
    splits: split -> images.
    problems: kind -> files; bad ones, "mislabelled", "duplicate".
    path: the list of those files: kind, name and sentence, by tabs; "" if the
      data set was made by other means.
    already: the data set was there before; nothing was done.
    source: what it was made from, for a person.
    warnings: what the source had to say, in sentences.
    differs: if it was there before: in what the source or the options of that
      time differ from those of now.
    not_compared: if it was there before: why its source can't be compared.
  """

  data_dir: str
  splits: Mapping[str, int]
  problems: Mapping[str, int]
  path: str
  already: bool
  source: str
  warnings: tuple[str, ...] = ()
  differs: tuple[str, ...] = ()
  not_compared: str = ""
