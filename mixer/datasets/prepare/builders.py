"""The data sets that are prepared from images that the user has."""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mixer.datasets import catalog, wordnet
from mixer.datasets.prepare import idx, sources, tars
from mixer.datasets.prepare.sources import Member, Source
from mixer.errors import UserError

# Of ImageNet-21K-P's archive, the classes that it leaves out.
_SMALL_CLASSES = "imagenet21k_small_classes"
_OTHERS = re.compile("_(test|train_t3|bbox)")  # Of ILSVRC's downloads.
_CLASS_NUMBER = re.compile("[0-9]{1,3}")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# Config of TFDS's -> what the archive and its folder have in their names.
_VARIANTS = {
  "matched-frequency": "matched-frequency",
  "threshold-0.7": "threshold0.7",
  "topimages": "top-images",
}


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be prepared, and from what."""

  base: str  # The data set, without its config.
  release: str  # The config, "" if it has none.
  paths: Sequence[Path]  # At least one.
  class_file: Path | None
  accept_truncated: bool
  seed: int

  @property
  def path(self) -> Path:
    """The only one."""
    if len(self.paths) != 1:
      raise UserError(
        f"{self.base} is prepared from one file or folder, and --source is "
        f"given {len(self.paths)} times."
      )
    return self.paths[0]

  def classes(self, listed: str = "") -> Sequence[str] | None:
    """Those of the user's file, else of a list that we have, else None."""
    if self.class_file is not None:
      return sources.read_classes(self.class_file, self.base != "folder")
    return wordnet.classes(listed) if listed else None

  def files(self) -> list[Path]:
    """The files that are named, and archives and labels in named folders."""
    found = []
    for path in self.paths:
      if path.is_dir():
        found += [f for f in _archives(path) if not _OTHERS.search(f.name)]
      else:
        found.append(path)
    return found

  def unfit(self, what: str) -> UserError:
    """The refusal of a source; `what` says what is there."""
    entry = catalog.ENTRIES[self.base]
    where = f" (from {entry.where})" if entry.where else ""
    return UserError(
      f"{what}. For {self.base}, --source has to name {entry.by_hand}{where}."
    )

  def tars(
    self,
    parts: Sequence[tuple[Path, tars.Layout | str]],
    of: str,
    classes: Sequence[str] | None,
    *more: object,
  ) -> tars.Tars:
    """Archives as a source, called "tars of `of`"."""
    begin, paths = "a tar", str(parts[0][0])
    if len(parts) > 1:
      begin, paths = f"{len(parts):,} tars", f"{parts[0][0].parent}"
    what = f"{begin} of {of} ({paths})"
    return tars.Tars(parts, what, classes, self.accept_truncated, *more)


def _archives(folder: Path) -> list[Path]:
  ends = (".tar", ".tar.gz", ".tgz", ".json")
  files = sources.files_in(folder)
  return [path for path in files if path.name.lower().endswith(ends)]


def _folder(request: Request) -> Source:
  """Images of the user's own, in one folder a class."""
  path, seed = request.path, request.seed
  splits = sources.user_splits(path)
  return sources.ClassFolders(path, splits, request.classes(), seed)


def _imagenet21k(request: Request) -> Source:
  """ImageNet-21k or its processed subset, in any form."""
  processed = request.base == "imagenet21k_p"
  listed = {"fall11": "fall11", "winter21": ""}
  if processed:
    listed = {"fall11": "fall11_p", "winter21": "winter21_p"}
  classes, paths = request.classes(listed[request.release]), request.paths
  # A folder may hold nothing but another one, or archives.
  while len(paths) == 1 and paths[0].is_dir():
    folders, archives = sources.subfolders(paths[0]), _archives(paths[0])
    splits = _splits(folders)
    if processed and "train" in splits:
      return sources.synset_folders(splits, classes)
    is_set = any(sources.is_wnid(folder.name) for folder in folders)
    if is_set and not (archives or processed):
      return sources.synset_folders({"": paths[0]}, classes)
    paths = [] if is_set or splits else archives or folders
  if processed and len(paths) == len(_splits(paths)) == 2:
    return sources.synset_folders(_splits(paths), classes)
  wnids = [sources.wnid_of_tar(path.name) for path in paths]
  if not processed and wnids and all(wnids) and len({*wnids}) == len(wnids):
    parts = sorted(zip(paths, wnids, strict=True), key=lambda part: part[1])
    return request.tars(parts, "one class each", classes)
  if len(paths) != 1:
    top = request.paths[0]
    inside = sources.content(top) if top.is_dir() else "one of several files"
    raise request.unfit(f"{top} is or holds {inside}")
  first = tars.first_file(paths[0])
  names = {part.lower() for part in first.parts[:-1]}
  is_of_tars = bool(sources.wnid_of_tar(first.name))
  of_splits = bool(names & {*sources.SPLITS, _SMALL_CLASSES})
  if processed != of_splits or (processed and is_of_tars):
    raise request.unfit(f"{paths[0]} begins with {first}")
  if is_of_tars:
    part = paths[0], tars.tar_of_class
    return request.tars([part], "one tar a class", classes)
  part = paths[0], _by_folder(request.base)
  return request.tars([part], "one folder a class", classes)


def _splits(folders: Sequence[Path]) -> dict[str, Path]:
  """Of folders side by side those for training and validation."""
  named = {sources.SPLITS.get(f.name.lower()): f for f in folders if f.is_dir()}
  return {s: named[s] for s in ("train", "validation") if s in named}


def _by_folder(base: str) -> tars.Layout:
  """The layout of a tar of .../CLASS/FILE, or .../SPLIT/CLASS/FILE."""
  numbered, processed = base == "imagenet_v2", base == "imagenet21k_p"
  names = wordnet.classes("imagenet1k")

  def layout(path: PurePosixPath) -> Member | None:
    if processed and _SMALL_CLASSES in path.parts:
      return None
    folder, name = path.parent.name, "/".join(path.parts[-2:])
    split = "test" if numbered else ""
    is_class = sources.is_wnid(folder)
    if numbered:
      is_class = bool(_CLASS_NUMBER.fullmatch(folder))
    if processed:
      split = sources.SPLITS.get(path.parent.parent.name.lower(), "")
      is_class = is_class and split in ("train", "validation")
      name = f"{split}/{name}"
    if not is_class:
      error = "is in no folder of a class" + " and a split" * processed
      return Member(sources.readable(str(path)), "", error=error)
    class_name = names[int(folder)] if numbered else folder
    return Member(sources.readable(name), class_name, split)

  return layout


def _imagenet2012(request: Request) -> Source:
  """ImageNet-1k, or its validation images with ReaL labels."""
  classes, paths = wordnet.classes("imagenet1k"), request.paths
  real = request.base == "imagenet2012_real"
  if len(paths) == 1 and paths[0].is_dir() and not real:
    splits = _splits(sources.subfolders(paths[0]))
    if "train" in splits:
      # Images without a split are `train`, and are shuffled.
      named = {"" if s == "train" else s: path for s, path in splits.items()}
      return sources.synset_folders(named, classes)
  given = request.files()
  listed = [f for f in given if f.suffix.lower() == ".json" and real]
  labels = _real_labels(request, listed) if real else None
  found: dict[str, tuple[Path, tars.Layout]] = {}
  for path in (f for f in given if f.suffix.lower() != ".json"):
    first = tars.first_file(path)
    if sources.wnid_of_tar(first.name):
      split, layout = "train", tars.tar_of_class
    else:
      split, layout = "validation", _validation(labels)
    if split in found or not (split == "train" or _number(first.name)):
      raise request.unfit(f"{path} begins with {first}, or is a second tar")
    found[split] = path, layout
  # In this order whatever order they were named in.
  wanted = ["validation"] if real else ["train", "validation"]
  parts = [found[split] for split in wanted if split in found]
  if not parts:
    raise request.unfit(f"{sources.some(paths)} holds no tar of its images")
  mark = sources.fingerprint(listed)
  source = request.tars(parts, "its images", classes, mark)
  for split in {*wanted} - found.keys():
    source.warn(f"there is no tar of the {split} images")
  return source


def _number(name: str) -> int:
  """Of "ILSVRC2012_val_00000042.JPEG", 42; 0 for other names."""
  match = _VALIDATION.fullmatch(name)
  return int(match[1]) if match else 0


def _validation(real: list[list[int]] | None) -> tars.Layout:
  """The layout of the tar of validation images."""
  labels = _validation_labels()

  def layout(path: PurePosixPath) -> Member:
    number = _number(path.name)
    if not 1 <= number <= len(labels):
      error = "its name is none of ILSVRC2012_val_00000001.JPEG to _00050000"
      return Member(path.name, "", error=error)
    more = (("real_label", tuple(real[number - 1])),) if real else ()
    return Member(path.name, labels[number - 1], "validation", more=more)

  return layout


def _validation_labels() -> tuple[str, ...]:
  """The WordNet id of each validation image of ImageNet-1k, by number."""
  # Found without the seconds that importing TFDS takes.
  spec = importlib.util.find_spec("tensorflow_datasets")
  assert spec is not None and spec.origin is not None
  folder = Path(spec.origin).parent / "datasets" / "imagenet2012"
  return tuple((folder / "validation_labels.txt").read_text().split())


def _real_labels(request: Request, listed: list[Path]) -> list[list[int]]:
  """The right classes of each validation image, by number."""
  try:
    (path,) = listed
    found: Any = json.loads(path.read_text("utf-8-sig"))
    right = all(k in range(1000) for several in found for k in several)
    if right and len(found) == len(_validation_labels()):
      return found
  except (OSError, ValueError, TypeError, RecursionError):
    pass
  raise request.unfit(
    f"{sources.some(listed) or '--source'} is not a single .json that has, for "
    "each of the 50,000 images, a list of classes from 0 to 999"
  )


def _imagenet_v2(request: Request) -> Source:
  """ImageNet-V2: folders that are named by the numbers of classes."""
  classes, path = wordnet.classes("imagenet1k"), request.path
  folders = sources.subfolders(path) if path.is_dir() else []
  if len(folders) == 1 and not _CLASS_NUMBER.fullmatch(folders[0].name):
    (path,) = folders
    folders = sources.subfolders(path)
  numbered = [f for f in folders if _CLASS_NUMBER.fullmatch(f.name)]
  files = [] if numbered else request.files()
  if len(files) != 1 - bool(numbered):
    raise request.unfit(f"{path} holds {len(files)} archives")
  name = str(tars.first_file(files[0])) if files else path.resolve().name
  for variant, part in _VARIANTS.items():
    if part in name and variant != request.release:
      raise UserError(
        f"{path} is of the variant {variant}: prepare it as "
        f"imagenet_v2/{variant}."
      )
  if numbered:
    parts = [("test", classes[int(f.name)], f.name, f) for f in numbered]
    return sources.LazyFolders(parts, str(path), classes)
  part = files[0], _by_folder(request.base)
  return request.tars([part], "one folder a class", classes)


def _idx(request: Request) -> Source:
  return idx.IdxFiles(request.path, request.base)


@dataclasses.dataclass(frozen=True)
class Builder:
  """A data set: where its images come from, and what it is."""

  open: Callable[[Request], Source]
  # Config -> its images without a split, by which numbers to hold out become
  # shares, and its classes; 0 if unknown. The first is the default.
  releases: Mapping[str, tuple[int, int]]
  version: str = "1.0.0"  # TFDS's, of the sets that it knows.
  # Further flags that it takes.
  takes: Sequence[str] = ("accept_truncated",)
  # Of `build.Options`, where the user gives no other.
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # What a record calls the number of its class; ReaL's `real_label` is beside.
  label: str = "label"
  side: int = 0  # Of gray images that all have one size, 0 for others.


_ONE = {"": (0, 0)}
_LISTED = ("accept_truncated", "classes")
BUILDERS = {
  "imagenet21k": Builder(
    _imagenet21k,
    {"winter21": (13_153_500, 19_167), "fall11": (14_197_122, 21_841)},
    takes=_LISTED,
    # Drawn from all images, as in the reference (Kolesnikov et al. 2020).
    options={"hold_out": {"test": 25_600, "validation": 25_600}},
  ),
  "imagenet21k_p": Builder(
    _imagenet21k,
    {"winter21": (0, 10_450), "fall11": (0, 11_221)},
    takes=_LISTED,
  ),
  "imagenet2012": Builder(
    _imagenet2012,
    {"": (1_281_167, 1000)},
    "5.1.0",
    # TFDS's is shuffled, and recipes choose by slices of it.
    options={"shuffle": True},
  ),
  "imagenet2012_real": Builder(_imagenet2012, _ONE, label="original_label"),
  "imagenet_v2": Builder(
    _imagenet_v2, dict.fromkeys(_VARIANTS, (0, 1000)), "3.0.0"
  ),
  "mnist": Builder(_idx, _ONE, "3.0.1", takes=(), side=idx.SIDE),
  "fashion_mnist": Builder(_idx, _ONE, "3.0.1", takes=(), side=idx.SIDE),
  "folder": Builder(
    _folder,
    _ONE,
    takes=("name", "classes"),
    options={
      "hold_out": {"validation": 0.1},
      "upright": True,
      "white_ground": True,
    },
  ),
}


def open_source(request: Request) -> Source:
  """Opens what the user has of a set, in any of its forms.

  Raises:
    UserError: what is there fits no form, or can't be read.
  """
  try:
    if missing := [path for path in request.paths if not path.exists()]:
      raise request.unfit(f"the source {missing[0]} does not exist")
    return BUILDERS[request.base].open(request)
  except OSError as e:  # No permission, a bad disk.
    raise UserError(
      f"the source {e.filename or request.paths[0]} can't be looked at: "
      f"{e.strerror}."
    ) from e
