"""Files that are there whole or not at all, and usable when cut short."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from mixer import errors, files


class Partial:
  """A file that is written beside its place, as `NAME.partial`.

  What can't be replaced, as a device or a pipe, is written in place.

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
    files.make_parent(self.path)
    self._in_place = files.in_place(self.path)
    self.part = self.path
    with files.writing(self.path):
      if self.path.is_dir():
        raise IsADirectoryError
      if not self._in_place:
        # Of a link it is the target that is replaced.
        self._target = pathlib.Path(os.path.realpath(self.path))
        self.part = self._target.with_name(f"{self._target.name}.partial")
        self.part.open("wb").close()

  def commit(self) -> None:
    """Puts it into its place; one that is there is replaced.

    Raises:
      UserError: the disk refuses.
    """
    if self._in_place:
      return
    with files.writing(self.path):
      with open(self.part, "rb") as f:
        os.fsync(f.fileno())
      self.part.replace(self._target)

  def open(self) -> IO[bytes]:
    """Opens it for writing, from its start."""
    with files.writing(self.path):
      return files.open_in_place(self.part)

  def drop_if_empty(self) -> None:
    """Removes it, if nothing is in it."""
    with contextlib.suppress(OSError):
      if not self.part.stat().st_size:
        self.drop()

  def drop(self) -> None:
    """Removes it, if it is there."""
    if not self._in_place:
      with contextlib.suppress(OSError):
        self.part.unlink(missing_ok=True)


def close(file: IO[Any]) -> None:
  """Closes a file, whatever becomes of what isn't on the disk."""
  with contextlib.suppress(OSError):
    file.close()


@contextlib.contextmanager
def text(path: str, exact: bool = False) -> Iterator[Callable[[str], None]]:
  """Opens a text file, or stdout, for writing piece by piece.

  Left by an exception, a file stays `NAME.partial`, if anything is in it.
  Names of files come out as the bytes that they are.

  Args:
    path: of the file; "" for stdout.
    exact: it is for programs: only a terminal gets it made safe.

  Yields:
    A function that writes a piece at once.

  Raises:
    UserError: the disk refuses, here or in the function.
  """
  if not path:
    with errors.safe_output() as out:
      at_once = functools.partial(print, end="", flush=True)
      yield out.write_exactly if exact else at_once
    return
  file = Partial(path)
  with contextlib.ExitStack() as stack:
    stack.callback(file.drop_if_empty)
    out = file.open()
    stack.callback(close, out)

    def write(piece: str) -> None:
      with files.writing(file.path):
        out.write(piece.encode("utf-8", errors.NAMES))
        out.flush()

    yield write
    with files.writing(file.path):
      out.close()
    file.commit()
