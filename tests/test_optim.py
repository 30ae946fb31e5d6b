import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import smoke
from mixer import durations, optim


def make_plan(total=100, warmup=10):
  return durations.Plan(total, warmup, 1, 1, 1)


def make_params(seed=0):
  rng = np.random.default_rng(seed)

  def array(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)

  return {
    "stem": {"kernel": array(2, 3), "bias": array(3)},
    "norm": {"scale": array(3), "bias": array(3)},
    "head": {"kernel": array(3, 2), "bias": array(2)},
  }


@pytest.mark.parametrize(
  "decay,expected",
  [
    ("linear", lambda t: 1 - t),
    ("cosine", lambda t: (1 + np.cos(np.pi * t)) / 2),
    ("constant", lambda t: 1.0),
  ],
)
@pytest.mark.parametrize("warmup", [0, 10])
def test_schedules_equal_their_formulas(decay, expected, warmup):
  config = smoke.get_config()
  config.optimizer.learning_rate = 0.5
  config.schedule.decay = decay
  schedule = optim.schedule(config, make_plan(100, warmup))
  for step in range(100):
    if step < warmup:
      value = 0.5 * step / warmup
    else:
      value = 0.5 * expected((step - warmup) / (100 - warmup))
    np.testing.assert_allclose(
      float(schedule(jnp.asarray(step, jnp.int32))), value, atol=1e-6
    )


def test_decay_mask_takes_kernels_alone():
  mask = optim.decay_mask(make_params())
  assert mask == {
    "stem": {"kernel": True, "bias": False},
    "norm": {"scale": False, "bias": False},
    "head": {"kernel": True, "bias": False},
  }


def run(config, plan, steps=8):
  """Ours on random gradients; yields (params, gradients, next params)."""
  optimizer = optim.make(config, plan)
  params = make_params()
  state = optimizer.init(params)
  for i in range(steps):
    gradients = jax.tree.map(lambda x: 3 * x, make_params(i + 1))
    updates, state = optimizer.update(gradients, state, params)
    following = optax.apply_updates(params, updates)
    yield params, gradients, following
    params = following


def flat(tree):
  return {
    jax.tree_util.keystr(k): np.asarray(v, np.float64)
    for k, v in jax.tree_util.tree_leaves_with_path(tree)
  }


def clipped(gradients, limit):
  norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
  return {k: g * min(1, limit / norm) for k, g in gradients.items()}


def test_adamw_with_clipping_equals_numpy():
  config = smoke.get_config()
  config.optimizer.weight_decay = 0.1
  config.optimizer.learning_rate = 0.02
  config.optimizer.clip_norm = 1.0
  plan = make_plan()
  schedule = optim.schedule(config, plan)
  b1, b2, eps = 0.9, 0.999, 1e-8
  m = v = None
  for i, (params, gradients, following) in enumerate(run(config, plan)):
    p, g = flat(params), clipped(flat(gradients), 1.0)
    m = {k: (1 - b1) * x + (b1 * m[k] if m else 0) for k, x in g.items()}
    v = {k: (1 - b2) * x**2 + (b2 * v[k] if v else 0) for k, x in g.items()}
    lr = float(schedule(i))
    for k, got in flat(following).items():
      direction = (m[k] / (1 - b1 ** (i + 1))) / (
        np.sqrt(v[k] / (1 - b2 ** (i + 1))) + eps
      )
      if "kernel" in k:
        direction = direction + 0.1 * p[k]
      np.testing.assert_allclose(got, p[k] - lr * direction, atol=2e-6)


def test_sgd_with_momentum_equals_numpy():
  config = smoke.get_config()
  config.optimizer.name = "sgd"
  config.optimizer.weight_decay = 0.0
  config.optimizer.momentum = 0.9
  config.optimizer.clip_norm = 0.5
  plan = make_plan()
  schedule = optim.schedule(config, plan)
  trace = None
  for i, (params, gradients, following) in enumerate(run(config, plan)):
    g = clipped(flat(gradients), 0.5)
    trace = {k: x + (0.9 * trace[k] if trace else 0) for k, x in g.items()}
    for k, got in flat(following).items():
      expected = flat(params)[k] - float(schedule(i)) * trace[k]
      np.testing.assert_allclose(got, expected, atol=2e-6)


def test_no_clipping_where_the_norm_is_zero():
  config = smoke.get_config()
  config.optimizer.name = "sgd"
  config.optimizer.weight_decay = config.optimizer.momentum = 0.0
  config.optimizer.clip_norm = 0.0
  config.schedule.decay = "constant"
  for params, gradients, following in run(config, make_plan(100, 0), 1):
    for k, got in flat(following).items():
      expected = flat(params)[k] - 1e-2 * flat(gradients)[k]
      np.testing.assert_allclose(got, expected, atol=1e-5)
