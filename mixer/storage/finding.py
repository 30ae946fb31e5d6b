"""Where a run's checkpoints lie, and which of them count.

A checkpoint lies in `WORKDIR/checkpoints/STEP`. It counts from its commit on,
which Orbax marks by a file. Paths may be those of an object store.
"""

import os
from collections.abc import Iterator

from etils import epath

from mixer import workdir as workdir_lib
from mixer.errors import UserError, first_line

Path = str | os.PathLike[str]

_COMMITTED = "commit_success.txt"  # Orbax writes it last.
_UNFINISHED = ".orbax-checkpoint-tmp"  # So it names what it is writing,
_REMOVED = ".removed"  # and so we name what we are removing.


def directory(workdir: Path) -> epath.Path:
  """Where a workdir's checkpoints lie: absolute, or an object store's."""
  path = workdir_lib.path(workdir) / "checkpoints"
  return path if workdir_lib.is_remote(path) else path.absolute()


def committed(workdir: Path) -> list[int]:
  """The steps of the committed checkpoints in a workdir, in order."""
  return sorted(
    int(d.name) for d in steps_in(directory(workdir)) if is_committed(d)
  )


def steps_in(folder: epath.Path) -> list[epath.Path]:
  """The folders in it that are named like steps."""
  return [d for d in _inside(folder) if d.name.isdigit() and d.is_dir()]


def _inside(folder: epath.Path) -> list[epath.Path]:
  try:
    return list(folder.iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return []  # An object store has no empty folders.


def files_in(folder: epath.Path, prefix: str = "") -> Iterator[str]:
  """The names of all files in it, those in folders as `params/_METADATA`."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from files_in(path, f"{prefix}{path.name}/")
    else:
      yield prefix + path.name


def is_committed(path: epath.Path) -> bool:
  """Whether the save of this checkpoint came to its end."""
  return (path / _COMMITTED).exists()


def locate(path: Path) -> tuple[epath.Path, int]:
  """Finds a checkpoint.

  Args:
    path: a workdir (for its newest checkpoint), or `WORKDIR/checkpoints/N`.

  Returns:
    The workdir and the step.

  Raises:
    UserError: nothing of the kind is there.
  """
  given = workdir_lib.path(path)
  if given.parent.name == "checkpoints" and given.name.isdigit():
    workdir, step = given.parent.parent, int(given.name)
  else:
    workdir, step = given, None
  folder = workdir / "checkpoints"
  if not folder.is_dir():
    raise UserError(
      f"there is no checkpoint in {path}: expected a workdir of train.py, "
      "with a folder `checkpoints`, or one of the folders in that."
    )
  found = committed(workdir)
  if step is None and found:
    step = found[-1]
  if step not in found:
    raise UserError(
      f"there is no whole checkpoint{'' if step is None else f' {step}'} in "
      f"{folder}; there are: {', '.join(map(str, found)) or 'none'}."
    )
  return workdir, step


def tidy(folder: epath.Path) -> list[str]:
  """Makes the folder of checkpoints, or puts away what doesn't count in it.

  What a killed save or removal has left is removed. A folder that is named
  like a checkpoint and isn't one is moved aside.

  Returns:
    Sentences about what was not to be expected.

  Raises:
    UserError: the folder can't be made or changed.
  """
  sentences = []
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for path in _inside(folder):
      if _UNFINISHED in path.name or path.name.endswith(_REMOVED):
        path.rmtree()
    for path in steps_in(folder):
      if not is_committed(path):
        sentences.append(_put_away(path))
  except OSError as e:
    raise UserError(
      f"{folder} can't be prepared for checkpoints: {reason(e)}. Mend the "
      "cause (most often missing rights, or a file of that name), or take "
      "another --workdir."
    ) from e
  return sentences


def _put_away(path: epath.Path) -> str:
  what = f"{path} was never finished, or has lost its mark of that"
  if workdir_lib.is_remote(path):  # A killed save leaves it so.
    path.rmtree()
    return f"{what}: it has been removed."
  at = os.fspath(move_aside(path))
  return f"{what}: it doesn't count as a checkpoint, and now lies in {at}."


def remove(path: epath.Path) -> None:
  """Removes a checkpoint; a kill leaves it whole, or not counting."""
  if workdir_lib.is_remote(path):
    (path / _COMMITTED).unlink(missing_ok=True)
  else:
    path = path.rename(path.with_name(path.name + _REMOVED))
  path.rmtree()


def move_aside(path: epath.Path) -> epath.Path:
  """Moves a checkpoint to `WORKDIR/checkpoints.damaged`; says where it is.

  Raises:
    UserError: it can't be moved.
  """
  folder = path.parent.with_name("checkpoints.damaged")
  to, count = folder / path.name, 1
  try:
    folder.mkdir(parents=True, exist_ok=True)
    while to.exists():
      count += 1
      to = folder / f"{path.name}.{count}"
    if workdir_lib.is_remote(path):
      for name in files_in(path):
        (path / name).copy(to / name)
      remove(path)
    else:
      path.rename(to)
  except OSError as e:
    raise UserError(
      f"{path} is damaged and can't be moved to {to}: {reason(e)}. "
      "Move it away, or mend the rights; then start the same command again."
    ) from e
  return to


def reason(error: BaseException) -> str:
  """What of an error says something, in one line."""
  # The storage library says that at the end of a long line.
  full = "No space left on device"
  return full if full in str(error) else first_line(error)
