"""The one exception that is meant for the user's eyes; others in its words."""

from mixer import text


class UserError(Exception):
  """Something that the user can mend, said in sentences.

  The message says what is wrong, where, what was expected, and the command or
  the key that mends it. `train.py` and the tools print it without a traceback
  and exit non-zero; every other exception is a defect of ours and keeps its
  traceback.

  Attributes:
    at_once: the process ends without waiting for its threads.
  """

  at_once = False

  def __init__(self, message: str = "", *, lines: bool = False):
    """Makes the message safe to show: names in it may be anybody's.

    Args:
      message: sentences.
      lines: it has several lines, and what is foreign in it is safe already.
    """
    super().__init__(text.printable(message, keep="\n" if lines else ""))


def first_line(error: BaseException) -> str:
  """What an error says, for use within a sentence: without a full stop."""
  lines = str(error).strip().splitlines() or [repr(error)]
  return text.printable(lines[0][:300].rstrip("."))


def is_memory(error: BaseException) -> bool:
  """Whether memory, of the host or of a device, was too small."""
  device = type(error).__name__ == "JaxRuntimeError"  # JAX isn't loaded here.
  return isinstance(error, MemoryError) or (
    device and "RESOURCE_EXHAUSTED" in str(error)
  )
