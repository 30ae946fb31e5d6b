"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
  """Something that the user can mend, said in sentences.

  The message says what is wrong, where, what was expected, and the command or
  the key that mends it. `train.py` and the tools print it without a traceback
  and exit non-zero; every other exception is a defect of ours and keeps its
  traceback.
  """
