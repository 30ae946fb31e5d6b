import sys

import numpy as np
import pytest

from mixer import predictor
from mixer.prediction import counting


def features(count):
  for k in range(count):
    problem = "it is cut off" if k == 1 else ""
    yield predictor.Features(f"{k}.jpg", np.zeros(2, np.float32), problem)


def test_counting(capsys):
  counter = counting.Counter(5, bar=True)
  assert len(list(counter.count(features(5)))) == 5
  assert (counter.done, counter.failed) == (5, 1)
  got = capsys.readouterr()
  assert got.out == ""
  first, last = got.err.splitlines()
  assert first == "error: 1.jpg: it is cut off"
  assert last.startswith("5 images in ") and last.endswith(
    " images/s; 1 can't be used"
  )


def test_one_image_needs_no_line(capsys):
  list(counting.Counter(1, bar=True).count(features(1)))
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize("bar", [False, True])
def test_a_bar_on_a_terminal(capsys, monkeypatch, bar):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  list(counting.Counter(3, bar).count(features(3)))
  assert (" images" in capsys.readouterr().err.split("3 images in")[0]) == bar


def test_stopped_half_way(capsys):
  counter = counting.Counter(9, bar=False)
  for k, _ in enumerate(counter.count(features(9))):
    if k == 4:
      break
  assert counter.done == 4
