"""The training step beside loops written out, on any number of devices."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixer import model, optim, saving, sharding, train_step
from tests import conftest, updates

SGD = {"name": "sgd", "weight_decay": 0.0, "learning_rate": 0.3}


def update(trainer, state, i=0, devices=8):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  batch = sharding.put_batch(mesh, updates.make_batch(i))
  state, metrics = trainer.train_step(state, batch)
  return state, jax.device_get(metrics)


# Inputs and losses.


@pytest.mark.parametrize("weight", [None, 0.7, np.eye(16)[..., None]])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_losses_of_scaled_smoothed_and_mixed_inputs(smoke_config, weight, loss):
  smoke_config.loss.update(label_smoothing=0.1, name=loss)
  batch = updates.make_batch(size=5)
  given = jax.tree.map(jnp.asarray, batch)
  given |= {f"neighbour_{k}": jnp.roll(v, 1, axis=0) for k, v in given.items()}
  own = None if weight is None else jnp.float32(weight)
  images, targets = train_step.training_inputs(given, smoke_config, 10, own)
  scaled = batch["image"] / 127.5 - 1
  soft = np.eye(10)[batch["label"]] * 0.9 + 0.01
  share = 1.0 if weight is None else weight
  shares = share, np.mean(share)
  for got, want, a in zip(
    (images, targets), (scaled, soft), shares, strict=True
  ):
    mixed = a * want + (1 - a) * np.roll(want, 1, axis=0)
    np.testing.assert_allclose(got, mixed, atol=1e-6)
  half = model.scale(given["image"], jnp.dtype("bfloat16"))
  np.testing.assert_allclose(half.astype(jnp.float32), scaled, atol=2**-8)
  logits = 3 * np.random.default_rng(0).standard_normal((5, 10))
  p, t = np.exp(logits), np.asarray(targets, np.float64)
  terms = t * np.log(p / p.sum(axis=-1, keepdims=True))
  if loss == "sigmoid":
    terms = t * np.log(p / (1 + p)) - (1 - t) * np.log(1 + p)
  got = train_step.example_losses(loss, jnp.float32(logits), targets)
  np.testing.assert_allclose(got, -terms.sum(axis=-1), rtol=1e-4)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("mix", ["", "mixup", "cutmix"])
def test_weights_multiply_the_losses_and_are_mixed(plain_config, loss, mix):
  smoothing = 0.1 * (loss == "softmax")
  plain_config.loss.update(name=loss, label_smoothing=smoothing)
  plain_config.loss.update({"mixup": 0.0} | ({mix: 0.5} if mix else {}))
  module = model.from_config(plain_config, 10)
  batch = updates.make_batch(size=8)
  images = jnp.zeros((1, 16, 16, 3))
  params = module.init(jax.random.key(1), images)["params"]
  params["head"]["kernel"] += jax.random.normal(jax.random.key(2), (16, 10))
  w = np.random.default_rng(0).gamma(1, 1, 8).astype(np.float32)
  found = []
  for given in (batch, batch | {"weight": w}):
    given = jax.tree.map(jnp.asarray, given)
    losses, whole = train_step.losses_of(plain_config, module, 10, 3, given)
    found.append(losses(params, whole, None))
  a = 1.0
  if mix == "mixup":
    key = train_step.key_for(plain_config.seed, train_step.Purpose.MIXUP, 3)
    a = jax.random.beta(key, 0.5, 0.5)
    a = max(a, 1 - a)
  elif mix:
    a = np.mean(train_step.own_share(plain_config, 3))
    assert 0 < a < 1
  mixed = a * w + (1 - a) * np.roll(w, 1)
  np.testing.assert_allclose(found[1], found[0] * mixed, rtol=1e-5)


def test_cutmix_draws_boxes_of_any_share_anywhere(plain_config):
  plain_config.update(image_size=24, image_width=40)
  plain_config.loss.update(mixup=0.0, cutmix=1.0)

  def draw(count):
    def one(step):
      return train_step.own_share(plain_config, step)[..., 0]

    return np.asarray(jax.vmap(one)(jnp.arange(count)))

  boxes = draw(1000) == 0
  for mask in boxes[:100]:
    rows, columns = mask.any(1), mask.any(0)
    np.testing.assert_array_equal(mask, rows[:, None] & columns)
    for line in (rows, columns):  # One piece.
      assert np.abs(np.diff(line.astype(int), prepend=0, append=0)).sum() <= 2
  # Uniform but for what lies outside: with u = sqrt(1 - a), E of each side's
  # part inside is u - u^2 / 4, and 1 - a is uniform.
  u = np.sqrt(np.linspace(0, 1, 10_001))
  expected = np.mean((u - u**2 / 4) ** 2)
  assert abs(boxes.mean() - expected) < 0.03
  # As often in the middle of the left as of the right half, of top and bottom.
  share = boxes.mean(0)
  assert np.abs(share - share[::-1, ::-1]).max() < 0.06
  plain_config.loss.mixup = 0.5
  both = draw(100).reshape(100, -1)
  assert 30 < np.sum(both.min(1) == both.max(1)) < 70  # Mixup: one number.


def test_keys_differ_by_seed_purpose_and_step():
  keys = [
    tuple(jax.random.key_data(train_step.key_for(seed, purpose, step)).tolist())
    for seed in range(3)
    for purpose in train_step.Purpose
    for step in range(3)
  ]
  assert len(set(keys)) == len(keys)


# Updates.


def plain_update(config, params, opt_state, step, batch):
  """One update written out, without jit, sharding or TrainState."""
  key = train_step.key_for(config.seed, train_step.Purpose.MIXUP, step)
  a = jax.random.beta(key, config.loss.mixup, config.loss.mixup)
  a = jnp.maximum(a, 1 - a)
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
    updates.slow(4, False, 2, {"train": "head"}),
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


def test_what_accelerators_compute_is_the_same(plain_config):
  plain_config.optimizer.update(SGD)
  plain_config.sharding.min_size = 64
  _, whole, whole_metrics = updates.run(plain_config, 1)
  plain_config.model.layout, plain_config.sharding.fsdp = "token_major", 2
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


# What is trained.


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
