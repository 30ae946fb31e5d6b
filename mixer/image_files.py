"""Image files by content and by name, and finding them in folders."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixer.errors import UserError

# Formats: how their files begin, the first match counts; and their suffixes.
_FORMATS = {
  "jpeg": (rb"\xff\xd8\xff", "jpg jpeg jpe jfif"),
  "png": (rb"\x89PNG\r\n\x1a\n", "png"),
  "gif": (rb"GIF8[79]a", "gif"),
  "webp": (rb"RIFF....WEBP", "webp"),
  # With the size of one of its second headers.
  "bmp": (rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", "bmp dib"),
  "tiff": (rb"II[*+]\0|MM\0[*+]", "tif tiff"),
  "ppm": (rb"P[1-6][\s#]", "ppm pgm pbm pnm"),
  "avif": (rb"....ftyp(avi[fs]|m[is]f1.{4}(....){0,9}avi[fs])", "avif"),
  "heic": (rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)", "heic heif"),
  "jpeg2000": (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "jp2 j2k"),
  "ico": (rb"\0\0\01\0", "ico"),
  "tga": (rb"(?!)", "tga"),  # It begins with nothing of its own.
}
_MAGIC = {n: re.compile(magic, re.DOTALL) for n, (magic, _) in _FORMATS.items()}
_SUFFIXES = {s: n for n, (_, all_) in _FORMATS.items() for s in all_.split()}
# Files that often stand beside images and are passed over silently: suffixes,
# and names without one.
_OTHERS = frozenset(
  "txt csv tsv json jsonl md html htm xml yaml yml toml db ini log py sh pdf "
  "mat npy npz pkl pickle parquet zip tar gz tgz md5 sha1 sha256 lock "
  "readme license licence copying notice authors changelog makefile".split()
)


def sniff(data: bytes) -> str:
  """The format of a file by its first bytes; "" if unknown."""
  return next((name for name, m in _MAGIC.items() if m.match(data)), "")


def named(name: str) -> str:
  """The format of a file by its suffix; "" if unknown."""
  return _SUFFIXES.get(os.path.splitext(name)[1][1:].lower(), "")


def is_hidden(name: str) -> bool:
  """Whether no one means it as data: ".DS_Store", "._a.jpg", "__MACOSX"."""
  return name.startswith(".") or name in ("__MACOSX", "@eaDir", "lost+found")


def is_image(name: str, passed_over: Counter[str] | None = None) -> bool:
  """Whether a file is an image by its name: the suffix of one, or none at all.

  `passed_over` counts the suffixes that are neither an image's nor known.
  """
  _, dot, suffix = name.lower().rpartition(".")
  if is_hidden(name):
    return False
  if suffix in _SUFFIXES or not dot:
    return suffix not in _OTHERS
  if passed_over is not None and suffix not in _OTHERS:
    passed_over[f".{suffix}"] += 1
  return False


def find(
  folder: str,
  passed_over: Counter[str] | None = None,
  _above: tuple[str, ...] = (),
) -> Iterator[tuple[str, os.DirEntry[str]]]:
  """Finds the image files below a folder, in the order of names.

  Yields the path below `folder`, with "/", and the entry. Symbolic links are
  followed, except to a folder that contains this one. `passed_over` is as in
  `is_image`.
  """
  try:
    here = os.path.realpath(folder)
    with os.scandir(folder) as entries:
      entries = sorted(entries, key=lambda entry: entry.name)
  except OSError as e:
    raise UserError(f"{folder} can't be listed: {e.strerror}.") from e
  above = _above or tuple(map(str, Path(here).parents))
  if here in above:
    return
  for entry in entries:
    if is_hidden(entry.name):
      continue
    if _is_folder(entry):
      for way, image in find(entry.path, passed_over, (*above, here)):
        yield f"{entry.name}/{way}", image
    # A broken link is an image that can't be read, not nothing.
    elif is_image(entry.name, passed_over):
      if entry.is_symlink() or entry.is_file():
        yield entry.name, entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # A link to itself.
    return False


def expand(names: Sequence[str]) -> tuple[list[str], list[str]]:
  """The image files that files, folders and patterns name, each once, in order.

  Also those of the folders and patterns in which there is none. Raises
  UserError if there is none at all, or a folder can't be listed.
  """

  def named_by(path: str) -> list[str]:
    if os.path.isdir(path):
      return [entry.path for _, entry in find(path)]
    if glob.has_magic(path) and not os.path.exists(path):
      return sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
    return [path]

  each = {name: named_by(os.path.expanduser(name)) for name in names}
  found = dict.fromkeys(path for own in each.values() for path in own)
  if names and not found:
    raise UserError(
      f"there is no image in {', '.join(names)}: expected files, folders with "
      "images such as .jpg or .png, or patterns such as 'photos/*.jpg'."
    )
  return list(found), [name for name, own in each.items() if not own]
