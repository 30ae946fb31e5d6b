"""Where an export goes: written aside, and put there once it is proven.

What stood under the name stays until then, and nothing half-written ever does.
"""

import contextlib
import dataclasses
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator, Sequence

from mixer import files
from mixer.errors import UserError

# Nobody means a folder by them.
_SUFFIXES = (".npz", ".onnx", ".safetensors", ".stablehlo", ".pt", ".pth")


@dataclasses.dataclass(frozen=True)
class Place:
  """Of one export.

  Attributes:
    path: what the user asked for.
    part: where to write instead, a file of that name or a folder that is there.
    is_folder: which of the two.
    members: names of the files that such a folder holds.
  """

  path: pathlib.Path
  part: pathlib.Path
  is_folder: bool
  members: tuple[str, ...]

  def size(self) -> int:
    """Bytes of all files in `part`, or beside it."""
    return sum(f.stat().st_size for f in self._files())

  def commit(self) -> None:
    """Puts what was written where it belongs; then it is there to stay.

    Raises:
      UserError: the disk refuses.
    """
    with files.writing(self.path):
      for file in self._files():
        with open(file, "rb") as f:
          os.fsync(f.fileno())
      if self.is_folder and not self.path.exists():
        self.part.rename(self.path)
      elif files.in_place(self.path) and not self.is_folder:
        shutil.copyfile(self.part, self.path)
      else:
        self._replace()
    files.sync_folder(self.path.parent)

  def _files(self) -> list[pathlib.Path]:
    folder = self.part if self.is_folder else self.part.parent
    return sorted(folder.iterdir())

  def _replace(self) -> None:
    """One file after the other, the one that makes it count at last."""
    folder = self.path if self.is_folder else self.path.parent
    written = self._files()
    last = self.members[-1] if self.is_folder else self.path.name
    if len(written) > 1:
      # Else an old one would go with new files for a moment.
      pathlib.Path(os.path.realpath(folder / last)).unlink(missing_ok=True)
    for file in sorted(written, key=lambda f: f.name == last):
      file.replace(os.path.realpath(folder / file.name))


@contextlib.contextmanager
def place(
  output: str, suffix: str, members: Sequence[str] = ()
) -> Iterator[Place]:
  """Checks a name, and opens a folder beside it to write to.

  Args:
    output: of the user: a file or, where there are `members`, a folder.
    suffix: of the file's name.
    members: names of the files that are made in a folder, the one last without
      which the others are nothing.

  Yields:
    The place. What was written and not committed is removed at the end.

  Raises:
    UserError: the name can't be, or the disk refuses; whatever one is raised
      inside names `output` in place of the folder beside it.
  """
  path = pathlib.Path(output).expanduser()
  is_folder = bool(members) and path.suffix != suffix
  _check(path, suffix, members, is_folder)
  files.make_parent(path)
  # Of a link it is the target that is replaced.
  real = path if files.in_place(path) else pathlib.Path(os.path.realpath(path))
  aside = real.parent / f".{path.name}.{secrets.token_hex(4)}"
  with files.writing(path):
    aside.mkdir()
  part = aside if is_folder else aside / path.name
  try:
    yield Place(path, part, is_folder, tuple(members))
  except UserError as e:
    text = str(e).replace(str(part), str(path))
    if text == str(e):
      raise
    raise UserError(text, lines=True) from e
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def _check(
  path: pathlib.Path, suffix: str, members: Sequence[str], is_folder: bool
) -> None:
  ending = f"a name ending in {suffix}"
  if is_folder and path.suffix in _SUFFIXES:
    raise UserError(
      f"{path} can't be written: expected {ending}, for one file, or the name "
      f"of a folder, for {' and '.join(members)}."
    )
  if not is_folder and path.suffix != suffix:
    raise UserError(f"{path} can't be written: expected {ending}.")
  if is_folder and path.exists():
    if not path.is_dir():
      raise UserError(f"{path} can't be written: it is a file, not a folder.")
    others = sorted({f.name for f in path.iterdir()} - {*members})
    if others:
      raise UserError(
        f"the folder {path} holds something else ({', '.join(others[:3])}"
        f"{', ...' if len(others) > 3 else ''}); name one that is new, empty, "
        "or from an earlier export."
      )
  if not is_folder and path.is_dir():
    raise UserError(
      f"{path} is a folder; name a file in it, as {path / ('model' + suffix)}."
    )
