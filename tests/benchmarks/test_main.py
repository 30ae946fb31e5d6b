import argparse
import importlib
import json
import sys

import pytest

from benchmarks import __main__ as bench
from benchmarks import input as input_benchmark
from benchmarks import prepare


def test_an_unknown_one(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["benchmarks", "--only=stop"])
  assert bench.main() == 1
  assert "no benchmark 'stop'" in capsys.readouterr().err


@pytest.mark.parametrize("name", bench.QUICK)
@pytest.mark.parametrize("flags", [bench.QUICK, bench.ACCELERATOR])
def test_flags_are_understood(name, flags, monkeypatch):
  module = importlib.import_module(f"benchmarks.{name}")
  monkeypatch.setattr(sys, "argv", [name, *flags[name], "--out=there.json"])
  monkeypatch.setattr(module.cli, "run", lambda _, args: args)
  assert str(module.main().out) == "there.json"


@pytest.mark.slow
def test_startup_through_the_front(tmp_path, monkeypatch, capfd):
  # The tests' own eight devices can't share a batch of two.
  monkeypatch.setenv("XLA_FLAGS", "")
  flags = ["--quick", "--only=startup", f"--out={tmp_path}"]
  monkeypatch.setattr(sys, "argv", ["benchmarks", *flags])
  assert bench.main() == 0
  assert "| S/32 | warm |" in capfd.readouterr().out
  assert (tmp_path / "startup_cpu.json").exists()


@pytest.mark.slow
def test_the_input_pipeline(tmp_path, monkeypatch, capsys):
  path = tmp_path / "input.json"
  flags = ["--rounds=1", "--seconds=0.1", "--cores=1", f"--out={path}"]
  flags += ["--tensorflow_python=false", "--torch_python=false"]
  monkeypatch.setattr(sys, "argv", ["input", *flags])
  assert input_benchmark.main() == 0
  rates = json.loads(path.read_text())["images_per_second"]
  assert rates["photo"].keys() == {"ours", "decoder"}
  assert rates["randaugment"].keys() == {"ours"}
  assert "| photo |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_preparation(tmp_path, monkeypatch, capsys):
  path = tmp_path / "prepare.json"
  args = argparse.Namespace(
    **{"images": 200, "classes": 3, "side": 32, "resize": 0, "rounds": 1},
    **{"workers": 1, "scratch": str(tmp_path), "out": path},
  )
  prepare.body(args)
  record = json.loads(path.read_text())["200 images of 32 px"]
  assert record["rounds"][0]["peak"] > 1e7
  assert "| 200 |" in capsys.readouterr().out
