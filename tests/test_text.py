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
