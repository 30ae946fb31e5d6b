import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixer import model, optim, sharding, train_step
from tests import conftest, updates


def plain_update(config, params, opt_state, step, batch):
  """One update written out, without jit, sharding or TrainState."""
  key = train_step.key_for(config.seed, train_step.Purpose.MIXUP, step)
  a = train_step.mixup_weight(key, config.loss.mixup)
  images = jnp.asarray(batch["image"].astype(np.float32) / 127.5 - 1)
  targets = jax.nn.one_hot(batch["label"], 10)
  images = a * images + (1 - a) * jnp.roll(images, 1, axis=0)
  targets = a * targets + (1 - a) * jnp.roll(targets, 1, axis=0)
  module = model.from_config(config, 10)
  whole_key = train_step.key_for(config.seed, train_step.Purpose.DROPOUT, step)
  parts = config.optimizer.accumulate

  @jax.jit
  @jax.value_and_grad
  def loss(params, images, targets, key):
    logits = model.apply(module, params, images, key=key)
    return -(targets * jax.nn.log_softmax(logits)).sum(axis=-1).mean()

  def gradient(params):
    values = []
    for i in range(parts):
      key = whole_key if parts == 1 else jax.random.fold_in(whole_key, i)
      values.append(loss(params, images[i::parts], targets[i::parts], key))
    return jax.tree.map(lambda *x: sum(x) / parts, *values)

  value, gradients = gradient(params)
  used, rho = gradients, config.optimizer.sam_rho
  if rho:
    distance = updates.norm_of(gradients)
    used = gradient(
      jax.tree.map(lambda p, g: p + rho * g / distance, params, gradients)
    )[1]
  optimizer = optim.make(config, updates.PLAN)
  change, opt_state = optimizer.update(used, opt_state, params)
  return value, gradients, optax.apply_updates(params, change), opt_state


@pytest.mark.parametrize(("accumulate", "rho"), [(1, 0.0), (4, 0.5)])
def test_updates_and_metrics_equal_a_plain_loop(smoke_config, accumulate, rho):
  smoke_config.optimizer.accumulate = accumulate
  smoke_config.optimizer.sam_rho = rho
  trainer, state, metrics = updates.run(smoke_config, 1, steps=3)
  params = jax.device_get(trainer.init().params)
  average = params
  opt_state = optim.make(smoke_config, updates.PLAN).init(params)
  schedule = optim.schedule(smoke_config, updates.PLAN)
  for i in range(3):
    norm = updates.norm_of(params)
    value, gradients, params, opt_state = plain_update(
      smoke_config, params, opt_state, i, updates.make_batch(i)
    )
    average = jax.tree.map(
      lambda old, new: 0.9 * old + 0.1 * new, average, params
    )
    np.testing.assert_allclose(metrics[i]["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(
      metrics[i]["grad_norm"], updates.norm_of(gradients), rtol=1e-4
    )
    np.testing.assert_allclose(metrics[i]["param_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics[i]["learning_rate"], schedule(i))
    assert ("sam_loss" in metrics[i]) == bool(rho)
  assert int(state.step) == 3
  updates.assert_trees_close(jax.device_get(state.params), params, atol=2e-4)
  updates.assert_trees_close(jax.device_get(state.ema), average, atol=2e-4)


@pytest.mark.slow
def test_no_average_where_none_is_wanted(smoke_config):
  smoke_config.optimizer.ema_decay = 0.0
  _, state, _ = updates.run(smoke_config, 1, steps=1)
  assert state.ema is None
  assert state.eval_params is state.params


def test_evaluation_uses_the_average(smoke_config):
  _, state, _ = updates.run(smoke_config, 1, steps=1)
  assert state.eval_params is state.ema


def test_keys_differ_by_seed_purpose_and_step():
  keys = [
    tuple(jax.random.key_data(train_step.key_for(seed, purpose, step)).tolist())
    for seed in range(3)
    for purpose in train_step.Purpose
    for step in range(3)
  ]
  assert len(set(keys)) == len(keys)


def test_step_is_counted_in_the_state(smoke_config):
  _, state, _ = updates.run(smoke_config, 2, steps=2)
  assert dataclasses.replace(state).step == 2
  assert state.step.dtype == jnp.int32


@pytest.mark.parametrize(
  ("loss", "smoothing", "mixup"),
  [
    ("softmax", 0.1, 0.5),
    pytest.param("sigmoid", 0.0, 0.5, marks=pytest.mark.slow),
    pytest.param("softmax", 0.0, 0.0, marks=pytest.mark.slow),
  ],
)
def test_parts_make_the_update_of_the_whole_batch(
  plain_config, loss, smoothing, mixup
):
  plain_config.loss.update(name=loss, label_smoothing=smoothing, mixup=mixup)
  # Adam would blow the rounding of gradients that are all but zero up.
  plain_config.optimizer.update(name="sgd", weight_decay=0.0, learning_rate=0.3)
  trainer, whole, whole_metrics = updates.run(plain_config, 1, steps=4)
  plain_config.optimizer.accumulate = 4
  _, parts, parts_metrics = updates.run(plain_config, 1, steps=4)
  updates.assert_trees_close(parts_metrics, whole_metrics, rtol=1e-5)
  updates.assert_trees_close(parts, whole, atol=2e-6)
  # All kernels have moved by far more than that.
  start = dict(conftest.leaves(trainer.init().params))
  for name, leaf in conftest.leaves(whole.params):
    if "kernel" in name:
      assert abs(leaf - start[name]).max() > 1e-4, name


def test_a_probe_trains_the_head_alone(plain_config):
  plain_config.optimizer.train = "head"
  trainer, state, _ = updates.run(plain_config, 8)
  start = dict(conftest.leaves(trainer.init().params))
  for name, leaf in conftest.leaves(state.params):
    assert np.array_equal(leaf, start[name]) == ("['head']" not in name)
  for name, leaf in conftest.leaves(state.ema):
    assert np.array_equal(leaf, start[name]) == ("['head']" not in name)
  # Adam's two moments of kernel and bias, and two counts.
  assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * 170 + 2


@pytest.mark.slow
def test_what_is_frozen_costs_no_backward_pass(plain_config):
  plain_config.model.update(num_blocks=3, hidden_dim=64)

  def operations(train):
    plain_config.optimizer.train = train
    return updates.compiled(plain_config, 1).cost_analysis()["flops"]

  # Forward alone is a third.
  assert operations("head") < 0.45 * operations("all")


def test_a_frozen_part_is_left_out_of_the_norm_that_clips(plain_config):
  plain_config.optimizer.update(
    name="sgd", weight_decay=0.0, momentum=0.0, clip_norm=1e-3, ema_decay=0.0
  )
  plain_config.optimizer.lr_factors = (("head/bias", 1.0), (".*", 0.0))
  plain_config.schedule.decay = "constant"
  plan = dataclasses.replace(updates.PLAN, warmup=0)
  mesh = sharding.make_mesh(jax.devices()[:1])
  trainer = train_step.Trainer(plain_config, plan, 10, mesh)
  batch = sharding.put_batch(mesh, updates.make_batch())
  state, metrics = trainer.train_step(trainer.init(), batch)
  moved = state.params["head"]["bias"]  # From zero.
  assert metrics["grad_norm"] > 1e-3
  np.testing.assert_allclose(
    updates.norm_of(moved),
    1e-3 * plain_config.optimizer.learning_rate,
    rtol=1e-3,
  )
  assert not state.params["head"]["kernel"].any()


def test_a_perturbed_gradient_that_is_not_finite_shows(plain_config):
  # So that the run stops before such a state is saved.
  plain_config.optimizer.sam_rho = 1e38
  _, _, metrics = updates.run(plain_config, 1, steps=1)
  assert np.isfinite(metrics[0]["loss"])
  assert not np.isfinite(metrics[0]["grad_norm"])


# Updates that are skipped.


@pytest.mark.parametrize("rho", [0.0, updates.slow(0.1)])
def test_a_broken_update_is_skipped_and_leaves_no_trace(smoke_config, rho):
  smoke_config.nonfinite = "skip"
  smoke_config.sharding.min_size = 64
  smoke_config.optimizer.sam_rho = rho
  mesh = sharding.make_mesh()
  trainer = train_step.Trainer(smoke_config, updates.PLAN, 10, mesh)

  def update(state, i):
    batch = sharding.put_batch(mesh, updates.make_batch(i))
    state, metrics = trainer.train_step(state, batch)
    return state, jax.device_get(metrics)

  def host(state):
    return jax.tree.map(lambda x: np.array(x, copy=True), state)

  state, metrics = update(trainer.init(), 0)
  assert metrics["skipped"] == 0
  before = host(state)
  # A weight is infinite for one update; the arrays are put back after it.
  broken = jax.tree.map(np.copy, before)
  broken.params["stem"]["kernel"][0, 0, 0, 0] = np.inf
  where = jax.tree.map(lambda x: x.sharding, trainer.abstract)
  state, metrics = update(jax.device_put(broken, where), 1)
  assert metrics["skipped"] == 1
  assert metrics["skipped"].dtype == np.float32
  assert not np.isfinite(metrics["loss"] + metrics["grad_norm"])
  after = host(state)
  assert after.step == before.step + 1
  jax.tree.map(
    np.testing.assert_array_equal, after, broken.replace(step=after.step)
  )
  # The next one is that of a run that never had the batch, at the same step.
  healed = broken.replace(step=after.step, params=before.params)
  state, metrics = update(jax.device_put(healed, where), 2)
  assert metrics["skipped"] == 0
  moved, spared = host(state), before.replace(step=after.step)
  expected, _ = update(jax.device_put(spared, where), 2)
  jax.tree.map(np.testing.assert_array_equal, moved, host(expected))
  assert any(
    np.any(x) for x in jax.tree.leaves(optax.tree.get(moved.opt_state, "mu"))
  )
  # The schedule goes by the updates made.
  schedule = optim.schedule(smoke_config, updates.PLAN)
  np.testing.assert_allclose(metrics["learning_rate"], schedule(1))
  assert trainer.train_step._cache_size() == 1


def test_a_step_that_was_skipped_goes_on_by_itself(plain_config):
  # Nobody mends anything: an update so large that the next loss overflows
  # stays; all after it are skipped, and count.
  plain_config.nonfinite = "skip"
  plain_config.optimizer.update(
    name="sgd", learning_rate=1e38, clip_norm=0.0, weight_decay=0.0
  )
  _, state, metrics = updates.run(plain_config, 2, steps=5)
  skipped = [m["skipped"] for m in metrics]
  assert skipped[:1] == [0]
  assert skipped[-1] == 1
  assert skipped == sorted(skipped)
  assert int(state.step) == 5
  assert int(optim.updates_done(state.opt_state, state.step)) == skipped.count(
    0
  )


def test_where_broken_updates_stop_a_run_nothing_is_added(plain_config):
  trainer, state, metrics = updates.run(plain_config, 1, steps=1)
  assert "skipped" not in metrics[0]
  plain_config.nonfinite = "skip"
  _, same, _ = updates.run(plain_config, 1, steps=1)
  updates.assert_trees_close(state, same, atol=1e-6)
  # On the contrary: what it came to is there to be looked at.
  params = jax.device_get(state.params)
  params["head"]["bias"] = np.full_like(params["head"]["bias"], np.nan)
  where = jax.tree.map(lambda x: x.sharding, trainer.abstract.params)
  broken = dataclasses.replace(state, params=jax.device_put(params, where))
  mesh = sharding.make_mesh(jax.devices()[:1])
  state, metrics = trainer.train_step(
    broken, sharding.put_batch(mesh, updates.make_batch())
  )
  assert not np.isfinite(metrics["loss"])
  assert np.isnan(state.params["stem"]["kernel"]).all()
