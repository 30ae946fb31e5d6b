"""Finds and reads the images in folders."""

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mixer import images
from mixer.datasets.sources import file_format, file_names
from mixer.errors import UserError


def images_below(
  folder: str,
  passed_over: Counter[str] | None = None,
  hidden: list[str] | None = None,
  _above: tuple[tuple[int, int], ...] = (),
) -> Iterator[tuple[str, os.DirEntry[str]]]:
  """Finds the images of a folder and of those in it.

  Symbolic links are followed, but for those to a folder that we come from.

  Args:
    folder: where to begin.
    passed_over: counts the suffixes of files that are taken for no images
      without being known for something else.
    hidden: gets the paths of `hidden_in` all of these folders.

  Yields:
    The way from `folder`, with "/", and the entry; in the order of the names.

  Raises:
    UserError: a folder can't be listed.
  """
  try:
    # Resolved: else the folders above `a/..` would be a, and the folder itself.
    _above = _above or tuple(map(_identity, Path(folder).resolve().parents))
    here = _identity(folder)
    with os.scandir(folder) as found:
      found = sorted(found, key=lambda entry: entry.name)
  except OSError as e:
    raise UserError(f"{folder} can't be listed: {e.strerror}.") from e
  if here in _above:
    return
  if hidden is not None:
    hidden += hidden_in(found)
  for entry in found:
    if file_names.is_hidden(entry.name):
      continue
    if _is_folder(entry):
      below = images_below(entry.path, passed_over, hidden, (*_above, here))
      for way, image in below:
        yield f"{entry.name}/{way}", image
    elif file_names.is_image(entry.name, passed_over) and _is_file(entry):
      yield entry.name, entry


def hidden_in(entries: Iterable[os.DirEntry[str]]) -> list[str]:
  """Paths of what is hidden and may be meant: folders, files of images.

  What systems leave behind ("._a.jpg", "__MACOSX") isn't.
  """
  return [
    entry.path
    for entry in entries
    if entry.name.startswith(".")
    and not entry.name.startswith("._")
    and (_is_folder(entry) or file_format.named(entry.name))
  ]


def _identity(folder: str | Path) -> tuple[int, int]:
  info = os.stat(folder)
  return info.st_dev, info.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
  try:
    return entry.is_dir()
  except OSError:
    return False  # A link to itself.


def has_image(folder: str) -> bool:
  """Whether `images_below` finds any, without listing all."""
  with contextlib.suppress(OSError), os.scandir(folder) as found:
    if any(file_names.is_image(entry.name) for entry in found):
      return True
  return next(images_below(folder), None) is not None


def _is_file(entry: os.DirEntry[str]) -> bool:
  try:
    return stat.S_ISREG(entry.stat().st_mode)
  except OSError:
    return True  # A broken link: a member that can't be read, not nothing.


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
        if _is_folder(entry) and not file_names.is_hidden(entry.name)
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
      name for name in os.listdir(parent) if not file_names.is_hidden(name)
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
