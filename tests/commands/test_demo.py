import dataclasses

import pytest

from configs import demo as recipes
from mixer.commands import demo

ROWS = [
  demo.Row(10, 0.9, [0.93, 0.95], [0.88, 0.9]),
  demo.Row(0, None, [0.98], [0.96]),
]


def test_the_table():
  lines = demo.table(ROWS).splitlines()
  assert lines[2].split() == (
    "10 0.940 (0.930 to 0.950) 0.890 (0.880 to 0.900) 0.900".split()
  )
  assert lines[-1].split() == "all 0.980 0.960 -".split()


def test_what_is_too_low_is_named():
  assert demo.check(0.8, ROWS) == []
  assert demo.check(0.7, ROWS)[0].startswith("held-out fonts: 0.700")
  ten, whole = ROWS
  low = dataclasses.replace(ten, tuned=[0.8], scratch=[0.79])
  assert demo.check(0.8, [low, whole]) == [
    "fine-tuned at 10: 0.800, should be at least 0.85",
    "gain over scratch at 10: 0.010, should be at least 0.02",
  ]
  low = dataclasses.replace(whole, tuned=[0.5])
  (failure,) = demo.check(0.8, [ten, low])
  assert failure.startswith("fine-tuned at all: 0.500")


@pytest.mark.slow
def test_the_whole(tmp_path, monkeypatch, capsys):
  """A few steps of everything: it ends, with a table and a picture."""
  monkeypatch.setattr(demo, "DIGITS", {10: (1, 2, 0.0), 0: (1, 2, 0.0)})
  monkeypatch.setattr(demo, "LEAST_FONTS", 0.0)
  monkeypatch.setattr(demo, "LEAST_GAIN", -1.0)
  made = recipes.get_config

  def short(*words):
    config = made(*words)
    config.total, config.schedule.warmup = "2 steps", "0 steps"
    return config

  monkeypatch.setattr(recipes, "get_config", short)
  assert demo.demo(tmp_path) == []
  assert "labels a class" in capsys.readouterr().out
  assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
