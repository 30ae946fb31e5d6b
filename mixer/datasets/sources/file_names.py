"""What the names of files and folders say about a source of images."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from mixer.errors import UserError

WNID = re.compile(r"n\d{8}")
_WNID_TAR = re.compile(r"(n\d{8})\.tar")
# Control characters, and those at which lines of a list of classes would end.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def readable(name: str) -> str:
  r"""The name as it goes into data sets and lists.

  Unicode's composed form (NFC), as macOS may hand out another one than Linux.
  Bytes that aren't UTF-8, and control characters, become escapes: "caf\xe9".
  """
  if name.isascii() and name.isprintable():
    return name
  valid = os.fsencode(name).decode("utf-8", "backslashreplace")
  escaped = _CONTROL.sub(
    lambda match: match[0].encode("unicode_escape").decode(), valid
  )
  return unicodedata.normalize("NFC", escaped)


def wnid_of_tar(name: str) -> str:
  """The class of "n01440764.tar"; "" for other names."""
  match = _WNID_TAR.fullmatch(name)
  return match[1] if match else ""


def stored_classes(data_dir: str | Path) -> tuple[str, ...]:
  """The classes of the data set that is prepared in a folder; () if none is.

  They go before those of the source, which may have changed since, or be gone.
  """
  try:
    text = Path(data_dir, "label.labels.txt").read_text("utf-8")
  except OSError:
    return ()
  return tuple(text.split("\n")[:-1])


def no_class(name: str, classes: Collection[str]) -> str:
  """The error of an image of a class that isn't in the list."""
  return f"its class {name} is not among the {len(classes):,} of the data set"


def missing(classes: Collection[str], found: Collection[str]) -> list[str]:
  """The warning of classes of a list that a source doesn't have, if any."""
  lacking = [name for name in classes if name not in found]
  if not lacking:
    return []
  return [
    f"{len(lacking):,} of the {len(classes):,} classes have no image in the "
    f"source, such as {lacking[0]}"
  ]


def no_images(passed_over: Counter[str]) -> list[str]:
  """The warnings of what `is_image` has counted."""
  return [
    f"{count:,} files {suffix!r} are no images by their names and are left out"
    for suffix, count in sorted(passed_over.items())
  ]


def untrained(names: Sequence[str]) -> str:
  """The warning of classes that can't be learned."""
  return f"{len(names):,} classes have images, but none in train: {some(names)}"


def some(names: Sequence[str]) -> str:
  """Names for a sentence, the first of them if there are many."""
  return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def fingerprint(paths: Iterable[Path], *more: object) -> str:
  """Tells files by place, size and time of change.

  Args:
    paths: existing files or folders.
    *more: whatever else makes a difference.
  """
  digest = hashlib.blake2b(repr(more).encode(), digest_size=16)
  for path in paths:
    stat = path.stat()
    digest.update(os.fsencode(path.resolve()))
    digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
  return digest.hexdigest()


def read_classes(path: Path, *, wnids: bool = True) -> tuple[str, ...]:
  """Reads a list of classes, one a line; empty lines and "# ..." don't count.

  Args:
    path: a text file.
    wnids: they are WordNet ids; what follows an id in its line is ignored.

  Returns:
    The classes, in the order of the file.

  Raises:
    UserError: no such file, a line that isn't an id, a class twice.
  """
  try:
    # Editors of Windows begin it with a byte-order mark.
    lines = path.read_text("utf-8-sig").splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f"the list of classes {path} can't be read: {e}.") from e
  found = []
  for number, line in enumerate(lines, 1):
    line = line.strip()
    if not line or line.startswith("#"):
      continue
    if not wnids:
      found.append(readable(line))
      continue
    first = re.split(r"[\s,;]", line, maxsplit=1)[0]
    if not WNID.fullmatch(first):
      raise UserError(
        f"line {number} of the list of classes {path} is {line[:60]!r}; each "
        "line has to begin with a WordNet id such as n01440764."
      )
    found.append(first)
  twice = [name for name, count in Counter(found).items() if count > 1]
  if twice or not found:
    raise UserError(
      f"the list of classes {path} "
      + (f"names {twice[0]} twice" if twice else "is empty")
      + "; give every class one line."
    )
  return tuple(found)
