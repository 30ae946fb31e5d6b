"""Updates of small models on virtual devices, for the tests of them."""

import jax
import numpy as np
import pytest

from mixer import durations, planning, sharding, train_step

PLAN = durations.Plan(
  total=20, warmup=2, log_every=1, eval_every=1, checkpoint_every=1
)


def make_batch(i=0, size=16):
  rng = np.random.default_rng(i)
  return {
    "image": rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8),
    "label": rng.integers(0, 10, size, dtype=np.int32),
  }


def run(config, devices, steps=3):
  """The state and the metrics after some updates on that many devices."""
  mesh = sharding.make_mesh(jax.devices()[:devices], config.sharding.fsdp)
  trainer = train_step.Trainer(config, PLAN, 10, mesh)
  state, metrics = trainer.init(), []
  for i in range(steps):
    batch = sharding.put_batch(mesh, make_batch(i))
    state, values = trainer.train_step(state, batch)
    metrics.append(jax.device_get(values))
  return trainer, state, metrics


def compiled(config, devices):
  """The update, compiled for abstract batches."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  return planning.lower(config, PLAN, 10, mesh).compile()


def norm_of(tree):
  return np.sqrt(sum(np.sum(np.asarray(x) ** 2) for x in jax.tree.leaves(tree)))


def assert_trees_close(one, two, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, two
  )


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)
