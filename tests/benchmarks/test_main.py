import importlib
import sys

import pytest

from benchmarks import __main__ as bench


def test_an_unknown_one_is_told(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["benchmarks", "--only=stop"])
  assert bench.main() == 1
  assert "no benchmark 'stop'" in capsys.readouterr().err


@pytest.mark.parametrize("name", bench.NAMES)
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_flags_are_understood(name, quick, on_cpu, monkeypatch):
  module = importlib.import_module(f"benchmarks.{name}")
  flags = bench.settings(name, on_cpu=on_cpu, quick=quick)
  monkeypatch.setattr(sys, "argv", [name, *flags, "--out=there.json"])
  monkeypatch.setattr(module.command_line, "tool", lambda _, args: args)
  args = module.main()
  assert str(args.out) == "there.json"


@pytest.mark.slow
def test_one_of_them(tmp_path, monkeypatch, capfd):
  # The tests' own eight devices can't share a batch of two.
  monkeypatch.setenv("XLA_FLAGS", "")
  flags = ["--quick", "--only=startup,peers", f"--out={tmp_path}"]
  flags += ["--torch_python=false"]
  monkeypatch.setattr(sys, "argv", ["benchmarks", *flags])
  assert bench.main() == 0
  told = capfd.readouterr().out
  assert "peers: left out" in told and "| S/32 | warm |" in told
  assert (tmp_path / "startup_cpu.json").exists()
