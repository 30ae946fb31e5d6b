"""Benchmarks at tiny sizes: that they run, and what their figures mean."""

import json
import sys

import numpy as np
import pytest

from benchmarks import __main__ as front
from benchmarks import input as input_benchmark
from benchmarks import peers, prepare, step, training
from mixer import cli
from mixer import config as config_lib

SMALL = "model.num_blocks=1 model.hidden_dim=16 image_size=64"
MODULES = {"step": step, "peers": peers, "training": training}


def run(monkeypatch, module, *flags):
  monkeypatch.setenv("XLA_FLAGS", "")  # One device, as a user has.
  monkeypatch.setattr(sys, "argv", [module.__file__, *flags])
  return module.main()


@pytest.mark.parametrize("name", front.RUNS)
def test_flags_are_understood(monkeypatch, name):
  words, *flags = front.RUNS[name]
  monkeypatch.setattr(cli, "run", lambda _, args: args)
  for given in flags:
    module, *args = f"{words} {given} --out=there.json".split()
    assert run(monkeypatch, MODULES[module], *args).out == "there.json"


def test_unknown_settings_are_refused(monkeypatch, capsys):
  for flag, message in (
    ("--variants=B/17/1", "B/17/1"),
    ("--compare=model.remt=1", "no key 'model.remt'; did you mean"),
  ):
    assert run(monkeypatch, step, flag) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_settings_side_by_side(tmp_path, monkeypatch, capsys):
  path = tmp_path / "found.json"
  flags = ["--variants=S/32", "--batch=8", "--rounds=2", "--seconds=0"]
  flags += [f"--compare={SMALL}", f"--compare={SMALL} optimizer.accumulate=2"]
  assert run(monkeypatch, step, *flags, f"--out={path}") == 0
  record = json.loads(path.read_text())
  assert {"date", "command", "processor", "environment"} <= record.keys()
  assert str(tmp_path) not in record["command"]
  assert [r["pass"] for r in record["rows"]] == ["forward"] * 2 + ["train"] * 2
  for row in record["rows"]:
    assert row["flops"] > 0 and len(row["images_per_second"]) == 2
    assert (row["ratios"] == [1.0, 1.0]) == (row["setting"] == SMALL)
  table = [x for x in capsys.readouterr().out.splitlines() if x[:1] == "|"]
  assert len(table) == 2 + 4 and "optimizer.accumulate=2" in table[3]


@pytest.mark.slow
def test_the_loop_and_a_start(tmp_path, monkeypatch, capsys):
  flags = ["--rounds=1", f"--out={tmp_path / 'found.json'}"]
  loop = ["loop", "--variant=demo", "--steps=2", f"--data_dir={tmp_path}"]
  # Steps that nobody waits for can wait for each other on virtual devices.
  make, device = step.sharding.make_mesh, step.jax.devices()[:1]
  monkeypatch.setattr(step.sharding, "make_mesh", lambda: make(device))
  assert run(monkeypatch, training, *loop, *flags) == 0
  assert "| demo, 16 px, batch" in capsys.readouterr().out
  startup = ["startup", "--variant=S/32", "--batch=2"]
  assert run(monkeypatch, training, *startup, *flags) == 0
  assert "| S/32 | warm | " in capsys.readouterr().out
  (warm,) = json.loads((tmp_path / "found.json").read_text())["warm"]
  phases = sum(warm[name] for name in training.PHASES)
  assert warm["seconds"] == pytest.approx(phases)


@pytest.mark.slow
def test_input_and_preparation(tmp_path, monkeypatch, capsys):
  path = tmp_path / "found.json"
  flags = ["--rounds=1", "--seconds=0.1", "--cores=1", f"--out={path}"]
  assert run(monkeypatch, input_benchmark, *flags) == 0
  assert json.loads(path.read_text())["images_per_second"]["mixer"][0] > 10
  flags = ["--images=200", "--classes=3", "--side=32", "--rounds=1"]
  flags += [f"--scratch={tmp_path}", f"--out={path}"]
  assert run(monkeypatch, prepare, *flags) == 0
  assert json.loads(path.read_text())["rounds"][0]["peak"] > 1e7
  assert "| 200 |" in capsys.readouterr().out


@pytest.mark.slow
def test_timm_trains_the_same(monkeypatch):
  """CI has a stage for this one, with timm installed."""
  torch = pytest.importorskip("torch")
  peers.name_operators(torch)
  pytest.importorskip("timm")
  # So large that losses show what the optimizer does.
  monkeypatch.setattr(peers, "RATE", 1e-2)
  config = step.changed(peers.peer_config("S/32", 8, "float32"), SMALL)
  words, params = config_lib.to_json(config), peers.make_params(config)

  def checked(contender, *setting):
    return contender(words, params, *setting)[1]["check"]()

  ours = checked(peers.ours)
  theirs = checked(peers.timm, "eager+channels_last")
  for kind, bound in (("logits", 1e-5), ("losses", 1e-4)):
    scale = np.abs(ours[kind]).max()
    np.testing.assert_allclose(theirs[kind], ours[kind], atol=bound * scale)
  params["MixerBlock_0"]["token_mixing"]["Dense_0"]["bias"] += np.float32(0.1)
  off = np.abs(checked(peers.timm, "eager")["logits"] - ours["logits"])
  assert off.max() > 1e-4 * np.abs(ours["logits"]).max()
