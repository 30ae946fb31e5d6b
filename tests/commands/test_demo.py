import pytest

from configs import demo as recipes
from mixer.commands import demo

RESULTS = {
  ("10", "finetune"): [0.93, 0.95],
  ("10", "scratch"): [0.88, 0.9],
  ("all", "finetune"): [0.98],
  ("all", "scratch"): [0.96],
}


def test_the_table_and_what_is_too_low():
  lines = demo.table(RESULTS, 0.9).splitlines()
  assert lines[2].split() == (
    "10 0.940 (0.930 to 0.950) 0.890 (0.880 to 0.900) 0.900".split()
  )
  assert lines[-1].split() == "all 0.980 0.960 -".split()
  assert demo.check(RESULTS, 0.8) == []
  low = {("10", "finetune"): [0.8], ("10", "scratch"): [0.79]}
  assert demo.check(RESULTS | low | {("all", "finetune"): [0.5]}, 0.7) == [
    "held-out fonts: 0.700, should be at least 0.75",
    "fine-tuned at 10: 0.800, should be at least 0.85",
    "fine-tuned at all: 0.500, should be at least 0.94",
    "gain over scratch at 10: 0.010, should be at least 0.02",
  ]


@pytest.mark.slow
def test_the_whole(tmp_path, monkeypatch, capsys):
  """A few steps of everything: it ends, with a table and a picture."""
  monkeypatch.setattr(demo, "RUNS", {"10": (1, 2), "all": (1, 2)})
  made = recipes.get_config

  def short(*words):
    config = made(*words)
    config.total, config.schedule.warmup = "2 steps", "0 steps"
    return config

  monkeypatch.setattr(recipes, "get_config", short)
  assert len(demo.demo(tmp_path)) >= 3  # What it hasn't reached.
  assert "labels a class" in capsys.readouterr().out
  assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
