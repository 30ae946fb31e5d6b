"""What foreign text may not do to a terminal, a log or a message."""

import io
import sys
import unicodedata

import hypothesis
import pytest
from hypothesis import strategies as st

from mixer import errors


def test_a_message_is_one_line_unless_it_is_meant():
  error = errors.UserError("a\nb \x1b[2J\r")
  assert str(error) == r"a\nb \x1b[2J\r"
  assert str(errors.UserError("a\n  b\x1b", lines=True)) == "a\n  b\\x1b"


@pytest.mark.parametrize("said", ["", "\n", "\x0c", "a\x1b\nb.", "a.\n"])
def test_the_first_line_of_what_others_say(said):
  shown = errors.first_line(ValueError(said))
  assert shown in (r"a\x1b", "a", f"ValueError({said!r})")


def test_printable_shows_what_a_terminal_would_obey():
  assert errors.printable("\x1b[2Ka\rb\nc\t") == r"\x1b[2Ka\rb\nc\t"
  assert errors.printable("gnp.\u202etac\n", keep="\n") == "gnp.\\u202etac\n"
  name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
  assert errors.printable(name) == r"caf\udce9.png"
  assert errors.printable("b\u00e4r \u718a \U0001f43b") == "bär 熊 🐻"


@hypothesis.given(st.text(st.characters(codec=None)))
def test_printable_is_one_line_of_text(written):
  shown = errors.printable(written)
  assert len(shown.splitlines()) <= 1
  shown.encode()
  categories = {unicodedata.category(c) for c in shown}
  assert not categories & {"Cc", "Cs", "Zl", "Zp"}
  assert errors.printable(shown) == shown


class Stream(io.TextIOWrapper):
  """A stream of some encoding, perhaps a terminal."""

  def __init__(self, encoding="utf-8", terminal=False):
    super().__init__(io.BytesIO(), encoding)
    self.isatty = lambda: terminal

  def written(self):
    self.flush()
    return self.buffer.getvalue()


def test_what_is_printed_moves_no_cursor(monkeypatch):
  monkeypatch.setattr(sys, "stdout", out := Stream())
  monkeypatch.setattr(sys, "stderr", err := Stream("ascii"))
  with errors.safe_output():
    print("\x1b[2Jä\ra\tb\nc")
    print("\r\x1b[K\x1b[A8 %", end="")  # Progress, and what it may not do.
    print("\x1b[A", end="")
    print("ä \udce9", file=sys.stderr)
  assert (
    out.written().decode() == "\\x1b[2Jä\\ra\tb\nc\n\r\x1b[K\\x1b[A8 %\x1b[A"
  )
  assert err.written() == rb"\xe4 \udce9" + b"\n"
  assert (sys.stdout, sys.stderr) == (out, err)


def test_data_is_exact_unless_a_person_sees_it(monkeypatch):
  for terminal, want in ((False, b"\x1b\xe9\n"), (True, b"\\x1b\\udce9\n")):
    monkeypatch.setattr(sys, "stdout", out := Stream(terminal=terminal))
    with errors.safe_output() as safe:
      safe.write_exactly("\x1b\udce9\n")
    assert out.written() == want
