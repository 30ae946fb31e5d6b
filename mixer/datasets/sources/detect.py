"""Finds out in which form a set of images lies on disk."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from mixer import image_files
from mixer.datasets.sources import (
  byte_stream,
  class_folders,
  file_names,
  folder_walk,
  layouts,
  synset_folders,
  tar_forms,
  tar_stream,
)
from mixer.datasets.sources.member import Source
from mixer.errors import UserError

Kind = Literal["imagenet21k", "imagenet21k_p", "folder"]

_EXPECTED = {
  "imagenet21k": (
    "Expected is one of: winter21_whole.tar.gz or fall11_whole.tar; a folder "
    "with one tar a class (n01440764.tar, ...), or those tars; a folder with "
    "one folder a class (n01440764/*.JPEG, ...)"
  ),
  "imagenet21k_p": (
    "Expected is one of: imagenet21k_resized.tar.gz; a folder with the folders "
    "imagenet21k_train and imagenet21k_val (or train and val), which have one "
    "folder a class (n01440764/*, ...); those two folders"
  ),
  "folder": layouts.EXPECTED,
}
_PACKED = {
  b"PK\x03\x04": "zip",
  b"7z\xbc\xaf": "7-Zip",
  b"Rar!": "RAR",
  b"\x28\xb5\x2f\xfd": "Zstandard",
}
# A folder that holds nothing but another one is looked through so deep.
_DEPTH = 4


def detect(
  paths: Sequence[Path],
  kind: Kind,
  *,
  classes: Collection[str] | None = None,
  tolerate_truncation: bool = False,
  seed: int = 0,
) -> Source:
  """Opens a source of images, whatever its form.

  Args:
    paths: one file or folder; or the tars of ImageNet-21k's classes; or the two
      folders of ImageNet-21K-P.
    kind: of the data set. "folder" lists all images; the others list none.
    classes: that there can be, in the order of labels; None for those that are
      there, sorted. An image of another class becomes a member with an error.
    tolerate_truncation: take what is there of a tar that breaks off, with a
      warning, where else reading ends in a UserError.
    seed: of the order of a "folder".

  Raises:
    UserError: what is there fits no form.
  """
  if not paths:
    raise UserError(f"no source of images is named. {_EXPECTED[kind]}.")
  paths = [Path(os.path.expanduser(path)) for path in paths]
  for path in paths:
    if not path.exists():
      raise UserError(f"the source {path} does not exist. {_EXPECTED[kind]}.")
  if len(paths) > 1:
    return _several(paths, kind, classes, tolerate_truncation)
  (path,) = paths
  if path.is_dir():
    if kind == "folder":
      return class_folders.ClassFolders(
        path, layouts.user_splits(path), classes, seed
      )
    return _folder(path, kind, classes, tolerate_truncation)
  if kind == "folder":
    raise UserError(
      f"the source {path} is {_what(path)}, not a folder. {_EXPECTED[kind]}; "
      "unpack archives first."
    )
  return _tar(path, kind, classes, tolerate_truncation)


def _several(
  paths: list[Path],
  kind: Kind,
  classes: Collection[str] | None,
  tolerate_truncation: bool,
) -> Source:
  if kind == "imagenet21k" and all(
    path.is_file() and file_names.wnid_of_tar(path.name) for path in paths
  ):
    twice = len(paths) - len({path.name for path in paths})
    if not twice:
      return tar_forms.TarsOfClasses(paths, classes, tolerate_truncation)
  if kind == "imagenet21k_p" and all(path.is_dir() for path in paths):
    splits = {layouts.SPLITS.get(path.name.lower(), ""): path for path in paths}
    if len(paths) == 2 and set(splits) == {"train", "validation"}:
      return synset_folders.SynsetFolders(
        {split: splits[split] for split in ("train", "validation")}, classes
      )
  raise UserError(
    f"the sources {', '.join(map(str, paths[:4]))}"
    f"{' ...' if len(paths) > 4 else ''} don't go together. {_EXPECTED[kind]}."
  )


def _folder(
  path: Path,
  kind: Kind,
  classes: Collection[str] | None,
  tolerate_truncation: bool,
) -> Source:
  """A source of ImageNet's in a folder, perhaps within others."""
  top = path
  for _ in range(_DEPTH):
    folders = folder_walk.subfolders(path)
    files = folder_walk.files(path)
    splits = layouts.imagenet_splits(folders)
    if kind == "imagenet21k_p" and "train" in splits:
      return synset_folders.SynsetFolders(splits, classes)
    tars = [file for file in files if file_names.wnid_of_tar(file.name)]
    synsets = folder_walk.synset_folders(path)
    if kind == "imagenet21k":
      if splits:
        raise UserError(
          f"{path} holds {next(iter(splits.values())).name}, as the processed "
          "set does: prepare it as imagenet21k_p. "
          f"For imagenet21k: {_EXPECTED[kind]}."
        )
      if tars and synsets:
        raise UserError(
          f"{path} holds both {len(tars):,} tars of classes, such as "
          f"{tars[0].name}, and {len(synsets):,} folders of classes, such as "
          f"{synsets[0].name}. Move one kind elsewhere: it may have been "
          "unpacked in part."
        )
      if tars:
        return tar_forms.TarsOfClasses(tars, classes, tolerate_truncation)
      if synsets:
        return synset_folders.SynsetFolders({"": path}, classes)
    archives = [
      file
      for file in files
      if file.name.lower().endswith((".tar", ".tar.gz", ".tgz"))
    ]
    if len(archives) == 1 and not folders:
      return _tar(archives[0], kind, classes, tolerate_truncation)
    if len(folders) != 1 or tars or synsets:
      break
    path = folders[0]
  raise UserError(
    f"{top} does not look like {kind}: it holds {folder_walk.content(top)}. "
    f"{_EXPECTED[kind]}."
  )


def _tar(
  path: Path,
  kind: Kind,
  classes: Collection[str] | None,
  tolerate_truncation: bool,
) -> Source:
  """A source of ImageNet's in one tar; its first entries tell which form."""
  try:
    with byte_stream.Stream(path) as stream:
      for entry in tar_stream.entries(stream):
        inner = PurePosixPath(entry.name)
        if file_names.wnid_of_tar(inner.name) and kind == "imagenet21k":
          return tar_forms.TarOfTars(path, classes, tolerate_truncation)
        if file_names.wnid_of_tar(inner.name):
          break
        if image_files.is_image(inner.name):
          return _tar_of_folders(
            path, inner, kind, classes, tolerate_truncation
          )
  except OSError as e:
    raise UserError(f"{path} can't be read: {e.strerror}.") from e
  except (byte_stream.BrokenError, tar_stream.DamagedError) as e:
    raise UserError(
      f"the source {path} is {_what(path)}: {e}. {_EXPECTED[kind]}."
    ) from e
  raise UserError(
    f"the tar {path} holds no images as {kind} has them. {_EXPECTED[kind]}."
  )


def _tar_of_folders(
  path: Path,
  first: PurePosixPath,
  kind: Kind,
  classes: Collection[str] | None,
  tolerate_truncation: bool,
) -> Source:
  parts = {part.lower() for part in first.parts[:-1]}
  if file_names.wnid_of_tar(path.name):
    raise UserError(
      f"{path} is the tar of one class. {_EXPECTED['imagenet21k']}."
    )
  if kind == "imagenet21k_p":
    layout = layouts.processed
  elif parts & (layouts.SPLITS.keys() | {layouts.SMALL_CLASSES}):
    raise UserError(
      f"{path} holds {first}, as the processed set does: prepare it as "
      f"imagenet21k_p. For imagenet21k: {_EXPECTED[kind]}."
    )
  else:
    layout = layouts.whole
  return tar_forms.TarOfFolders(path, layout, classes, tolerate_truncation)


def _what(path: Path) -> str:
  """What a file is, by its first bytes."""
  if not path.is_file():  # A pipe would be waited for.
    return "no regular file"
  try:
    with open(path, "rb") as file:
      begin = file.read(16)
  except OSError as e:
    return f"a file that can't be read ({e.strerror})"
  if not begin:
    return "an empty file"
  for magic, name in _PACKED.items():
    if begin.startswith(magic):
      return f"a {name} archive, which has to be unpacked first"
  if path.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
    return "a tar that is damaged, or none"
  return f"a file that begins with {begin!r}, no tar"
