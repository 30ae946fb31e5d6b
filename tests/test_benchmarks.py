"""Benchmarks at tiny sizes: that they run, and what their figures mean."""

import argparse
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest

import benchmarks
from benchmarks import __main__ as front
from benchmarks import bias, peers, prepare, step, training, transfer
from benchmarks import input as photographs
from mixer import model as model_lib
from tests import test_documents

SMALL = "model.num_blocks=1 model.hidden_dim=16 image_size=64"
MODULES = {"step": step, "peers": peers, "training": training}
MACHINE = {"platform": "cpu", "num_devices": 1, "device_kind": "cpu"}
MACHINE |= {"versions": {}}


@pytest.fixture
def run(tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")  # One device, as a user has.
  # Updates that nobody waits for can wait for each other on virtual devices.
  mesh = step.sharding.make_mesh(step.jax.devices()[:1])
  monkeypatch.setattr(step.sharding, "make_mesh", lambda fsdp=1: mesh)

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
        patched.setattr(benchmarks, "start", lambda: MACHINE)
        code, record = run(MODULES[module], *args)
      assert code == 0 and not record["rows"]


def test_unknown_settings_are_refused(run, monkeypatch, capsys):
  monkeypatch.setattr(benchmarks, "start", lambda: MACHINE)
  for flag, message in (
    ("--variants=B/17/1", "B/17/1"),
    ("--compare=model.remt=1", "no key 'model.remt'; did you mean"),
  ):
    assert run(step, flag) == (1, {})
    assert message in capsys.readouterr().err


def test_the_script_for_a_gpu_gives_commands_that_there_are(tmp_path):
  log = tmp_path / "log"
  fake = tmp_path / "python"  # Notes how it is called.
  fake.write_text(
    f'#!/bin/sh\nprintf "%s\\n" "$*" >> {shlex.quote(str(log))}\n'
  )
  fake.chmod(0o755)
  out = tmp_path / "out"
  words = ["benchmarks/gpu.sh", out, tmp_path / "cifar.tar.gz", "h200-1"]
  variables = os.environ | {"PYTHON": str(fake)}
  subprocess.run(words, cwd=test_documents.ROOT, env=variables, check=True)
  given = [f"python {line}" for line in log.read_text().splitlines()]
  assert len(given) == 6 and "--hardware=h200-1" in given[0]
  for text in given:
    test_documents.check_words(shlex.split(text))
  assert {p.name for p in out.iterdir()} == {
    *("plan_S_32.json", "plan_B_16.json", "peers.md", "nano.txt")
  }


@pytest.mark.slow
def test_bias_on_shuffled_images(run, tmp_path, monkeypatch):
  monkeypatch.setattr(bias.sharding, "make_mesh", step.sharding.make_mesh)
  recipe = bias.recipe

  def on_digits(args, seed, kind):
    c = recipe(args, seed, kind)
    c.update(image_size=16, batch_size=64)
    c.data.update(name="digits", data_dir=str(tmp_path), eval_short_side=0)
    c.data.update(flip=False)
    return c

  monkeypatch.setattr(bias, "recipe", on_digits)
  picture = tmp_path / "bias.png"
  flags = ["--rounds=1", "--epochs=3", "--examples=600"]
  flags.append(f"--picture={picture}")
  code, record = run(bias, *flags)
  assert code == 0 and picture.read_bytes()[:4] == b"\x89PNG"
  rows = {(r["net"], r["shuffled"]): r for r in record["rows"]}
  assert len(rows) == 6
  for (net, kind), row in rows.items():
    assert min(row["accuracy, %"]) > 15
    assert len(row["after each epoch"].split()) == 3
    assert (row["points lost"] == [0]) == (kind == "none")
    assert row["MMAC an image"] > 1 and net in ("Mixer", "convolutions")


def test_the_net_beside_the_mixer_costs_no_more():
  args = argparse.Namespace(epochs=1, examples=100, data_dir="")
  config = bias.recipe(args, 0, "patches")
  mixer = model_lib.from_config(config, 10)
  net = bias.ConvNet(10, config.data.permute, config.data.permute_seed)
  assert mixer.permute == net.permute == "patches"
  macs, _ = model_lib.forward_macs(mixer, 32)
  assert bias.macs(mixer, 32) == macs
  assert 0.7 * macs < bias.macs(net, 32) < macs
  images = step.jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
  shapes = step.jax.eval_shape(net.init, step.jax.random.key(0), images)
  flop = step.jax.jit(net.apply).lower(shapes, images).cost_analysis()["flops"]
  assert flop == pytest.approx(2 * bias.macs(net, 32), rel=0.2)


@pytest.mark.slow
def test_transfer_between_halves_of_the_classes(
  run, tmp_path, monkeypatch, capsys
):
  recipe = transfer.recipe

  def on_digits(args, seed, which):
    c = recipe(args, seed, which)
    c.update(image_size=16, batch_size=64)
    c.data.update(eval_short_side=0, flip=False)
    return c

  monkeypatch.setattr(transfer, "DATA", "digits")
  monkeypatch.setattr(transfer, "recipe", on_digits)
  (data, names), (other, odd) = (
    half("test", str(tmp_path)) for half in (transfer.even, transfer.odd)
  )
  assert (names, odd) == ([*"02468"], [*"13579"])
  assert len(data) + len(other) == 397 and other[0]["label"] in range(5)
  whole = transfer.split_lib.open_split("digits", "test", str(tmp_path))
  for i, label in enumerate(x for x in whole.labels if x % 2):
    assert other[i]["label"] == (label - 1) / 2
  flags = ["--epochs=8", "--steps=60", "--rounds=1", f"--data_dir={tmp_path}"]
  flags.append(f"--workdir={tmp_path / 'runs'}")
  code, record = run(transfer, *flags)
  assert code == 0 and len(record["rows"]) == 3
  for row in record["rows"]:
    assert min(min(v) for k, v in row.items() if "%" in k) > 30
  picture = tmp_path / "runs" / "transfer.png"
  assert picture.read_bytes()[:4] == b"\x89PNG"
  capsys.readouterr()
  assert run(transfer, *flags)[1]["rows"] == record["rows"]
  again = capsys.readouterr().err
  assert again.count("after step 60 of 60") == 6 and "step 60:" not in again


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
