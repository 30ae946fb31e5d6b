"""The one exception that is meant for the user's eyes; others in its words."""

import contextlib
import pathlib
from collections.abc import Iterator


class UserError(Exception):
  """Something that the user can mend, said in sentences.

  The message says what is wrong, where, what was expected, and the command or
  the key that mends it. `train.py` and the tools print it without a traceback
  and exit non-zero; every other exception is a defect of ours and keeps its
  traceback.
  """


def first_line(error: BaseException) -> str:
  """What an error says, for use within a sentence: without a full stop."""
  text = str(error).strip() or repr(error)
  return text.splitlines()[0][:300].rstrip(".")


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Makes a sentence of what the disk says.

  Raises:
    UserError: it refuses.
  """
  try:
    yield
  except OSError as e:
    why = e.strerror or str(e)
    if not path.parent.is_dir():
      why = f"there is no folder {path.parent}; make it first"
    raise UserError(f"{path} can't be written: {why}.") from e
