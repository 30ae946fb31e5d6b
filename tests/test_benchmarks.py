"""Benchmarks at tiny sizes: that they run, and what their figures mean."""

import json
import sys

import numpy as np
import pytest

import benchmarks
from benchmarks import __main__ as front
from benchmarks import input as input_benchmark
from benchmarks import peers, prepare, step, training
from mixer import config as config_lib

SMALL = "model.num_blocks=1 model.hidden_dim=16 image_size=64"


def run(monkeypatch, module, *flags):
  monkeypatch.setenv("XLA_FLAGS", "")  # One device, as a user has.
  monkeypatch.setattr(sys, "argv", [module.__file__, *flags])
  return module.main()


@pytest.mark.parametrize("name", front.MODULES)
@pytest.mark.parametrize("flags", [front.QUICK, front.ACCELERATOR])
def test_flags_are_understood(monkeypatch, name, flags):
  module = {"step": step, "peers": peers}.get(name, training)
  words = [*front.MODULES[name][1:], *flags[name], "--out=there.json"]
  monkeypatch.setattr(benchmarks, "run", lambda _, args: args)
  assert str(run(monkeypatch, module, *words).out) == "there.json"


def test_unknown_settings_are_refused(monkeypatch, capsys):
  for flag, message in (
    ("--variants=B/17", "B/17"),
    ("--compare=model.remt=1", "no key 'model.remt'; did you mean"),
    ("--compare=batch_size=many", "batch_size=many: Could not override"),
  ):
    assert run(monkeypatch, step, flag) == 1
    assert message in capsys.readouterr().err


def test_differences_are_relative_and_see_nan():
  ours = {"losses": np.ones(3), "gradient/a": np.arange(4.0)}
  theirs = {k: 1.01 * v for k, v in ours.items()}
  found = peers.differences(ours, theirs)
  assert found == pytest.approx({"losses": 0.01, "gradients": 0.01})
  theirs["losses"] = np.array([1, np.nan, 1])
  assert np.isnan(peers.differences(ours, theirs)["losses"])


def test_the_first_steps_do_not_count(monkeypatch):
  # When each batch is asked for, and when it is there.
  times = iter([0, 90, 100, 105, 110, 110, 111, 112, 114, 114])
  monkeypatch.setattr(training.time, "perf_counter", lambda: next(times))
  monkeypatch.setattr(training.time, "thread_time", lambda: 5.0)
  batches = training.Batches(iter([{}] * 5))
  for _ in range(5):
    next(batches)
  assert batches.each() == {"wall": 2.0, "thread": 0.0, "waited": 0.5}


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
  monkeypatch.setattr(training.sharding, "make_mesh", one_device())
  assert run(monkeypatch, training, *loop, *flags) == 0
  assert "| demo, 16 px, batch" in capsys.readouterr().out
  startup = ["startup", "--variant=S/32", "--batch=2"]
  assert run(monkeypatch, training, *startup, *flags) == 0
  assert "| S/32 | warm |" in capsys.readouterr().out
  record = json.loads((tmp_path / "found.json").read_text())
  (warm,) = record["warm"]
  assert warm["total"] == pytest.approx(
    sum(warm[name] for name in training.PHASES)
  )


def one_device():
  """Steps that nobody waits for can wait for each other on virtual devices."""
  make = training.sharding.make_mesh
  return lambda **_: make(training.jax.devices()[:1])


@pytest.mark.slow
def test_the_input_pipeline(tmp_path, monkeypatch, capsys):
  path = tmp_path / "input.json"
  flags = ["--rounds=1", "--seconds=0.1", "--cores=1", f"--out={path}"]
  assert run(monkeypatch, input_benchmark, *flags) == 0
  rates = json.loads(path.read_text())["images_per_second"]
  assert {"Ours", "Decoder"} <= rates["photo"].keys()
  assert "| photo |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_preparation(tmp_path, monkeypatch, capsys):
  path = tmp_path / "prepare.json"
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
  config = peers.peer_config("S/32", 8, "float32")
  config = step.changed(config, SMALL)
  words, params = config_lib.to_json(config), peers.make_params(config)
  ours = peers.Ours(words, params).check()

  def differences():
    timm = peers.Timm(words, params, "eager+channels_last")
    return peers.differences(ours, timm.check())

  off = differences()
  assert off["losses"] < 1e-4
  # Ours takes LayerNorm's variance in one pass, as Flax does; in two passes
  # half of this would do.
  assert off["gradients"] < 2e-4
  assert off["logits"] < 1e-5
  params["MixerBlock_0"]["token_mixing"]["Dense_0"]["bias"] += np.float32(0.1)
  assert differences()["logits"] > 1e-4
