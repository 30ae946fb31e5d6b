import json
import sys

import jax
import pytest

from benchmarks import end_to_end, loop_timing
from mixer import sharding


def test_summary():
  rounds = [
    {
      "bare": {"wall": 1.0 * k, "thread": 0.01 * k},
      "ready": {"wall": 1.02 * k, "thread": 0.03 * k, "waited": 0.0},
      "whole": {"wall": 1.53 * k, "thread": 0.03 * k, "waited": 0.153 * k},
    }
    for k in (3, 1, 2)  # A machine that changes its mind.
  ]
  rounds[0]["ready"]["wall"] = 3.3
  found = end_to_end.summary(rounds)
  assert found["seconds"]["bare"] == 2.0
  assert found["loop"] == pytest.approx(1.02)
  assert found["loop_spread"] == pytest.approx([1.02, 1.1])
  assert found["loader"] == pytest.approx(1.5)
  assert found["both"] == pytest.approx(1.53)
  assert found["loop_thread"] == pytest.approx(0.02)
  assert found["waited"] == pytest.approx(0.1)
  told = end_to_end.told(found)
  assert "+2.0% (+2.0% to +10.0%); its own Python: 2.00%" in told


def test_the_clock_leaves_out_the_first_steps(monkeypatch):
  times = iter([0.0, 100.0, 110.0, 111.0, 114.0])
  monkeypatch.setattr(loop_timing.time, "perf_counter", lambda: next(times))
  monkeypatch.setattr(loop_timing.time, "thread_time", lambda: 5.0)
  clock = loop_timing.Clock()
  for _ in range(5):
    clock.tick()
  assert clock.each() == (2.0, 0.0)


@pytest.mark.slow
def test_a_small_run(tmp_path, monkeypatch, capsys):
  # On several of a CPU's virtual devices, steps that nobody waits for can
  # wait for each other.
  mesh = sharding.make_mesh(jax.devices()[:1])
  monkeypatch.setattr(sharding, "make_mesh", lambda **_: mesh)
  path = tmp_path / "end_to_end.json"
  flags = ["--steps=2", "--rounds=1", "--batch=8", "--demo"]
  flags += [f"--data_dir={tmp_path / 'data'}", f"--out={path}"]
  monkeypatch.setattr(sys, "argv", ["end_to_end", *flags])
  for _ in range(2):
    assert end_to_end.main() == 0
  (row,) = json.loads(path.read_text())["rows"]
  assert row["seconds"].keys() == {"bare", "ready", "whole"}
  assert {"date", "command", "processor", "environment"} <= row.keys()
  assert "the loop over the bare step" in capsys.readouterr().out
