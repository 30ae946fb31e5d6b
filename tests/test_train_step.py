"""The training step beside loops written out, on any number of devices."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import model, optim, saving, sharding, train_step
from mixer.errors import UserError
from tests import conftest, updates

SGD = {"name": "sgd", "weight_decay": 0.0, "learning_rate": 0.3}


def update(trainer, state, i=0, devices=8):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  batch = sharding.put_batch(mesh, updates.make_batch(i))
  state, metrics = trainer.train_step(state, batch)
  return state, jax.device_get(metrics)


# Inputs and losses.


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(0, 0.9))
def test_losses_equal_numpy(seed, smoothing):
  rng = np.random.default_rng(seed)
  logits = (3 * rng.standard_normal((4, 6))).astype(np.float32)
  labels = rng.integers(0, 6, 4)
  targets = train_step.one_hot(jnp.asarray(labels), 6, smoothing)
  expected = np.full((4, 6), smoothing / 6)
  expected[np.arange(4), labels] += 1 - smoothing
  np.testing.assert_allclose(targets, expected, atol=1e-6)
  p = np.exp(logits.astype(np.float64))
  log_p = np.log(p / p.sum(axis=-1, keepdims=True))
  for name, terms in (
    ("softmax", expected * log_p),
    (
      "sigmoid",
      expected * np.log(p / (1 + p)) - (1 - expected) * np.log(1 + p),
    ),
  ):
    got = train_step.example_losses(name, jnp.asarray(logits), targets)
    np.testing.assert_allclose(got, -terms.sum(axis=-1), rtol=1e-4)


@pytest.mark.parametrize("weight", [None, 0.7])
def test_inputs_are_scaled_smoothed_and_mixed(smoke_config, weight):
  smoke_config.loss.label_smoothing = 0.1
  batch = updates.make_batch(size=5)
  given = jax.tree.map(jnp.asarray, batch)
  if weight is not None:
    given = train_step.with_neighbours(given)
    # What moves between devices is small.
    assert given["neighbour_image"].dtype == np.uint8
  images, targets = train_step.training_inputs(
    given, smoke_config, 10, None if weight is None else jnp.float32(weight)
  )
  scaled = batch["image"] / 127.5 - 1
  soft = np.eye(10)[batch["label"]] * 0.9 + 0.01
  a = weight or 1.0
  for got, want in ((images, scaled), (targets, soft)):
    mixed = a * want + (1 - a) * np.roll(want, 1, axis=0)
    np.testing.assert_allclose(got, mixed, atol=1e-6)
  half = model.scale(given["image"], jnp.dtype("bfloat16"))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32), scaled, atol=2**-8)


def test_mixup_weights_follow_the_folded_beta_distribution():
  p, n = 0.5, 4000
  weights = jax.vmap(lambda key: train_step.mixup_weight(key, p))(
    jax.random.split(jax.random.key(0), n)
  )
  assert 0.5 <= weights.min() <= weights.max() <= 1
  # Independent: numpy's own draws of the same law.
  draws = np.random.default_rng(0).beta(p, p, n)
  quantiles = np.linspace(0.05, 0.95, 10)
  np.testing.assert_allclose(
    np.quantile(weights, quantiles),
    np.quantile(np.maximum(draws, 1 - draws), quantiles),
    atol=0.03,
  )


def test_keys_differ_by_seed_purpose_and_step():
  keys = [
    tuple(jax.random.key_data(train_step.key_for(seed, purpose, step)).tolist())
    for seed in range(3)
    for purpose in train_step.Purpose
    for step in range(3)
  ]
  assert len(set(keys)) == len(keys)


# Gradients.


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-15, 1e15, 1e30])
def test_ascent_goes_rho_along_the_gradient(size):
  # A zero gradient has no direction; the squares of some leave float32.
  params = {"w": jnp.ones(4)}
  got = train_step.ascended(params, {"w": jnp.full(4, size)}, 0.5)["w"]
  expected = 1.25 if size in (1e-15, 1e15) else 1.0
  np.testing.assert_allclose(got, expected, rtol=1e-5)


# Updates.


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


@pytest.mark.parametrize(
  ("accumulate", "rho"), [updates.slow(1, 0.0), (4, 0.5)]
)
def test_updates_and_metrics_equal_a_plain_loop(smoke_config, accumulate, rho):
  smoke_config.optimizer.update(accumulate=accumulate, sam_rho=rho)
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
    expected = {
      "loss": value,
      "grad_norm": updates.norm_of(gradients),
      "param_norm": norm,
      "learning_rate": schedule(i),
    }
    assert metrics[i].keys() - {"sam_loss"} == expected.keys()
    for name, want in expected.items():
      np.testing.assert_allclose(metrics[i][name], want, rtol=1e-4)
    assert ("sam_loss" in metrics[i]) == bool(rho)
  assert int(state.step) == 3 and state.step.dtype == jnp.int32
  updates.assert_trees_close(jax.device_get(state.params), params, atol=2e-4)
  updates.assert_trees_close(jax.device_get(state.ema), average, atol=2e-4)
  assert state.eval_params is state.ema


@pytest.mark.parametrize(
  ("devices", "zero1", "fsdp", "options"),
  [
    (8, True, 2, {"accumulate": 2, "sam_rho": 0.5}),
    updates.slow(8, True, 1, {}),
    updates.slow(4, False, 2, {}),
    updates.slow(8, False, 1, {}),
    updates.slow(8, True, 8, {"train": "head"}),
    updates.slow(8, True, 2, {"name": "muon", "args": {"ns_steps": 3}}),
  ],
)
def test_any_number_of_devices_computes_the_same(
  smoke_config, devices, zero1, fsdp, options
):
  # With dropout, stochastic depth and mixup: randomness is the same too.
  smoke_config.optimizer.update(options)
  _, one, one_metrics = updates.run(smoke_config, 1)
  smoke_config.sharding.update(zero1=zero1, fsdp=fsdp, min_size=64)
  trainer, many, many_metrics = updates.run(smoke_config, devices)
  updates.assert_trees_close(one_metrics, many_metrics, rtol=5e-5)
  updates.assert_trees_close(
    jax.device_get(one), jax.device_get(many), atol=5e-5
  )
  jax.tree.map(
    lambda x, a: np.testing.assert_equal(x.sharding, a.sharding),
    many,
    trainer.abstract,
  )
  leaf = many.params["stem"]["kernel"]
  assert len(leaf.sharding.device_set) == devices
  assert leaf.sharding.is_fully_replicated == (fsdp == 1)
  assert trainer.train_step._cache_size() == 1
  # Donated: the state goes in and its buffers come out.
  if devices == 8 and fsdp == 1:
    update(trainer, many)
    assert all(x.is_deleted() for x in jax.tree.leaves(many))


def test_several_updates_at_once_are_those_one_by_one(smoke_config):
  trainer, state, metrics = updates.run(smoke_config, 8)
  batches = [updates.make_batch(i) for i in range(3)]
  other, found = trainer.train_steps(
    trainer.init(), sharding.put_batches(sharding.make_mesh(), batches)
  )
  updates.assert_trees_close(state, other, rtol=1e-3, atol=1e-4)
  for i, values in enumerate(metrics):
    assert found.keys() == values.keys()
    for name, value in values.items():
      np.testing.assert_allclose(found[name][i], value, rtol=1e-4)
  # And again, to the bit.
  again = trainer.init()
  for i in range(3):
    again, _ = update(trainer, again, i)
  jax.tree.map(np.testing.assert_array_equal, state, again)


@pytest.mark.slow
def test_bfloat16_keeps_state_in_float32(smoke_config):
  _, _, exact = updates.run(smoke_config, 8)
  smoke_config.model.dtype = "bfloat16"
  _, state, metrics = updates.run(smoke_config, 8)
  kinds = {x.dtype for x in jax.tree.leaves((state.params, state.ema))}
  assert kinds == {jnp.dtype("float32")}
  for one, two in zip(metrics, exact, strict=True):
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=0.01)


@pytest.mark.parametrize("fsdp", [2, updates.slow(1)])
def test_what_accelerators_compute_is_the_same(plain_config, fsdp):
  plain_config.optimizer.update(SGD)
  plain_config.sharding.min_size = 64
  _, whole, whole_metrics = updates.run(plain_config, 1)
  plain_config.model.layout, plain_config.sharding.fsdp = "token_major", fsdp
  _, other, metrics = updates.run(plain_config, 8)
  updates.assert_trees_close(whole, other, rtol=2e-3, atol=2e-4)
  updates.assert_trees_close(whole_metrics, metrics, rtol=1e-3)


_MOVES = r"all-gather|all-to-all|reduce-scatter|collective-permute|all-reduce"


@pytest.mark.parametrize(
  ("mixup", "accumulate"),
  [(0.5, 4), updates.slow(0.0, 4), updates.slow(0.5, 1)],
)
def test_no_example_moves_but_for_mixup(plain_config, accumulate, mixup):
  plain_config.loss.mixup = mixup
  plain_config.optimizer.update(accumulate=accumulate, sam_rho=0.5)
  text = updates.compiled(plain_config, 8).as_text()
  lines = re.findall(rf"= (.*) (?:{_MOVES})(?:-start)?\(", text)
  moved = {x for line in lines for x in re.findall(r"\w+\[[\d,]*\]", line)}
  # Gradients in float32, losses; and each device hands the last of its
  # examples to the next device.
  trainer = train_step.Trainer(
    plain_config, updates.PLAN, 10, sharding.make_mesh()
  )
  parameters = jax.tree.leaves(trainer.abstract.params)
  gradients = {f"f32{list(x.shape)}".replace(" ", "") for x in parameters}
  gradients |= {"f32[]", "f32[10,16]"}  # The last: the head's, transposed.
  neighbours = {"s32[1]", "u8[1,16,16,3]"} if mixup else set()
  assert "f32[4,4,3,16]" in moved
  assert moved - gradients == neighbours


@pytest.mark.slow
def test_parts_and_frozen_layers_save_memory_and_time(plain_config):
  plain_config.batch_size, plain_config.image_size = 64, 64
  plain_config.model.update(num_blocks=3, hidden_dim=64)

  def compiled(**options):
    plain_config.optimizer.update(options)
    return updates.compiled(plain_config, 1)

  whole = compiled()
  # Beside an eighth of the activations there are gradients and bytes.
  parts = compiled(accumulate=8).memory_analysis().temp_size_in_bytes
  assert parts < 0.25 * whole.memory_analysis().temp_size_in_bytes
  # Forward alone is a third.
  probe = compiled(accumulate=1, train="head").cost_analysis()["flops"]
  assert probe < 0.45 * whole.cost_analysis()["flops"]


# What is trained.


def test_patterns_are_compared_with_the_model(plain_config):
  plain_config.optimizer.lr_factors = (("MixerBlock_1/.*", 0.0),)
  with pytest.raises(UserError, match="'MixerBlock_1/.*', which matches no"):
    train_step.Trainer(plain_config, updates.PLAN, 10, sharding.make_mesh())


@pytest.mark.parametrize(
  "options",
  [
    {"train": "head"},
    updates.slow({"lr_factors": (("stem/.*", 0.0),), "sam_rho": 0.1} | SGD),
    updates.slow({"name": "lion", "args": {"mu_dtype": "bfloat16"}}),
  ],
  ids=["probe", "part", "lion"],
)
def test_what_is_frozen_stays_and_the_state_is_restored(
  plain_config, tmp_path, options
):
  plain_config.optimizer.update(options)
  plain_config.sharding.min_size = 64
  trainer, state, _ = updates.run(plain_config, 8, steps=2)
  start = dict(conftest.leaves(trainer.init().params))
  for tree in (state.params, state.ema):
    for name, leaf in conftest.leaves(tree):
      stays = np.array_equal(leaf, start[name])
      if options.get("train"):
        assert stays == ("['head']" not in name), name
      elif "kernel" in name:
        assert stays == ("lr_factors" in options and "stem" in name), name
  if options.get("train"):  # Adam's moments of kernel and bias, two counts.
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * 170 + 2
  with saving.Checkpoints(tmp_path) as saved:
    saved.save(2, state, {})
    restored, _ = saved.restore(trainer.abstract)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  both = [update(trainer, s, 2)[0] for s in (restored, state)]
  jax.tree.map(np.testing.assert_array_equal, *both)
  # A state from a checkpoint needs no other program.
  assert trainer.train_step._cache_size() == 1


def test_a_frozen_part_is_left_out_of_the_norm_that_clips(plain_config):
  plain_config.optimizer.update(SGD)
  plain_config.optimizer.update(momentum=0.0, clip_norm=1e-3, ema_decay=0.0)
  plain_config.optimizer.lr_factors = (("head/bias", 1.0), (".*", 0.0))
  plain_config.schedule.decay = "constant"
  plan = dataclasses.replace(updates.PLAN, warmup=0)
  mesh = sharding.make_mesh(jax.devices()[:1])
  trainer = train_step.Trainer(plain_config, plan, 10, mesh)
  state, metrics = update(trainer, trainer.init(), devices=1)
  moved = state.params["head"]["bias"]  # From zero.
  assert metrics["grad_norm"] > 1e-3
  np.testing.assert_allclose(updates.norm_of(moved), 1e-3 * 0.3, rtol=1e-3)
  assert not state.params["head"]["kernel"].any()
  assert state.ema is None and state.eval_params is state.params


# Updates that break.


def test_a_perturbed_gradient_that_is_not_finite_shows(plain_config):
  # So that the run stops before such a state is saved.
  plain_config.optimizer.sam_rho = 1e38
  _, _, metrics = updates.run(plain_config, 1, steps=1)
  assert np.isfinite(metrics[0]["loss"])
  assert not np.isfinite(metrics[0]["grad_norm"])


@pytest.mark.parametrize("rho", [0.0, updates.slow(0.1)])
def test_a_broken_update_is_skipped_and_leaves_no_trace(smoke_config, rho):
  smoke_config.nonfinite = "skip"
  smoke_config.sharding.min_size = 64
  smoke_config.optimizer.sam_rho = rho
  trainer = train_step.Trainer(
    smoke_config, updates.PLAN, 10, sharding.make_mesh()
  )
  where = jax.tree.map(lambda x: x.sharding, trainer.abstract)

  def host(state):
    return jax.tree.map(lambda x: np.array(x, copy=True), state)

  state, metrics = update(trainer, trainer.init(), 0)
  assert metrics["skipped"] == 0
  before = host(state)
  # A weight is infinite for one update; the arrays are put back after it.
  broken = jax.tree.map(np.copy, before)
  broken.params["stem"]["kernel"][0, 0, 0, 0] = np.inf
  state, metrics = update(trainer, jax.device_put(broken, where), 1)
  assert metrics["skipped"] == 1
  assert not np.isfinite(metrics["loss"] + metrics["grad_norm"])
  after = host(state)
  assert after.step == before.step + 1
  jax.tree.map(
    np.testing.assert_array_equal, after, broken.replace(step=after.step)
  )
  # The next one is that of a run that never had the batch, at the same step.
  healed = broken.replace(step=after.step, params=before.params)
  state, metrics = update(trainer, jax.device_put(healed, where), 2)
  assert metrics["skipped"] == 0
  moved, spared = host(state), before.replace(step=after.step)
  expected, _ = update(trainer, jax.device_put(spared, where), 2)
  jax.tree.map(np.testing.assert_array_equal, moved, host(expected))
  moments = optax.tree.get(moved.opt_state, "mu")
  assert any(np.any(x) for x in jax.tree.leaves(moments))
  # The schedule goes by the updates made.
  schedule = optim.schedule(smoke_config, updates.PLAN)
  np.testing.assert_allclose(metrics["learning_rate"], schedule(1))
  assert trainer.train_step._cache_size() == 1


def test_a_step_that_was_skipped_goes_on_by_itself(plain_config):
  # Nobody mends anything: an update so large that the next loss overflows
  # stays; all after it are skipped, and count.
  plain_config.nonfinite = "skip"
  plain_config.optimizer.update(SGD)
  plain_config.optimizer.update(learning_rate=1e38, clip_norm=0.0)
  _, state, metrics = updates.run(plain_config, 2, steps=5)
  skipped = [m["skipped"] for m in metrics]
  assert skipped[:1] == [0]
  assert skipped[-1] == 1
  assert skipped == sorted(skipped)
  assert int(state.step) == 5
  made = optim.updates_done(state.opt_state, state.step)
  assert int(made) == skipped.count(0)
