"""Foreign text, made safe to show: names of files, what others have said."""

import re

# Control characters, invisible ones and those that turn the direction of
# writing, line separators, halves of surrogate pairs (bytes of a file's name
# that are no text), tags. The joiners of scripts and emojis are left.
_UNSAFE = re.compile(
  "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e"
  "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: object, keep: str = "") -> str:
  r"""Escapes what would change more of a terminal or a log than its place.

  Args:
    text: anything; its `str` is taken.
    keep: characters that stay, as "\n" in a text of several lines.

  Returns:
    One line, unless "\n" is kept: a newline is a backslash and an n, an escape
    `\x1b`, a byte of a file's name that is no text `\udce9`. What is there
    already, as a backslash, stays: so `printable(printable(x))` changes
    nothing.
  """
  return _UNSAFE.sub(
    lambda m: m[0] if m[0] in keep else ascii(m[0])[1:-1], str(text)
  )
