import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixer import checkpoints, durations, model, objective, optim, sharding
from mixer import step as step_lib
from mixer.errors import UserError
from mixer.planning import compiling
from tests import conftest

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


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  ("devices", "zero1", "fsdp"),
  [
    slow(2, True, 1),
    slow(4, True, 1),
    (8, True, 1),
    slow(8, False, 1),
    slow(2, True, 2),
    slow(4, False, 2),
    (8, True, 2),
    slow(8, True, 8),
  ],
)
def test_any_number_of_devices_computes_the_same(
  smoke_config, devices, zero1, fsdp
):
  # With dropout, stochastic depth and mixup: randomness is the same too.
  _, one, one_metrics = run(smoke_config, 1)
  smoke_config.sharding.update(zero1=zero1, fsdp=fsdp, min_size=64)
  trainer, many, many_metrics = run(smoke_config, devices)
  assert_trees_close(one_metrics, many_metrics, rtol=2e-5)
  assert_trees_close(jax.device_get(one), jax.device_get(many), atol=2e-5)
  jax.tree.map(
    lambda x, a: np.testing.assert_equal(x.sharding, a.sharding),
    many,
    trainer.abstract,
  )
  leaf = many.params["stem"]["kernel"]
  assert len(leaf.sharding.device_set) == devices
  assert leaf.sharding.is_fully_replicated == (fsdp == 1)
  average = many.ema["stem"]["kernel"]
  assert average.sharding.is_fully_replicated == (fsdp == 1 and not zero1)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "fsdp"), [(2, 1), (8, 1), (8, 4)])
def test_sam_in_parts_is_the_same_on_any_number_of_devices(
  smoke_config, devices, fsdp
):
  # Likewise with dropout, stochastic depth and mixup.
  smoke_config.optimizer.update(accumulate=2, sam_rho=0.5)
  _, one, one_metrics = run(smoke_config, 1)
  smoke_config.sharding.update(fsdp=fsdp, min_size=64)
  _, many, many_metrics = run(smoke_config, devices)
  assert_trees_close(one_metrics, many_metrics, rtol=5e-5)
  assert_trees_close(
    jax.device_get(one.params), jax.device_get(many.params), atol=5e-5
  )


def test_repeats_to_the_bit(smoke_config):
  _, one, _ = run(smoke_config, 8)
  _, two, _ = run(smoke_config, 8)
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(one), jax.device_get(two)
  )


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"accumulate": 2, "sam_rho": 0.5},
    pytest.param({"train": "head"}, marks=pytest.mark.slow),
  ],
  ids=["plain", "SAM in parts", "probe"],
)
def test_compiles_once_and_never_copies_the_state(smoke_config, options):
  smoke_config.optimizer.update(options)
  smoke_config.sharding.min_size = 64
  trainer, state, _ = run(smoke_config, 8)
  mesh = sharding.make_mesh()
  before = state
  for i in range(3):
    batch = sharding.put_batch(mesh, make_batch(i))
    state, _ = trainer.train_step(state, batch)
  assert trainer.train_step._cache_size() == 1
  # Donated: the state went in and its buffers came out.
  assert all(x.is_deleted() for x in jax.tree.leaves(before))


def test_several_updates_at_once_are_those_one_by_one(smoke_config):
  trainer, state, metrics = run(smoke_config, 8)
  mesh = sharding.make_mesh()
  batches = [make_batch(i) for i in range(3)]
  other, found = trainer.train_steps(
    trainer.init(), sharding.put_batches(mesh, batches)
  )
  for a, b in zip(*map(jax.tree.leaves, (state, other)), strict=True):
    assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
  assert_trees_close(state, other, rtol=1e-3, atol=1e-4)
  for i, values in enumerate(metrics):
    assert found.keys() == values.keys()
    for name, value in values.items():
      np.testing.assert_allclose(found[name][i], value, rtol=1e-4)


def plain_update(config, params, opt_state, step, batch):
  """One update written out, without jit, sharding or TrainState."""
  key = step_lib.key_for(config.seed, step_lib.Purpose.MIXUP, step)
  a = objective.mixup_weight(key, config.loss.mixup)
  images = jnp.asarray(batch["image"].astype(np.float32) / 127.5 - 1)
  targets = jax.nn.one_hot(batch["label"], 10)
  images = a * images + (1 - a) * jnp.roll(images, 1, axis=0)
  targets = a * targets + (1 - a) * jnp.roll(targets, 1, axis=0)
  module = step_lib.build_model(config, 10)
  whole_key = step_lib.key_for(config.seed, step_lib.Purpose.DROPOUT, step)
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
    distance = norm_of(gradients)
    used = gradient(
      jax.tree.map(lambda p, g: p + rho * g / distance, params, gradients)
    )[1]
  updates, opt_state = optim.make(config, PLAN).update(used, opt_state, params)
  return value, gradients, optax.apply_updates(params, updates), opt_state


def norm_of(tree):
  return np.sqrt(sum(np.sum(np.asarray(x) ** 2) for x in jax.tree.leaves(tree)))


@pytest.mark.parametrize(("accumulate", "rho"), [(1, 0.0), (4, 0.5)])
def test_updates_and_metrics_equal_a_plain_loop(smoke_config, accumulate, rho):
  smoke_config.optimizer.accumulate = accumulate
  smoke_config.optimizer.sam_rho = rho
  trainer, state, metrics = run(smoke_config, 1, steps=3)
  params = jax.device_get(trainer.init().params)
  average = params
  opt_state = optim.make(smoke_config, PLAN).init(params)
  schedule = optim.schedule(smoke_config, PLAN)
  for i in range(3):
    norm = norm_of(params)
    value, gradients, params, opt_state = plain_update(
      smoke_config, params, opt_state, i, make_batch(i)
    )
    average = jax.tree.map(
      lambda old, new: 0.9 * old + 0.1 * new, average, params
    )
    np.testing.assert_allclose(metrics[i]["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(
      metrics[i]["grad_norm"], norm_of(gradients), rtol=1e-4
    )
    np.testing.assert_allclose(metrics[i]["param_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics[i]["learning_rate"], schedule(i))
    assert ("sam_loss" in metrics[i]) == bool(rho)
  assert int(state.step) == 3
  assert_trees_close(jax.device_get(state.params), params, atol=2e-4)
  assert_trees_close(jax.device_get(state.ema), average, atol=2e-4)


@pytest.mark.slow
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


@pytest.fixture
def plain_config(smoke_config):
  """Smaller, and without random numbers in the model."""
  smoke_config.model.update(
    num_blocks=1, hidden_dim=16, dropout=0.0, stochastic_depth=0.0
  )
  return smoke_config


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
  trainer, whole, whole_metrics = run(plain_config, 1, steps=4)
  plain_config.optimizer.accumulate = 4
  _, parts, parts_metrics = run(plain_config, 1, steps=4)
  assert_trees_close(parts_metrics, whole_metrics, rtol=1e-5)
  assert_trees_close(parts, whole, atol=2e-6)
  # All kernels have moved by far more than that.
  start = dict(conftest.leaves(trainer.init().params))
  for name, leaf in conftest.leaves(whole.params):
    if "kernel" in name:
      assert abs(leaf - start[name]).max() > 1e-4, name


_TOKENS_FIRST, _FUSED = dict(layout="token_major"), dict(token_mlp="pallas")


@pytest.mark.parametrize(
  ("how", "fsdp"),
  [(_TOKENS_FIRST, 2), slow(_TOKENS_FIRST, 1), slow(_FUSED, 2)],
  ids=["tokens first", "unsplit", "fused"],
)
def test_what_accelerators_compute_is_the_same(plain_config, how, fsdp):
  plain_config.optimizer.update(name="sgd", weight_decay=0.0, learning_rate=0.3)
  plain_config.sharding.min_size = 64
  _, whole, whole_metrics = run(plain_config, 1)
  plain_config.model.update(how)
  plain_config.sharding.fsdp = fsdp
  _, other, metrics = run(plain_config, 8)
  assert_trees_close(whole, other, rtol=2e-3, atol=2e-4)
  assert_trees_close(whole_metrics, metrics, rtol=1e-3)


def compiled(config, devices):
  """The update, compiled for abstract batches."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  return compiling.lower(config, PLAN, 10, mesh).compile()


_MOVES = r"all-gather|all-to-all|reduce-scatter|collective-permute|all-reduce"


@pytest.mark.parametrize(
  ("mixup", "accumulate"),
  [
    (0.0, 4),
    (0.5, 4),
    pytest.param(0.0, 1, marks=pytest.mark.slow),
    pytest.param(0.5, 1, marks=pytest.mark.slow),
  ],
)
def test_no_example_moves_but_for_mixup(plain_config, accumulate, mixup):
  plain_config.loss.mixup = mixup
  plain_config.optimizer.update(accumulate=accumulate, sam_rho=0.5)
  text = compiled(plain_config, 8).as_text()
  lines = re.findall(rf"= (.*) (?:{_MOVES})(?:-start)?\(", text)
  moved = {x for line in lines for x in re.findall(r"\w+\[[\d,]*\]", line)}
  # Gradients in float32, losses; and each device hands the last of its
  # examples to the next device.
  trainer = step_lib.Trainer(plain_config, PLAN, 10, sharding.make_mesh())
  parameters = jax.tree.leaves(trainer.abstract.params)
  gradients = {f"f32{list(x.shape)}".replace(" ", "") for x in parameters}
  gradients |= {"f32[]", "f32[10,16]"}  # The last: the head's, transposed.
  neighbours = {"s32[1]", "u8[1,16,16,3]"} if mixup else set()
  assert "f32[4,4,3,16]" in moved
  assert moved - gradients == neighbours


@pytest.mark.slow
def test_parts_take_less_memory(plain_config):
  plain_config.batch_size, plain_config.image_size = 64, 64
  plain_config.model.update(num_blocks=3, hidden_dim=64)

  def temporaries(accumulate):
    plain_config.optimizer.accumulate = accumulate
    return compiled(plain_config, 1).memory_analysis().temp_size_in_bytes

  # Beside an eighth of the activations there are gradients and bytes.
  assert temporaries(8) < 0.25 * temporaries(1)


def test_a_probe_trains_the_head_alone(plain_config):
  plain_config.optimizer.train = "head"
  trainer, state, _ = run(plain_config, 8)
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
    return compiled(plain_config, 1).cost_analysis()["flops"]

  # Forward alone is a third.
  assert operations("head") < 0.45 * operations("all")


def test_a_frozen_part_is_left_out_of_the_norm_that_clips(plain_config):
  plain_config.optimizer.update(
    name="sgd", weight_decay=0.0, momentum=0.0, clip_norm=1e-3, ema_decay=0.0
  )
  plain_config.optimizer.lr_factors = (("head/bias", 1.0), (".*", 0.0))
  plain_config.schedule.decay = "constant"
  plan = dataclasses.replace(PLAN, warmup=0)
  mesh = sharding.make_mesh(jax.devices()[:1])
  trainer = step_lib.Trainer(plain_config, plan, 10, mesh)
  batch = sharding.put_batch(mesh, make_batch())
  state, metrics = trainer.train_step(trainer.init(), batch)
  moved = state.params["head"]["bias"]  # From zero.
  assert metrics["grad_norm"] > 1e-3
  np.testing.assert_allclose(
    norm_of(moved), 1e-3 * plain_config.optimizer.learning_rate, rtol=1e-3
  )
  assert not state.params["head"]["kernel"].any()


def test_patterns_are_compared_with_the_model(plain_config):
  plain_config.optimizer.lr_factors = (("MixerBlock_1/.*", 0.0),)
  with pytest.raises(UserError, match="'MixerBlock_1/.*', which matches no"):
    step_lib.Trainer(plain_config, PLAN, 10, sharding.make_mesh())


@pytest.mark.parametrize(
  "options",
  [
    {"train": "head"},
    pytest.param(
      {"train": "head", "name": "sgd", "weight_decay": 0.0},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      {"lr_factors": (("stem/.*", 0.0), ("head/.*", 10.0)), "sam_rho": 0.1},
      marks=pytest.mark.slow,
    ),
  ],
  ids=["adamw", "sgd", "part"],
)
def test_a_state_with_frozen_parts_is_saved_and_restored(
  plain_config, tmp_path, options
):
  plain_config.optimizer.update(options)
  plain_config.sharding.min_size = 64
  trainer, state, _ = run(plain_config, 8, steps=2)
  with checkpoints.Checkpoints(tmp_path) as saved:
    saved.save(2, state, {})
    restored, _ = saved.restore(trainer.abstract)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  mesh = sharding.make_mesh()
  both = [
    trainer.train_step(s, sharding.put_batch(mesh, make_batch(2)))[0]
    for s in (restored, state)
  ]
  jax.tree.map(np.testing.assert_array_equal, *both)
  # What comes from a checkpoint lies as what was made does.
  assert trainer.train_step._cache_size() == 1


def test_a_perturbed_gradient_that_is_not_finite_shows(plain_config):
  # So that the run stops before such a state is saved.
  plain_config.optimizer.sam_rho = 1e38
  _, _, metrics = run(plain_config, 1, steps=1)
  assert np.isfinite(metrics[0]["loss"])
  assert not np.isfinite(metrics[0]["grad_norm"])


# Updates that are skipped.


def trainer_for(config, devices=8):
  mesh = sharding.make_mesh(jax.devices()[:devices], config.sharding.fsdp)
  return step_lib.Trainer(config, PLAN, 10, mesh), mesh


@pytest.mark.parametrize("rho", [0.0, slow(0.1)])
def test_a_broken_update_is_skipped_and_leaves_no_trace(smoke_config, rho):
  smoke_config.nonfinite = "skip"
  smoke_config.sharding.min_size = 64
  smoke_config.optimizer.sam_rho = rho
  trainer, mesh = trainer_for(smoke_config)

  def update(state, i):
    batch = sharding.put_batch(mesh, make_batch(i))
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
  assert any(np.any(x) for x in jax.tree.leaves(moved.opt_state[1].mu))
  # The schedule goes by the updates made.
  schedule = optim.schedule(smoke_config, PLAN)
  np.testing.assert_allclose(metrics["learning_rate"], schedule(1))
  assert trainer.train_step._cache_size() == 1


def test_a_step_that_was_skipped_goes_on_by_itself(plain_config):
  # Nobody mends anything: an update so large that the next loss overflows
  # stays; all after it are skipped, and count.
  plain_config.nonfinite = "skip"
  plain_config.optimizer.update(
    name="sgd", learning_rate=1e38, clip_norm=0.0, weight_decay=0.0
  )
  _, state, metrics = run(plain_config, 2, steps=5)
  skipped = [m["skipped"] for m in metrics]
  assert skipped[:1] == [0]
  assert skipped[-1] == 1
  assert skipped == sorted(skipped)
  assert int(state.step) == 5
  assert int(step_lib._updates(state.opt_state)) == skipped.count(0)


def test_where_broken_updates_stop_a_run_nothing_is_added(plain_config):
  trainer, state, metrics = run(plain_config, 1, steps=1)
  assert "skipped" not in metrics[0]
  plain_config.nonfinite = "skip"
  _, same, _ = run(plain_config, 1, steps=1)
  assert_trees_close(state, same, atol=1e-6)
  # On the contrary: what it came to is there to be looked at.
  params = jax.device_get(state.params)
  params["head"]["bias"] = np.full_like(params["head"]["bias"], np.nan)
  where = jax.tree.map(lambda x: x.sharding, trainer.abstract.params)
  broken = dataclasses.replace(state, params=jax.device_put(params, where))
  mesh = sharding.make_mesh(jax.devices()[:1])
  state, metrics = trainer.train_step(
    broken, sharding.put_batch(mesh, make_batch())
  )
  assert not np.isfinite(metrics["loss"])
  assert np.isnan(state.params["stem"]["kernel"]).all()
