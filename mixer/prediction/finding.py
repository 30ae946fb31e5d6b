"""Files that a command line names: by themselves, by folders, by lists."""

import codecs
import errno
import glob
import os
import pathlib
import sys
from collections.abc import Sequence

from mixer import image_files
from mixer.errors import UserError

# Bytes of a list; that of ImageNet-21k has 8e8.
_LARGEST = 1 << 30
_LIST = "expected a file with the path of an image on each line, or - for stdin"


def find(names: Sequence[str], listed: str = "") -> tuple[list[str], list[str]]:
  """The files that are named, in their order.

  Args:
    names: files, which needn't be there, folders, and patterns; a file that
      several of them name counts once.
    listed: a file with a path on each line, taken as they are; "-" for stdin,
      "" for none. These come last.

  Returns:
    The files; and those of the folders and patterns in which there is none.

  Raises:
    UserError: there is none at all, or a folder or the list can't be read.
  """
  found: list[str] = []
  empty = []
  for name in names:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
      own = [entry.path for _, entry in image_files.find(path)]
    elif glob.has_magic(path) and not os.path.exists(path):
      matches = sorted(glob.glob(path, recursive=True))
      own = [match for match in matches if os.path.isfile(match)]
    else:
      own = [path]
    found += own
    empty += [] if own else [name]
  found = list(dict.fromkeys(found)) + (_lines(listed) if listed else [])
  if not found:
    where = ", ".join([*names, *([f"--files={listed}"] if listed else [])])
    raise UserError(
      f"there is no image in {where}: expected files, folders with images such "
      "as .jpg or .png, patterns such as 'photos/*.jpg', or a list of files by "
      "--files."
    )
  return found, empty


def _lines(path: str) -> list[str]:
  try:
    if path == "-":
      if sys.stdin is None:
        raise OSError(errno.EBADF, "stdin is closed")
      data = sys.stdin.buffer.read(_LARGEST + 1)
    else:
      with pathlib.Path(path).expanduser().open("rb") as f:
        data = f.read(_LARGEST + 1)
  except OSError as e:
    raise UserError(
      f"--files={path} can't be read: {e.strerror or e}; {_LIST}."
    ) from e
  if b"\0" in data or len(data) > _LARGEST:
    raise UserError(f"--files={path} is no list of files; {_LIST}.")
  # Editors of Windows begin it with a byte-order mark.
  data = data.removeprefix(codecs.BOM_UTF8)
  # Names of files are bytes; only a line's end is no part of one.
  lines = (line.removesuffix(b"\r") for line in data.split(b"\n"))
  return [os.fsdecode(line) for line in lines if line]
