import sys

import pytest

from benchmarks import records


@pytest.mark.parametrize(
  "words", [["--out=/a/b.json"], ["--out", "/a/b.json", "--torch_python=/c"]]
)
def test_a_command_is_told_without_paths(words, monkeypatch):
  argv = ["step.py", "--rounds", "2", *words, "--set", "model.dtype=a b"]
  monkeypatch.setattr(sys, "argv", argv)
  record = records.start("benchmarks.step", {"host": "mine", "platform": "cpu"})
  told = "python -m benchmarks.step --rounds 2 --set 'model.dtype=a b'"
  assert record["command"] == told
  assert record["environment"] == {"host": "", "platform": "cpu"}


def test_machines():
  gpu = {"platform": "gpu", "device_kind": "NVIDIA H100", "num_devices": 1}
  record = {"processor": "Known", "cores": 2, "environment": gpu}
  assert records.machine(record) == "NVIDIA H100"
  gpu["num_devices"] = 8
  assert records.machine(record) == "8 x NVIDIA H100"
  gpu["platform"] = "cpu"  # On which virtual devices are no machine.
  assert records.machine(record) == "2 cores of Known"


@pytest.mark.parametrize("words", [["--authors=/a"], ["--authors", "/a"]])
def test_of_a_checkout_it_is_told_that_it_was_there(words, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["peers.py", *words, "--rounds=2"])
  record = records.start("benchmarks.peers", {})
  expected = "python -m benchmarks.peers --authors=DIR --rounds=2"
  assert record["command"] == expected
