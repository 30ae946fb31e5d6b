import json
import sys

import jax
import pytest

from benchmarks import common, step
from mixer import config as config_lib
from mixer import model as model_lib
from mixer import sharding

SHAPE = dict(num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=24)


@pytest.fixture
def small(monkeypatch):
  recipe = step.recipe

  def smaller(*args):
    config = recipe(*args)
    config.image_size = 64
    config.model.update(SHAPE)
    return config

  monkeypatch.setattr(step, "recipe", smaller)
  monkeypatch.setattr(step, "_MATMUL", {"cpu": 64})
  # On several of a CPU's virtual devices, steps that nobody waits for can
  # wait for each other.
  mesh = sharding.make_mesh(jax.devices()[:1])
  monkeypatch.setattr(sharding, "make_mesh", lambda: mesh)
  monkeypatch.setattr(common, "environment", lambda: {"platform": "cpu"})
  monkeypatch.setattr(common, "alone", lambda function, *args: function(*args))
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  yield
  jax.config.update("jax_enable_compilation_cache", True)


def test_two_settings_side_by_side(small, monkeypatch, tmp_path, capsys):
  path = tmp_path / "found.json"
  flags = ["--variants=S/32", "--batches=8", "--rounds=2", "--seconds=0"]
  flags += ["--set", "optimizer.clip_norm=0.0", f"--out={path}"]
  flags += ["--compare", "", "--compare", "optimizer.accumulate=2"]
  monkeypatch.setattr(sys, "argv", ["step", *flags])
  assert step.main() == 0
  record = json.loads(path.read_text())
  assert {"date", "command", "processor", "environment"} <= record.keys()
  assert str(tmp_path) not in record["command"]
  one, two = record["rows"][:2], record["rows"][2:]
  model = model_lib.build("S/32", step.CLASSES, **SHAPE)
  flop = {
    "forward": 2 * model_lib.forward_macs(model, 64)[0],
    "train": model_lib.training_flop(model, 64),
  }
  for a, b in zip(one, two, strict=True):
    assert a["pass"] == b["pass"]
    assert a["set"] == {"optimizer.clip_norm": 0.0}
    assert b["set"] == a["set"] | {"optimizer.accumulate": 2}
    assert a["ratio"] == 1.0 and a["ratio_spread"] == [1.0, 1.0]
    assert b["ratio"] == pytest.approx(a["seconds"] / b["seconds"])
    rate = a["images_per_second"]
    assert a["spread"][0] <= rate <= a["spread"][1]
    assert a["flops"] == pytest.approx(flop[a["pass"]] * rate)
  # Weights and both moments, of the stem and the head at least.
  params = 4 * (3072 * 16 + 16 * 1000)
  assert one[1]["arguments"] > 3 * params > one[0]["arguments"]
  table = [x for x in capsys.readouterr().out.splitlines() if x[:1] == "|"]
  assert len(table) == 2 + 4 and "optimizer.accumulate=2" in table[3]
  assert len({line.count("|") for line in table}) == 1


@pytest.mark.parametrize(
  "flag, message",
  [
    ("--variants=B/17", "B/17"),
    ("--set=model.remt=1", "model.remt=1: no such key"),
    ("--compare=model.layout", "no KEY=VALUE"),
    ("--set=batch_size=many", "batch_size=many"),
  ],
)
def test_mistakes(flag, message, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["step", flag])
  assert step.main() == 1
  assert message in capsys.readouterr().err


def test_changes_of_every_type():
  text = (
    "batch_size=64 optimizer.learning_rate=0.5 report=False model.remat=block"
  )
  config = config_lib.default()
  step.apply(config, step.parse(text))
  assert config.batch_size == 64 and config.optimizer.learning_rate == 0.5
  assert config.report is False and config.model.remat == "block"


def test_paths_of_this_machine_are_left_out():
  words = ["--out", "/a", "--authors=/b", "--rounds=2", "--torch_python=/c"]
  line = common.command("benchmarks.peers", words)
  assert line == "python -m benchmarks.peers --authors=DIR --rounds=2"
