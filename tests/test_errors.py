import pytest

from mixer import errors


def test_a_message_is_one_line_unless_it_is_meant():
  error = errors.UserError("a\nb \x1b[2J\r")
  assert str(error) == r"a\nb \x1b[2J\r"
  assert str(errors.UserError("a\n  b\x1b", lines=True)) == "a\n  b\\x1b"


@pytest.mark.parametrize("said", ["", "\n", "\x0c", "a\x1b\nb.", "a.\n"])
def test_the_first_line_of_what_others_say(said):
  shown = errors.first_line(ValueError(said))
  assert shown in (r"a\x1b", "a", f"ValueError({said!r})")
