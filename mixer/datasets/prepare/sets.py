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

  def classes(self, listed: str = "") -> Sequence[str] | None:
    """Those of the user's file, else of a list that we have, else None."""
    if self.class_file is not None:
      return sources.read_classes(self.class_file, self.base != "folder")
    return wordnet.classes(listed) if listed in wordnet.LISTS else None

  def archives(
    self, layout: tars.Layout, listed: str, labels: Sequence[Path] = ()
  ) -> Source:
    """Its folder, an archive, or any number of CLASS.tar or ILSVRC's."""
    found: set[Path] = set()
    for path in self.paths:
      inside = sources.inside(path)[1] if path.is_dir() else []
      inside = [file for file in inside if _ARCHIVE.fullmatch(file.name)]
      found |= {*inside} or {path}
    # In this order whatever order they were named in.
    paths = sorted(found - {*labels}, key=lambda path: path.name)
    names = [path.name for path in paths]
    classes, wnids = self.classes(listed), [*map(sources.wnid_of_tar, names)]
    if all(wnids):
      classes = classes or sorted({*wnids})
    elif len(names) > 1 and not all(n.startswith("ILSVRC") for n in names):
      raise self.unfit(f"it has {len(names)} archives: {sources.some(names)}")
    more = self.accept_truncated, sources.fingerprint(labels)
    return tars.source(paths, layout, classes, *more)


def _folder(request: Request) -> Source:
  """Images of the user's own, in one folder a class."""
  if len(request.paths) > 1:
    raise request.unfit(f"--source is given {len(request.paths)} times")
  (path,) = request.paths
  return sources.own_folders(path, request.classes(), request.seed)


def _imagenet21k(request: Request) -> Source:
  """CLASS.tar or CLASS/FILE; of the processed subset, SPLIT/CLASS/FILE."""
  processed = request.base == "imagenet21k_p"

  def layout(path: PurePosixPath) -> Member | None:
    if _SMALL_CLASSES in path.parts:
      return None
    *_, split, folder, file = "", "", "", *path.parts
    split = sources.SPLITS.get(split, "")
    wnid = sources.wnid_of_tar(file) or folder
    if not sources.is_wnid(wnid) or (split != "") != processed:
      return Member(str(path), "")
    return Member(f"{split}/{folder}/{file}".lstrip("/"), wnid, split)

  return request.archives(layout, request.release + "_p" * processed)


def _imagenet2012(request: Request) -> Source:
  """CLASS.tar, validation images by number, or train/CLASS and val/CLASS."""
  # Found without the seconds that importing TFDS takes.
  spec: Any = importlib.util.find_spec("tensorflow_datasets")
  labels = Path(spec.origin).with_name("datasets") / "imagenet2012"
  labels = (labels / "validation_labels.txt").read_text().split()
  real, listed = None, list[Path]()
  if request.base == "imagenet2012_real":
    listed = [f for p in request.paths for f in (*p.glob("*.json"), p)]
    listed = [path for path in listed if path.suffix == ".json"]
    real = _real_labels(request, listed)

  def layout(path: PurePosixPath) -> Member | None:
    *_, split, folder, file = "", "", "", *path.parts
    split = sources.SPLITS.get(split, "")
    wnid, match = sources.wnid_of_tar(file), _VALIDATION.fullmatch(file)
    if wnid or split == "train":
      # Images without a split are `train`, and are shuffled.
      return None if real else Member(f"{folder}/{file}", wnid or folder)
    if split == "validation" and sources.is_wnid(folder):
      return Member(f"{split}/{folder}/{file}", folder, split)
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(labels):
      return Member(str(path), "")
    more = (("real_label", tuple(real[number - 1])),) if real else ()
    return Member(file, labels[number - 1], "validation", more=more)

  return request.archives(layout, "imagenet1k", listed)


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
      return Member(str(path), "")
    return Member(f"{folder}/{path.name}", classes[int(folder)], "test")

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
# How labels of `train` begin: both have the same names of files.
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
    is_other = [*labels[:4]] in [v for k, v in _BEGIN.items() if k != name]
    shape = len(labels), SIDE, SIDE
    if is_other or images.shape != shape or labels.max(initial=0) > 9:
      raise request.unfit(f"{folder} holds the files of another set")

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

  count = len(arrays["train", 1]) + len(arrays["test", 1])
  mark, what = sources.fingerprint(paths), f"idx files ({folder})"
  return Source(what, mark, read, count, count * SIDE**2, CLASSES[name])


def _read_idx(path: Path, axes: int) -> np.ndarray:
  """The values of an idx file of so many axes, uint8."""
  content = files.read_bytes(path, "an idx file")
  try:
    # By its content: browsers unpack on the way, and keep the name.
    if content.startswith(b"\x1f\x8b"):
      with gzip.open(io.BytesIO(content)) as packed:
        content = packed.read(_MOST_BYTES)
    magic, *sizes = struct.unpack_from(f">{1 + axes}I", content)
    values = np.frombuffer(content, np.uint8, offset=4 * (1 + axes))
    if magic == 0x800 + axes and math.prod(sizes) == values.size:
      return values.reshape(sizes)
    why = "its header is another"
  except (OSError, EOFError, ValueError, struct.error, zlib.error) as e:
    why = str(e)
  raise UserError(
    f"{path} is no idx file of {axes} axes, or damaged ({why}). Get it again."
  )


@dataclasses.dataclass(frozen=True)
class Spec:
  """A data set: where its images come from, and what it is."""

  open: Callable[[Request], Source]
  takes: Sequence[str]  # Further flags.
  # Config -> its images without a split, by which numbers to hold out become
  # shares; 0 if unknown. The first is the default.
  releases: Mapping[str, int]
  version: str = "1.0.0"  # TFDS's, of the sets that it knows.
  # Of `journal.Options`, where the user gives no other.
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # What a record calls the number of its class; ReaL's `real_label` is beside.
  label: str = "label"
  side: int = 0  # Of gray images that all have one size, 0 for others.


_ONE, _TAR, _WNIDS = (
  {"": 0},
  ("accept_truncated",),
  ("accept_truncated", "classes"),
)
_WHOLE = {"winter21": 13_153_500, "fall11": 14_197_122}
_V2 = {"matched-frequency": 0, "threshold-0.7": 0, "topimages": 0}
# Drawn from all images, as in the reference (Kolesnikov et al. 2020).
_DRAWN = {"hold_out": {"test": 25_600, "validation": 25_600}}
# TFDS's is shuffled, and recipes choose by slices of it.
_SHUFFLED = {"shuffle": True}
_OWN = {"hold_out": {"validation": 0.1}, "upright": True, "white_ground": True}
SETS = {
  "imagenet21k": Spec(_imagenet21k, _WNIDS, _WHOLE, options=_DRAWN),
  "imagenet21k_p": Spec(_imagenet21k, _WNIDS, dict.fromkeys(_WHOLE, 0)),
  "imagenet2012": Spec(
    _imagenet2012, _TAR, {"": 1_281_167}, "5.1.0", _SHUFFLED
  ),
  "imagenet2012_real": Spec(_imagenet2012, _TAR, _ONE, label="original_label"),
  "imagenet_v2": Spec(_imagenet_v2, _TAR, _V2, "3.0.0"),
  "mnist": Spec(_idx, (), _ONE, "3.0.1", side=SIDE),
  "fashion_mnist": Spec(_idx, (), _ONE, "3.0.1", side=SIDE),
  "folder": Spec(_folder, ("name", "classes"), _ONE, options=_OWN),
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
