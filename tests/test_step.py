import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixer import durations, model, objective, optim, sharding
from mixer import step as step_lib

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
  mesh = sharding.make_mesh(jax.devices()[:devices])
  trainer = step_lib.Trainer(config, PLAN, 10, mesh)
  state, metrics = trainer.init(), []
  for i in range(steps):
    batch = sharding.put_batch(mesh, make_batch(i))
    state, values = trainer.train_step(state, batch)
    metrics.append(jax.device_get(values))
  return trainer, state, metrics


def assert_trees_close(one, two, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, two
  )


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_any_number_of_devices_computes_the_same(smoke_config, devices):
  # With dropout, stochastic depth and mixup: randomness is the same too.
  _, one, one_metrics = run(smoke_config, 1)
  trainer, many, many_metrics = run(smoke_config, devices)
  assert_trees_close(one_metrics, many_metrics, rtol=2e-5)
  assert_trees_close(
    jax.device_get(one.params), jax.device_get(many.params), atol=2e-5
  )
  leaf = many.params["stem"]["kernel"]
  assert len(leaf.sharding.device_set) == devices
  assert leaf.sharding.is_fully_replicated
  assert trainer.abstract.params["stem"]["kernel"].sharding == leaf.sharding


def test_repeats_to_the_bit(smoke_config):
  _, one, _ = run(smoke_config, 8)
  _, two, _ = run(smoke_config, 8)
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(one), jax.device_get(two)
  )


def test_compiles_once_and_never_copies_the_state(smoke_config):
  trainer, state, _ = run(smoke_config, 8)
  mesh = sharding.make_mesh()
  before = state
  for i in range(3):
    batch = sharding.put_batch(mesh, make_batch(i))
    state, _ = trainer.train_step(state, batch)
  assert trainer.train_step._cache_size() == 1
  # Donated: the state went in and its buffers came out.
  assert all(x.is_deleted() for x in jax.tree.leaves(before))


def plain_update(config, params, opt_state, step, batch):
  """One update written out, without jit, sharding or TrainState."""
  key = step_lib.key_for(config.seed, step_lib.Purpose.MIXUP, step)
  images = jnp.asarray(batch["image"].astype(np.float32) / 127.5 - 1)
  targets = jax.nn.one_hot(batch["label"], 10)
  images, targets = objective.mixup(key, images, targets, config.loss.mixup)
  module = step_lib.build_model(config, 10)
  dropout_key = step_lib.key_for(config.seed, step_lib.Purpose.DROPOUT, step)

  def loss(params):
    logits = model.apply(module, params, images, key=dropout_key)
    return -(targets * jax.nn.log_softmax(logits)).sum(axis=-1).mean()

  value, gradients = jax.jit(jax.value_and_grad(loss))(params)
  updates, opt_state = optim.make(config, PLAN).update(
    gradients, opt_state, params
  )
  return value, gradients, optax.apply_updates(params, updates), opt_state


def test_updates_and_metrics_equal_a_plain_loop(smoke_config):
  trainer, state, metrics = run(smoke_config, 1, steps=3)
  params = jax.device_get(trainer.init().params)
  average = params
  opt_state = optim.make(smoke_config, PLAN).init(params)
  schedule = optim.schedule(smoke_config, PLAN)
  for i in range(3):
    norm = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(params)))
    value, gradients, params, opt_state = plain_update(
      smoke_config, params, opt_state, i, make_batch(i)
    )
    average = jax.tree.map(
      lambda old, new: 0.9 * old + 0.1 * new, average, params
    )
    grad_norm = np.sqrt(
      sum(np.sum(np.asarray(x) ** 2) for x in jax.tree.leaves(gradients))
    )
    np.testing.assert_allclose(metrics[i]["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics[i]["grad_norm"], grad_norm, rtol=1e-4)
    np.testing.assert_allclose(metrics[i]["param_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics[i]["learning_rate"], schedule(i))
  assert int(state.step) == 3
  assert_trees_close(jax.device_get(state.params), params, atol=2e-4)
  assert_trees_close(jax.device_get(state.ema), average, atol=2e-4)


def test_no_average_where_none_is_wanted(smoke_config):
  smoke_config.optimizer.ema_decay = 0.0
  _, state, _ = run(smoke_config, 1, steps=1)
  assert state.ema is None
  assert state.eval_params is state.params


def test_evaluation_uses_the_average(smoke_config):
  _, state, _ = run(smoke_config, 1, steps=1)
  assert state.eval_params is state.ema


def test_bfloat16_keeps_state_in_float32(smoke_config):
  smoke_config.model.dtype = "bfloat16"
  _, state, metrics = run(smoke_config, 8)
  smoke_config.model.dtype = "float32"
  _, _, exact = run(smoke_config, 8)
  kinds = {x.dtype for x in jax.tree.leaves(state.params)}
  kinds |= {x.dtype for x in jax.tree.leaves(state.ema)}
  assert kinds == {jnp.dtype("float32")}
  for one, two in zip(metrics, exact, strict=True):
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=0.01)


def test_keys_differ_by_seed_purpose_and_step():
  keys = [
    tuple(jax.random.key_data(step_lib.key_for(seed, purpose, step)).tolist())
    for seed in range(3)
    for purpose in step_lib.Purpose
    for step in range(3)
  ]
  assert len(set(keys)) == len(keys)


def test_step_is_counted_in_the_state(smoke_config):
  _, state, _ = run(smoke_config, 2, steps=2)
  assert dataclasses.replace(state).step == 2
  assert state.step.dtype == jnp.int32
