"""What is shown of long work."""

import io
import time

import pytest

from mixer import progress


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


@pytest.fixture
def clock(monkeypatch):
  """Seconds that a test sets."""
  now = [1000.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  return now


def test_lines_where_there_is_no_terminal(clock):
  out = io.StringIO()
  with progress.Progress(out) as m:
    for second in range(150):
      clock[0] = 1000.0 + second
      # Goes on with a fifth done.
      m.show("preparing", 200 + second, 1000, 5000 + 100 * second)
    m.show("looking", 0, 0)  # Of unknown size.
    clock[0] += 11
    m.show("looking", 5, 0, 0)
    m.say("that was it")
  assert out.getvalue().splitlines() == [
    "preparing: 21.0%, 6,000 images, 100 images/s, 0:13:10 left",
    "preparing: 27.0%, 12,000 images, 100 images/s, 0:12:10 left",
    "preparing: 33.0%, 18,000 images, 100 images/s, 0:11:10 left",
    "looking: 0 images, 0 images/s",
    "that was it",
  ]


def test_a_line_on_a_terminal(clock):
  out = Terminal()
  with progress.Progress(out) as m:
    m.show("preparing", 0, 1000, 0)
    m.show("preparing", 100, 1000, 1)  # Just shown.
    m.say("a warning")
    clock[0] += 2
    m.show("preparing", 500, 1000, 4320)
    clock[0] += 2
    m.show("preparing", 1200, 1000, 9999)  # The size was an estimate.
    m.show("drawing" + "x" * 999, 3, 4, 3)
  shown = out.getvalue().split("\r\x1b[K")
  assert shown[1:3] == [
    "preparing: 0.0%, 0 images, 0 images/s",
    "a warning\n",
  ]
  assert shown[3] == (
    "preparing: 50.0%, 4,320 images, 2,160 images/s, 0:00:02 left"
  )
  assert "100.0%" in shown[4] and len(shown[5]) < 999
  assert shown[6:] == [""]  # Nothing stays behind.
