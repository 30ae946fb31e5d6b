"""Reads folders of images."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from mixer import image_files, images
from mixer.datasets.sources import file_names
from mixer.errors import UserError


def has_image(folder: str) -> bool:
  """Whether `images_below` finds any, without listing all."""
  with contextlib.suppress(OSError), os.scandir(folder) as found:
    if any(image_files.is_image(entry.name) for entry in found):
      return True
  return next(image_files.find(folder), None) is not None


def size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
  """A file's bytes and its time of change in ns; zeros for a broken link."""
  try:
    info = entry.stat()
  except OSError:
    return 0, 0
  return info.st_size, info.st_mtime_ns


def read(path: str) -> tuple[bytes, str]:
  """A file's bytes, and why they can't be read, "" if they can."""
  try:
    return images.read(path), ""
  except images.ImageError as e:
    return b"", f"the file can't be read: {e}"


def synset_folders(parent: Path) -> list[Path]:
  """The folders named by WordNet ids, sorted.

  Raises:
    UserError: the parent can't be listed.
  """
  return [
    path for path in subfolders(parent)
    if file_names.WNID.fullmatch(path.name)
  ]  # fmt: skip


def subfolders(parent: Path) -> list[Path]:
  """The folders in a folder that aren't hidden, sorted.

  Raises:
    UserError: it can't be listed.
  """
  try:
    with os.scandir(parent) as found:
      names = [
        entry.name
        for entry in found
        if image_files.is_folder(entry)
        and not image_files.is_hidden(entry.name)
      ]
  except OSError as e:
    raise UserError(f"{parent} can't be listed: {e.strerror}.") from e
  return [parent / name for name in sorted(names)]


def no_images(folders: Sequence[str]) -> str:
  """The warning of classes without images."""
  return (
    f"{len(folders):,} class folders hold no image and are kept as classes: "
    f"{file_names.some(folders)}"
  )


def files(parent: Path) -> list[Path]:
  """What isn't a folder in a folder and isn't hidden, sorted.

  Raises:
    UserError: it can't be listed.
  """
  try:
    names = [
      name for name in os.listdir(parent) if not image_files.is_hidden(name)
    ]
  except OSError as e:
    raise UserError(f"{parent} can't be listed: {e.strerror}.") from e
  paths = [parent / name for name in sorted(names)]
  return [path for path in paths if not path.is_dir()]


def content(path: Path) -> str:
  """The names in a folder, for a sentence."""
  names = sorted(os.listdir(path))
  if not names:
    return "nothing"
  return ", ".join(names[:4]) + (
    f" and {len(names) - 4:,} more" if len(names) > 4 else ""
  )
