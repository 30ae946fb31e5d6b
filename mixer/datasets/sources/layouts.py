"""What the places of files in folders mean: classes and splits."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mixer.datasets.sources import file_names, folder_walk, tar_source
from mixer.errors import UserError

# Names of folders, in small letters -> split.
SPLITS = {
  **dict.fromkeys(("train", "training", "imagenet21k_train"), "train"),
  **dict.fromkeys(("test", "testing"), "test"),
  **dict.fromkeys(("val", "valid", "validation"), "validation"),
  "imagenet21k_val": "validation",
}
# Of ImageNet-21K-P's, the classes that it leaves out.
SMALL_CLASSES = "imagenet21k_small_classes"
EXPECTED = (
  "Expected is a folder DIR with DIR/train/CLASS/* and DIR/test/CLASS/* or "
  "DIR/val/CLASS/*, or with DIR/CLASS/* alone"
)


def imagenet_splits(folders: Sequence[Path]) -> dict[str, Path]:
  """Of folders side by side those of ImageNet-21K-P's splits."""
  splits = {}
  for folder in folders:
    split = SPLITS.get(folder.name.lower())
    if split in ("train", "validation"):
      splits[split] = folder
  return dict(sorted(splits.items()))


def whole(path: PurePosixPath) -> tar_source.Place | None:
  """Where an image of ImageNet-21k belongs: .../WNID/FILE."""
  name = file_names.readable(str(path))
  wnid = path.parent.name
  if not file_names.WNID.fullmatch(wnid):
    return tar_source.Place(name, "", "", "lies in no folder of a class")
  return tar_source.Place(f"{wnid}/{file_names.readable(path.name)}", wnid, "")


def processed(path: PurePosixPath) -> tar_source.Place | None:
  """Where an image of ImageNet-21K-P belongs: .../SPLIT/WNID/FILE."""
  if SMALL_CLASSES in path.parts:
    return None
  name = file_names.readable(str(path))
  wnid = path.parent.name
  split = SPLITS.get(path.parent.parent.name.lower(), "")
  if not file_names.WNID.fullmatch(wnid) or split not in (
    "train",
    "validation",
  ):
    error = "lies in no folder of a class in imagenet21k_train or _val"
    return tar_source.Place(name, "", "", error)
  base = file_names.readable(path.name)
  return tar_source.Place(f"{split}/{wnid}/{base}", wnid, split)


def user_splits(root: Path) -> dict[str, Path]:
  """Split, or "" alone -> its folder, of images in one folder a class."""
  folders = folder_walk.subfolders(root)
  if not folders:
    raise UserError(
      f"{root} has no folders of classes; it holds "
      f"{folder_walk.content(root)}. {EXPECTED}."
    )
  named: dict[str, list[Path]] = {}
  others = []
  for folder in folders:
    split = SPLITS.get(folder.name.lower())
    if split:
      named.setdefault(split, []).append(folder)
    else:
      others.append(folder)
  return {"": root} if not named else _with_splits(root, named, others)


def _with_splits(
  root: Path, named: dict[str, list[Path]], others: list[Path]
) -> dict[str, Path]:
  """As `user_splits`, where folders have the names of splits."""
  for split, same in named.items():
    if len(same) > 1 and not others:
      raise UserError(
        f"{same[0]} and {same[1]} are both taken for the split {split!r}; keep "
        "one."
      )
  if not others:
    if "train" not in named:
      raise UserError(
        f"{root} has {', '.join(f.name for fs in named.values() for f in fs)} "
        f"but no train. {EXPECTED}."
      )
    splits = {split: folders[0] for split, folders in named.items()}
    (train,) = named["train"]
    if not folder_walk.subfolders(train):
      raise UserError(
        f"{train} has no folders of classes; it holds "
        f"{folder_walk.content(train)}. {EXPECTED}."
      )
    # With nothing beside it, it is to be split like a set without splits.
    return splits if len(splits) > 1 else {"": train}
  # Of classes that are called "train" and the like (a railway's), or of splits
  # beside other things?
  nested = [
    folder
    for folders in named.values()
    for folder in folders
    if folder_walk.subfolders(folder)
  ]
  if not nested:
    return {"": root}
  if any(folder_walk.has_image(str(folder)) for folder in others):
    raise UserError(
      f"{root} has {nested[0].name}, as for a split, beside {others[0].name}, "
      "as for a class, with images in it; move one of them elsewhere. "
      f"{EXPECTED}."
    )
  return _with_splits(root, named, [])
