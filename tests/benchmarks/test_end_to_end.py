import json
import sys

import jax
import pytest

from benchmarks import end_to_end
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


def test_the_first_steps_do_not_count(monkeypatch):
  # When each batch is asked for, and when it is there.
  times = iter([0, 90, 100, 105, 110, 110, 111, 112, 114, 114])
  monkeypatch.setattr(end_to_end.time, "perf_counter", lambda: next(times))
  monkeypatch.setattr(end_to_end.time, "thread_time", lambda: 5.0)
  batches = end_to_end.Batches(iter([{}] * 5))
  for _ in range(5):
    next(batches)
  assert batches.each() == {"wall": 2.0, "thread": 0.0, "waited": 0.5}


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
  assert "| demo, 16 px, batch" in capsys.readouterr().out
