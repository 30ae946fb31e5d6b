"""The data sets that are prepared from images that the user has.

`SETS` is the table, and each entry's function opens what the user has of a set
as a `Source`.
"""

import contextlib
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mixer.datasets import wordnet
from mixer.datasets.prepare import forms, small, sources, tars
from mixer.datasets.prepare.request import Request, Spec
from mixer.datasets.prepare.sources import Member, Source
from mixer.errors import UserError

# Of ImageNet-21K-P's archive, the classes that it leaves out.
_SMALL_CLASSES = "imagenet21k_small_classes"
# But ILSVRC's of other tasks.
_ARCHIVE = re.compile(r"(?!.*_(test|train_t3|bbox)).*\.(tar|tar\.gz|tgz)")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def _archives(
  request: Request,
  layout: tars.Layout,
  listed: str,
  labels: Sequence[Path] = (),
) -> Source:
  """Its folder, an archive, or any number of CLASS.tar or ILSVRC's.

  Also WebDataset shards and parquet files, whose classes are WordNet ids.
  """
  classes = request.classes(listed)
  if hub := forms.shards(request.paths):
    return forms.of_hub(hub, classes, request.accept_truncated)
  found: set[Path] = set()
  for path in request.paths:
    inside = sources.inside(path)[1] if path.is_dir() else []
    inside = [file for file in inside if _ARCHIVE.fullmatch(file.name)]
    found |= {*inside} or {path}
  # In this order whatever order they were named in.
  paths = sorted(found - {*labels}, key=lambda path: path.name)
  names = [path.name for path in paths]
  wnids = [*map(sources.wnid_of_tar, names)]
  if all(wnids):
    classes = classes or sorted({*wnids})
  elif len(names) > 1 and not all(n.startswith("ILSVRC") for n in names):
    raise request.unfit(f"it has {len(names)} archives: {sources.some(names)}")
  more = request.accept_truncated, sources.fingerprint(labels)
  return tars.source(paths, layout, classes, *more)


def _folder(request: Request) -> Source:
  """Images of the user's own: folders of classes, a table, or a hub's form."""
  classes, (path, *more) = request.classes(), request.paths
  if hub := forms.shards(request.paths):
    return forms.of_hub(hub, classes, request.accept_truncated)
  if more:
    raise request.unfit(f"--source is given {1 + len(more)} times")
  if path.suffix.lower() in (".csv", ".tsv"):
    return forms.table(path, classes, request.columns, request.seed)
  return sources.own_folders(path, classes, request.seed)


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

  return _archives(request, layout, request.release + "_p" * processed)


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

  return _archives(request, layout, "imagenet1k", listed)


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

  return _archives(request, layout, "imagenet1k")


_ONE, _TAR, _WNIDS = (
  {"": 0},
  ("accept_truncated",),
  ("accept_truncated", "classes"),
)
_WHOLE = {"winter21": 13_153_500, "fall11": 14_197_122}
_V2 = {"matched-frequency": 0, "threshold-0.7": 0, "topimages": 0}
# Drawn from all images, as in the reference (Kolesnikov et al. 2020).
_DRAWN = {"hold_out": {"test": 25_600, "validation": 25_600}}
# TFDS's are shuffled, and recipes and VTAB choose by slices of them.
_SHUFFLED = {"shuffle": ["train"]}
_ALL = {"shuffle": ["train", "validation", "test"]}
_OWN = {"hold_out": {"validation": 0.1}, "upright": True, "white_ground": True}
SETS = {
  "imagenet21k": Spec(_imagenet21k, _WNIDS, _WHOLE, options=_DRAWN),
  "imagenet21k_p": Spec(_imagenet21k, _WNIDS, dict.fromkeys(_WHOLE, 0)),
  "imagenet2012": Spec(
    _imagenet2012, _TAR, {"": 1_281_167}, "5.1.0", _SHUFFLED
  ),
  "imagenet2012_real": Spec(_imagenet2012, _TAR, _ONE, label="original_label"),
  "imagenet_v2": Spec(_imagenet_v2, _TAR, _V2, "3.0.0"),
  "mnist": Spec(small.idx, (), _ONE, "3.0.1", shape=(28, 28, 1)),
  "fashion_mnist": Spec(small.idx, (), _ONE, "3.0.1", shape=(28, 28, 1)),
  "cifar10": Spec(small.cifar, (), _ONE, "3.0.2", _ALL, shape=(32, 32, 3)),
  "cifar100": Spec(small.cifar, (), _ONE, "3.0.2", _ALL, shape=(32, 32, 3)),
  "oxford_iiit_pet": Spec(small.pets, _TAR, _ONE, "4.0.0", _ALL),
  "oxford_flowers102": Spec(small.flowers, _TAR, _ONE, "2.1.1", _ALL),
  "folder": Spec(
    *(_folder, ("name", "classes", "columns", "accept_truncated"), _ONE),
    options=_OWN,
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
