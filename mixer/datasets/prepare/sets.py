"""The data sets that are prepared from images that the user has.

`SETS` is the table, and each entry's function opens what the user has of a set
as a `Source`.
"""

import contextlib
import dataclasses
import gzip
import importlib.util
import io
import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from mixer import files
from mixer.datasets import catalog, wordnet
from mixer.datasets.prepare import sources, tars
from mixer.datasets.prepare.sources import Member, Source
from mixer.errors import UserError

# Of ImageNet-21K-P's archive, the classes that it leaves out.
_SMALL_CLASSES = "imagenet21k_small_classes"
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# But ILSVRC's of other tasks.
_ARCHIVE = re.compile(r"(?!.*_(test|train_t3|bbox)).*\.(tar|tar\.gz|tgz)")


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be prepared, and from what."""

  base: str  # The data set, without its config.
  release: str  # The config, "" if it has none.
  paths: Sequence[Path]  # At least one.
  class_file: Path | None = None
  accept_truncated: bool = False
  seed: int = 0

  def unfit(self, what: str) -> UserError:
    """The refusal of a source; `what` says what is there."""
    entry = catalog.ENTRIES[self.base]
    where = f" (from {entry.where})" if entry.where else ""
    return UserError(
      f"{what}. For {self.base}, --source has to name {entry.by_hand}{where}."
    )

  def classes(self, listed: str) -> Sequence[str] | None:
    """Those of the user's file, else of a list that we have, else None."""
    if self.class_file is not None:
      return sources.read_classes(self.class_file, self.base != "folder")
    return wordnet.classes(listed) if listed in wordnet.LISTS else None

  def archives(
    self,
    layout: tars.Layout,
    listed: str,
    of_labels: Sequence[Path] = (),
    most: int = 1,
  ) -> Source:
    """Its folder, or `most` archives at most, or any number of CLASS.tar."""
    found = []
    for path in self.paths:
      inside = sources.inside(path)[1] if path.is_dir() else []
      inside = [file for file in inside if _ARCHIVE.fullmatch(file.name)]
      found += inside or [path]
    # In this order whatever order they were named in.
    found = sorted({*found} - {*of_labels}, key=lambda path: path.name)
    classes, wnids = (
      self.classes(listed),
      [sources.wnid_of_tar(f.name) for f in found],
    )
    if classes is None and all(wnids):
      classes = sorted({*wnids})
    if not 0 < len(found) <= most and not all(wnids):
      raise self.unfit(f"it has {len(found)} archives: {sources.some(found)}")
    mark, truncated = sources.fingerprint(of_labels), self.accept_truncated
    what = f"images of {self.base}"
    return tars.source(found, layout, what, classes, truncated, mark)


def _folder(request: Request) -> Source:
  """Images of the user's own, in one folder a class."""
  if len(request.paths) > 1:
    raise request.unfit(f"--source is given {len(request.paths)} times")
  return sources.own_folders(
    request.paths[0], request.classes(""), request.seed
  )


def _imagenet21k(request: Request) -> Source:
  """CLASS.tar or CLASS/FILE; of the processed subset, SPLIT/CLASS/FILE."""
  processed = request.base == "imagenet21k_p"

  def layout(path: PurePosixPath) -> Member | None:
    if _SMALL_CLASSES in path.parts:
      return None
    *_, split, folder, file = "", "", *path.parts
    split = sources.SPLITS.get(split, "")
    wnid = sources.wnid_of_tar(file) or folder
    if not sources.is_wnid(wnid) or (split != "") != processed:
      return _misplaced(path)
    name = f"{split}/{folder}/{file}".lstrip("/")
    return Member(sources.readable(name), wnid, split)

  return request.archives(layout, request.release + "_p" * processed)


def _misplaced(path: PurePosixPath) -> Member:
  error = "its place or name is not that of an image of the data set"
  return Member(sources.readable(str(path)), "", error=error)


def _imagenet2012(request: Request) -> Source:
  """CLASS.tar, validation images by number, or train/CLASS and val/CLASS."""
  # Found without the seconds that importing TFDS takes.
  spec: Any = importlib.util.find_spec("tensorflow_datasets")
  text = (
    Path(spec.origin).parent / "datasets/imagenet2012/validation_labels.txt"
  )
  labels = text.read_text().split()
  real, listed = None, list[Path]()
  if request.base == "imagenet2012_real":
    listed = [f for p in request.paths for f in (*p.glob("*.json"), p)]
    listed = [path for path in listed if path.suffix == ".json"]
    real = _real_labels(request, listed)

  def layout(path: PurePosixPath) -> Member | None:
    *_, split, folder, file = "", "", *path.parts
    split = sources.SPLITS.get(split, "")
    wnid, match = sources.wnid_of_tar(file), _VALIDATION.fullmatch(file)
    if wnid or split == "train":
      # Images without a split are `train`, and are shuffled.
      name = sources.readable(f"{folder}/{file}")
      return None if real else Member(name, wnid or folder)
    if split == "validation" and sources.is_wnid(folder):
      return Member(sources.readable(f"{split}/{folder}/{file}"), folder, split)
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(labels):
      return _misplaced(path)
    more = (("real_label", tuple(real[number - 1])),) if real else ()
    return Member(file, labels[number - 1], "validation", more=more)

  return request.archives(layout, "imagenet1k", listed, most=2)


def _real_labels(request: Request, listed: list[Path]) -> list[list[int]]:
  """The right classes of each validation image, by number."""
  with contextlib.suppress(OSError, ValueError, TypeError):
    (path,) = listed
    found: Any = json.loads(path.read_text("utf-8-sig"))
    right = all(k in range(1000) for several in found for k in several)
    if right and len(found) == 50_000:
      return found
  raise request.unfit(
    f"{sources.some(listed) or '--source'} is not a single .json that has, for "
    "each of the 50,000 images, a list of classes from 0 to 999"
  )


def _imagenet_v2(request: Request) -> Source:
  """NUMBER/FILE, with the numbers of ImageNet-1k's classes."""
  classes = wordnet.classes("imagenet1k")

  def layout(path: PurePosixPath) -> Member:
    folder = path.parent.name
    if not re.fullmatch("[0-9]{1,3}", folder):
      return _misplaced(path)
    name = sources.readable(f"{folder}/{path.name}")
    return Member(name, classes[int(folder)], "test")

  return request.archives(layout, "imagenet1k")


# The idx files of MNIST and its like: a magic number and the sizes of the axes,
# as big-endian 32-bit integers, and the values
# (https://yann.lecun.com/exdb/mnist/).
SIDE = 28
CLASSES = {
  "mnist": tuple("0123456789"),
  "fashion_mnist": (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
    "Sneaker", "Bag", "Ankle boot",
  ),
}  # fmt: skip
# How the labels of `train` begin: the files of both sets have the same names.
_BEGIN = {"mnist": [5, 0, 4, 1], "fashion_mnist": [9, 0, 0, 3]}
_MOST_BYTES = 1 << 30


def _idx(request: Request) -> Source:
  """Four idx files in a folder; members in their order, train first."""
  (folder, *_), name = request.paths, request.base
  paths, arrays = [], {}
  for split, begin in (("train", "train"), ("test", "t10k")):
    for kind, axes in (("images", 3), ("labels", 1)):
      # Some copies have a dot for the second dash; some are packed.
      found = sorted(folder.glob(f"{begin}-{kind}[-.]idx{axes}-ubyte*"))
      if not found:
        raise request.unfit(f"{folder} has no {begin}-{kind}-idx{axes}-ubyte")
      paths.append(found[0])
      arrays[split, axes] = _read_idx(found[0], axes)
    images, labels = arrays[split, 3], arrays[split, 1]
    other = _BEGIN.keys() - {name}
    if (
      images.shape != (len(labels), SIDE, SIDE)
      or labels.max(initial=0) > 9
      or (split == "train" and [*labels[:4]] in [_BEGIN[k] for k in other])
    ):
      raise UserError(
        f"{folder} holds the files of another set than {name}, with the same "
        "names. Name another folder, or prepare it as what it is."
      )

  def read(start: int) -> Iterator[tuple[Member, int]]:
    number = 0
    for split in ("train", "test"):
      pairs = zip(arrays[split, 3], arrays[split, 1], strict=True)
      for i, (pixels, label) in enumerate(pairs):
        png = io.BytesIO()
        if number >= start:
          Image.fromarray(pixels).save(png, "PNG")
        number += 1
        file = f"{split}/{i:05}.png"
        yield Member(file, CLASSES[name][label], split, png.getvalue()), number

  count = sum(len(arrays[split, 1]) for split in ("train", "test"))
  mark = sources.fingerprint(paths)
  what, size = f"idx files ({folder})", count * SIDE**2
  return Source(what, mark, read, count, size, CLASSES[name])


def _read_idx(path: Path, axes: int) -> np.ndarray:
  """The values of an idx file of so many axes, uint8."""
  content = files.read_bytes(path, "an idx file")
  try:
    # By its content: browsers unpack on the way, and keep the name.
    if content.startswith(b"\x1f\x8b"):
      with gzip.open(io.BytesIO(content)) as packed:
        content = packed.read(_MOST_BYTES)
    begin = 4 * (1 + axes)
    magic, *sizes = struct.unpack(f">{1 + axes}I", content[:begin])
    # In Python's integers: a damaged header may claim more than 64 bits hold.
    if magic != 0x800 + axes or len(content) != begin + math.prod(sizes):
      raise ValueError(f"its header, {content[:begin].hex(' ', 4)}, is another")
  except (OSError, EOFError, ValueError, struct.error, zlib.error) as e:
    raise UserError(
      f"{path} is no idx file of {axes} axes, or damaged ({e}). Get it again."
    ) from e
  return np.frombuffer(content, np.uint8, offset=begin).reshape(sizes)


@dataclasses.dataclass(frozen=True)
class Spec:
  """A data set: where its images come from, and what it is."""

  open: Callable[[Request], Source]
  # Config -> its images without a split, by which numbers to hold out become
  # shares, and its classes; 0 if unknown. The first is the default.
  releases: Mapping[str, tuple[int, int]] = dataclasses.field(
    default_factory=lambda: {"": (0, 0)}
  )
  version: str = "1.0.0"  # TFDS's, of the sets that it knows.
  takes: Sequence[str] = ("accept_truncated",)  # Further flags.
  # Of `build.Options`, where the user gives no other.
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # What a record calls the number of its class; ReaL's `real_label` is beside.
  label: str = "label"
  side: int = 0  # Of gray images that all have one size, 0 for others.


_V2 = ("matched-frequency", "threshold-0.7", "topimages")
SETS = {
  "imagenet21k": Spec(
    _imagenet21k,
    {"winter21": (13_153_500, 19_167), "fall11": (14_197_122, 21_841)},
    takes=("accept_truncated", "classes"),
    # Drawn from all images, as in the reference (Kolesnikov et al. 2020).
    options={"hold_out": {"test": 25_600, "validation": 25_600}},
  ),
  "imagenet21k_p": Spec(
    _imagenet21k,
    {"winter21": (0, 10_450), "fall11": (0, 11_221)},
    takes=("accept_truncated", "classes"),
  ),
  "imagenet2012": Spec(
    _imagenet2012,
    {"": (1_281_167, 1000)},
    "5.1.0",
    # TFDS's is shuffled, and recipes choose by slices of it.
    options={"shuffle": True},
  ),
  "imagenet2012_real": Spec(_imagenet2012, label="original_label"),
  "imagenet_v2": Spec(_imagenet_v2, dict.fromkeys(_V2, (0, 1000)), "3.0.0"),
  "mnist": Spec(_idx, version="3.0.1", takes=(), side=SIDE),
  "fashion_mnist": Spec(_idx, version="3.0.1", takes=(), side=SIDE),
  "folder": Spec(
    _folder,
    takes=("name", "classes"),
    options={
      "hold_out": {"validation": 0.1},
      "upright": True,
      "white_ground": True,
    },
  ),
}


def open_source(request: Request) -> Source:
  """Opens what the user has of a set; UserError if it fits no form."""
  try:
    if missing := [path for path in request.paths if not path.exists()]:
      raise request.unfit(f"the source {missing[0]} does not exist")
    return SETS[request.base].open(request)
  except OSError as e:  # No permission, a bad disk.
    raise UserError(
      f"the source {e.filename or request.paths[0]} can't be looked at: "
      f"{e.strerror}."
    ) from e
