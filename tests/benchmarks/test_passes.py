"""What is timed does what it is said to do."""

import dataclasses

import jax
import numpy as np

from benchmarks import passes, step
from mixer import durations, sharding, weights
from mixer import step as step_lib


def test_the_optimizer_alone_is_adamw():
  # In float64, by the paper's formulas (arXiv 1711.05101), with clipping.
  mesh = sharding.make_mesh(jax.devices()[:1])
  config = step.recipe("S/32", 2, "float32")
  config.image_size = 32
  config.schedule.warmup = "0 steps"
  config.schedule.decay = "constant"
  for name in ("num_blocks", "hidden_dim", "tokens_mlp_dim"):
    config.model[name] = 8 if name == "hidden_dim" else 1
  config.model.channels_mlp_dim = 4
  config.optimizer.clip_norm = 0.01
  plan = durations.plan(config, 1)
  trainer = step_lib.Trainer(config, plan, 3, mesh)
  update = passes.optimizer_alone(config, plan, trainer)
  rng = np.random.default_rng(0)
  before = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), trainer.abstract)
  before = dataclasses.replace(
    before,
    params=jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(x.dtype), before.params
    ),
  )
  gradients = jax.tree.map(lambda x: np.full_like(x, 1e-3), before.params)
  state = jax.device_put(
    before, jax.tree.map(lambda x: x.sharding, trainer.abstract)
  )
  for _ in range(2):
    state = update(state, gradients)
  after = jax.device_get(state)
  assert int(after.step) == 2
  old = weights.flatten(before.params)
  size = sum(x.size for x in old.values())
  g = 1e-3 * min(1.0, 0.01 / (1e-3 * size**0.5))
  for name, new in weights.flatten(after.params).items():
    expected, m, v = np.float64(old[name]), 0.0, 0.0
    for t in (1, 2):
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
      adam = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
      decay = 0.1 * expected if name.endswith("kernel") else 0.0
      expected = expected - 1e-3 * (adam + decay)
    np.testing.assert_allclose(new, expected, rtol=2e-6, atol=1e-7)


def test_work_of_the_rates(monkeypatch):
  monkeypatch.setattr(passes, "_MATMUL", {"cpu": 10})
  assert passes.matmul("float32")[1] == 2 * 10 * 10 * 10
