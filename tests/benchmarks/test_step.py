import json
import sys

import jax
import pytest

from benchmarks import passes, step, step_table
from mixer import flops, sharding
from mixer import model as model_lib

SHAPE = dict(num_blocks=1, hidden_dim=16, tokens_mlp_dim=8)
SHAPE["channels_mlp_dim"] = 24


@pytest.fixture
def small(monkeypatch):
  recipe = step.recipe

  def smaller(*args):
    config = recipe(*args)
    config.image_size = 64
    for name, value in SHAPE.items():
      config.model[name] = value
    return config

  monkeypatch.setattr(step, "recipe", smaller)
  monkeypatch.setattr(passes, "_MATMUL", {"cpu": 64})
  # On several of a CPU's virtual devices, steps that nobody waits for can
  # wait for each other.
  mesh = sharding.make_mesh(jax.devices()[:1])
  monkeypatch.setattr(sharding, "make_mesh", lambda: mesh)
  yield
  jax.config.update("jax_enable_compilation_cache", True)


def test_rows(small):
  found = step.measure("S/32", 8, "float32", 2, 0.0)
  rows = {row["pass"]: row for row in found["rows"]}
  assert tuple(rows) == passes.NAMES
  model = model_lib.build("S/32", step.CLASSES, **SHAPE)
  forward = 2 * flops.forward_macs(model, 64)[0]
  flop = {"forward": forward, "evaluation": forward}
  flop["train"] = flops.training(model, 64)
  for name, row in rows.items():
    assert row["model"] in step_table.line(row)
    assert row["of_stated"] is None  # Of CPUs nobody states one.
    assert row["ratio"] == 1.0 and row["ratio_spread"] == [1.0, 1.0]
    if name == "optimizer":
      assert row["flops"] is row["images_per_second"] is None
      continue
    rate = row["images_per_second"]
    assert row["spread"][0] <= rate <= row["spread"][1]
    assert row["flops"] == pytest.approx(8 * flop[name] / row["seconds"])
    assert row["of_matmul"] * row["matmul_flops"] == pytest.approx(row["flops"])
  # The stem of 3,072 x 16 and the head of 16 x 1,000, at least: the updated
  # weights and both moments take the place of the old ones.
  params = 4 * (3072 * 16 + 16 * 1000)
  for name in ("train", "optimizer"):
    assert rows[name]["memory"]["reused"] >= 3 * params
  train = rows["train"]
  assert train["memory"]["arguments"] > train["memory"]["reused"]
  assert rows["forward"]["memory"]["reused"] == 0
  assert train["first_step_seconds"] >= train["compile_seconds"]
  assert train["of_step"] == 1.0


@pytest.mark.slow
def test_settings_side_by_side(small, monkeypatch, tmp_path, capsys):
  def here(function, *args):
    return function(*args)

  monkeypatch.setattr(step, "alone", here)
  path = tmp_path / "found.json"
  flags = ["--variants=S/32", "--batches=8", "--rounds=1", "--seconds=0"]
  flags += ["--set", "optimizer.clip_norm=0.0", f"--out={path}"]
  flags += ["--compare", "", "--compare", "optimizer.accumulate=2"]
  monkeypatch.setattr(sys, "argv", ["step", *flags])
  assert step.main() == 0
  record = json.loads(path.read_text())
  assert {"date", "command", "processor", "environment"} <= record.keys()
  one, two = record["rows"][:4], record["rows"][4:]
  assert one[0]["set"] == {"optimizer.clip_norm": 0.0}
  assert two[0]["set"] == one[0]["set"] | {"optimizer.accumulate": 2}
  for a, b in zip(one, two, strict=True):
    assert b["ratio"] == pytest.approx(a["seconds"] / b["seconds"])
  assert "optimizer.accumulate=2" in capsys.readouterr().out


@pytest.mark.parametrize(
  "flag, told",
  [
    ("--variants=B/17", "B/17"),
    ("--set=model.remt=1", "did you mean 'model.remat'"),
    ("--compare=model.layout", "no KEY=VALUE"),
  ],
)
def test_mistakes_are_told(flag, told, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["step", flag])
  assert step.main() == 1
  assert told in capsys.readouterr().err
