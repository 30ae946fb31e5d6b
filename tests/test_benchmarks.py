"""Benchmarks at tiny sizes: that they run, and what their figures mean."""

import json
import sys

import numpy as np
import pytest

import benchmarks
from benchmarks import __main__ as front
from benchmarks import input as photographs
from benchmarks import peers, prepare, step, training

SMALL = "model.num_blocks=1 model.hidden_dim=16 image_size=64"
MODULES = {"step": step, "peers": peers, "training": training}
MACHINE = {"platform": "cpu", "num_devices": 1, "device_kind": "cpu"}
MACHINE |= {"versions": {}}


@pytest.fixture
def run(tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")  # One device, as a user has.
  # Updates that nobody waits for can wait for each other on virtual devices.
  mesh = step.sharding.make_mesh(step.jax.devices()[:1])
  monkeypatch.setattr(step.sharding, "make_mesh", lambda: mesh)

  def run(module, *flags):
    """The exit code, and what is written."""
    path = tmp_path / "found.json"
    words = [module.__file__, "--rounds=2", *flags, f"--out={path}"]
    monkeypatch.setattr(sys, "argv", words)
    code = benchmarks.main(module.__doc__, module.measure, module.FLAGS)
    return code, json.loads(path.read_text()) if path.exists() else {}

  return run


def test_flags_of_all_are_understood(run, monkeypatch):
  for words, *flags in front.RUNS.values():
    for given in flags:
      module, *args = f"{words} {given}".split()
      with monkeypatch.context() as patched:
        patched.setattr(MODULES[module], "measure", lambda args: iter(()))
        patched.setattr(benchmarks, "environment", lambda: MACHINE)
        code, record = run(MODULES[module], *args)
      assert code == 0 and not record["rows"]


def test_unknown_settings_are_refused(run, monkeypatch, capsys):
  monkeypatch.setattr(benchmarks, "environment", lambda: MACHINE)
  for flag, message in (
    ("--variants=B/17/1", "B/17/1"),
    ("--compare=model.remt=1", "no key 'model.remt'; did you mean"),
  ):
    assert run(step, flag) == (1, {})
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_settings_side_by_side(run, tmp_path, capsys):
  flags = ["--variants=S/32", "--batch=8", "--seconds=0"]
  flags += [f"--compare={SMALL}", f"--compare={SMALL} optimizer.accumulate=2"]
  code, record = run(step, *flags)
  assert code == 0 and {"date", "processor", "environment"} <= record.keys()
  assert str(tmp_path) not in record["command"]
  rows = record["rows"]
  assert [r["pass"] for r in rows] == ["forward"] * 2 + ["train"] * 2
  for row in rows:
    assert row["GFLOP/s"] > 0 and len(row["images/s"]) == 2
    assert (row["rate"] == [1.0, 1.0]) == (row["setting"] == SMALL)
  table = [x for x in capsys.readouterr().out.splitlines() if x[:1] == "|"]
  assert len(table) == 2 + 4 and "optimizer.accumulate=2" in table[3]


@pytest.mark.slow
def test_the_loop_and_a_start(run):
  flags = ["--variant=S/32", "--batch=2", "--steps=2", "--rounds=1"]
  code, record = run(training, "loop", *flags)
  (row,) = record["rows"]
  assert code == 0 and row["train.py over bare"] == benchmarks.ratios(
    row["train.py, ms"], row["bare step, ms"]
  )
  code, record = run(training, "startup", *flags)
  assert code == 0 and min(record["rows"][0]["filled cache, s"]) > 1


@pytest.mark.slow
def test_input_and_preparation(run, tmp_path):
  code, record = run(photographs, "--seconds=0.1", "--cores=1")
  assert code == 0 and min(record["rows"][0]["images/s"]) > 10
  flags = ["--images=200", "--classes=3", f"--scratch={tmp_path}"]
  code, record = run(prepare, *flags)
  assert code == 0 and record["rows"][0]["peak MB"] > 10
  assert record["rows"][0]["images"] == 200


@pytest.mark.slow
def test_timm_trains_the_same(run, monkeypatch):
  """CI has a stage for this one, with timm installed."""
  torch = pytest.importorskip("torch")
  peers.name_operators(torch)
  pytest.importorskip("timm")
  # So large that losses show what the optimizer does.
  monkeypatch.setattr(peers, "RATE", 1e-2)
  spec = "S/32", 8, "float32", SMALL
  ours, theirs = (
    made["check"]() for made in (peers.ours(*spec), peers.timm(False, *spec))
  )
  for kind, bound in (("logits", 1e-5), ("losses", 1e-4)):
    scale = np.abs(ours[kind]).max()
    np.testing.assert_allclose(theirs[kind], ours[kind], atol=bound * scale)
  config, params, *data = peers.work(*spec)
  params["MixerBlock_0"]["token_mixing"]["Dense_0"]["bias"] += np.float32(0.1)
  monkeypatch.setattr(peers, "work", lambda *_: (config, params, *data))
  off = np.abs(peers.timm(False, *spec)["check"]()["logits"] - ours["logits"])
  assert off.max() > 1e-4 * np.abs(ours["logits"]).max()
