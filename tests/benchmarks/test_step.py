import sys

import jax
import pytest

from benchmarks import step
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
  monkeypatch.setattr(step, "_MATMUL", {"cpu": 64})
  # On several of a CPU's virtual devices, steps that nobody waits for can
  # wait for each other.
  mesh = sharding.make_mesh(jax.devices()[:1])
  monkeypatch.setattr(sharding, "make_mesh", lambda: mesh)
  yield
  jax.config.update("jax_enable_compilation_cache", True)


def test_rows(small):
  found = step.measure("S/32", 8, "float32", 2, 0.0)
  forward, train = found["rows"]
  model = model_lib.build("S/32", step.CLASSES, **SHAPE)
  flop = {
    "forward": 2 * flops.forward_macs(model, 64)[0],
    "train": flops.training(model, 64),
  }
  for row in (forward, train):
    rate = row["images_per_second"]
    assert row["spread"][0] <= rate <= row["spread"][1]
    assert row["flops"] == pytest.approx(rate * flop[row["pass"]])
    assert row["of_matmul"] * row["matmul_flops"] == pytest.approx(row["flops"])
    assert row["of_stated"] is None  # Of CPUs nobody states one.
    assert row["model"] in step.line(row)
  # The stem of 3,072 x 16 and the head of 16 x 1,000, at least: the updated
  # weights and both moments take the place of the old ones.
  params = 4 * (3072 * 16 + 16 * 1000)
  assert train["memory"]["reused"] >= params
  assert train["memory"]["arguments"] > train["memory"]["reused"]
  assert forward["memory"]["reused"] == 0
  assert train["first_step_seconds"] >= train["compile_seconds"]


def test_an_unknown_variant_is_told(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["step", "--variants=B/17"])
  assert step.main() == 1
  assert "B/17" in capsys.readouterr().err
