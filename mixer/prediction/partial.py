"""Files that are there whole or not at all, and usable when cut short."""

import contextlib
import functools
import io
import os
import pathlib
import sys
from collections.abc import Callable, Iterator

from mixer.errors import UserError
from mixer.files import writing


class Partial:
  """A file that is written beside its place, as `NAME.partial`.

  Attributes:
    path: where it is to be in the end.
    part: where it is written until then.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Makes an empty one.

    Raises:
      UserError: it can't be written there; an older file stays.
    """
    self.path = pathlib.Path(path).expanduser()
    self.part = self.path.with_name(f"{self.path.name}.partial")
    if self.path.is_dir():
      raise UserError(
        f"{path} can't be written: it is a folder; name a file in it."
      )
    with writing(self.path):
      self.part.open("wb").close()

  def commit(self) -> None:
    """Puts it into its place; one that is there is replaced.

    Raises:
      UserError: the disk refuses.
    """
    with writing(self.path):
      with open(self.part, "rb") as f:
        os.fsync(f.fileno())
      self.part.replace(self.path)

  def drop(self) -> None:
    """Removes it, if it is there."""
    with contextlib.suppress(OSError):
      self.part.unlink(missing_ok=True)


@contextlib.contextmanager
def text(path: str) -> Iterator[Callable[[str], None]]:
  """Opens a text file, or stdout, for writing piece by piece.

  Left by an exception, a file stays `NAME.partial`, if anything is in it.
  Names of files come out as the bytes that they are.

  Args:
    path: of the file; "" for stdout.

  Yields:
    A function that writes a piece at once.

  Raises:
    UserError: the disk refuses, here or in the function.
  """
  if not path:
    if isinstance(sys.stdout, io.TextIOWrapper):
      sys.stdout.reconfigure(errors="surrogateescape")
    yield functools.partial(print, end="", flush=True)
    return
  file = Partial(path)
  with writing(file.path):
    out = open(
      file.part, "w", encoding="utf-8", errors="surrogateescape", newline=""
    )

  def write(piece: str) -> None:
    with writing(file.path):
      out.write(piece)
      out.flush()

  try:
    with out:
      yield write
    file.commit()
  finally:
    with contextlib.suppress(OSError):
      if not file.part.stat().st_size:
        file.drop()
