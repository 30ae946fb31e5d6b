import io
import sys
import unicodedata

import hypothesis
from hypothesis import strategies as st

from mixer import text


def test_printable_shows_what_a_terminal_would_obey():
  assert text.printable("\x1b[2Ka\rb\nc\t") == r"\x1b[2Ka\rb\nc\t"
  assert text.printable("gnp.\u202etac") == r"gnp.\u202etac"
  assert text.printable(b"caf\xe9.png".decode("utf-8", "surrogateescape")) == (
    r"caf\udce9.png"
  )
  assert text.printable("b\u00e4r \u718a \U0001f43b.png") == "bär 熊 🐻.png"


def test_printable_keeps_what_it_is_asked_to():
  assert text.printable("a\nb\r", keep="\n") == "a\nb\\r"


@hypothesis.given(st.text(st.characters(codec=None)))
def test_printable_is_one_line_of_text(written):
  shown = text.printable(written)
  assert len(shown.splitlines()) <= 1
  shown.encode()
  categories = {unicodedata.category(c) for c in shown}
  assert not categories & {"Cc", "Cs", "Zl", "Zp"}
  assert text.printable(shown) == shown


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
  with text.safe_output():
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
    with text.safe_output() as safe:
      safe.write_exactly("\x1b\udce9\n")
    assert out.written() == want
