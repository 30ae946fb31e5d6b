import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import saving, sharding, train_step
from mixer.errors import UserError
from tests import updates


@pytest.mark.parametrize(
  ("devices", "zero1", "fsdp"),
  [
    updates.slow(2, True, 1),
    updates.slow(4, True, 1),
    (8, True, 1),
    updates.slow(8, False, 1),
    updates.slow(2, True, 2),
    updates.slow(4, False, 2),
    (8, True, 2),
    updates.slow(8, True, 8),
  ],
)
def test_any_number_of_devices_computes_the_same(
  smoke_config, devices, zero1, fsdp
):
  # With dropout, stochastic depth and mixup: randomness is the same too.
  _, one, one_metrics = updates.run(smoke_config, 1)
  smoke_config.sharding.update(zero1=zero1, fsdp=fsdp, min_size=64)
  trainer, many, many_metrics = updates.run(smoke_config, devices)
  updates.assert_trees_close(one_metrics, many_metrics, rtol=2e-5)
  updates.assert_trees_close(
    jax.device_get(one), jax.device_get(many), atol=2e-5
  )
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
  _, one, one_metrics = updates.run(smoke_config, 1)
  smoke_config.sharding.update(fsdp=fsdp, min_size=64)
  _, many, many_metrics = updates.run(smoke_config, devices)
  updates.assert_trees_close(one_metrics, many_metrics, rtol=5e-5)
  updates.assert_trees_close(
    jax.device_get(one.params), jax.device_get(many.params), atol=5e-5
  )


def test_repeats_to_the_bit(smoke_config):
  _, one, _ = updates.run(smoke_config, 8)
  _, two, _ = updates.run(smoke_config, 8)
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
  trainer, state, _ = updates.run(smoke_config, 8)
  mesh = sharding.make_mesh()
  before = state
  for i in range(3):
    batch = sharding.put_batch(mesh, updates.make_batch(i))
    state, _ = trainer.train_step(state, batch)
  assert trainer.train_step._cache_size() == 1
  # Donated: the state went in and its buffers came out.
  assert all(x.is_deleted() for x in jax.tree.leaves(before))


def test_several_updates_at_once_are_those_one_by_one(smoke_config):
  trainer, state, metrics = updates.run(smoke_config, 8)
  mesh = sharding.make_mesh()
  batches = [updates.make_batch(i) for i in range(3)]
  other, found = trainer.train_steps(
    trainer.init(), sharding.put_batches(mesh, batches)
  )
  for a, b in zip(*map(jax.tree.leaves, (state, other)), strict=True):
    assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
  updates.assert_trees_close(state, other, rtol=1e-3, atol=1e-4)
  for i, values in enumerate(metrics):
    assert found.keys() == values.keys()
    for name, value in values.items():
      np.testing.assert_allclose(found[name][i], value, rtol=1e-4)


def test_bfloat16_keeps_state_in_float32(smoke_config):
  smoke_config.model.dtype = "bfloat16"
  _, state, metrics = updates.run(smoke_config, 8)
  smoke_config.model.dtype = "float32"
  _, _, exact = updates.run(smoke_config, 8)
  kinds = {x.dtype for x in jax.tree.leaves(state.params)}
  kinds |= {x.dtype for x in jax.tree.leaves(state.ema)}
  assert kinds == {jnp.dtype("float32")}
  for one, two in zip(metrics, exact, strict=True):
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=0.01)


_TOKENS_FIRST = dict(layout="token_major")


@pytest.mark.parametrize(
  ("how", "fsdp"),
  [(_TOKENS_FIRST, 2), updates.slow(_TOKENS_FIRST, 1)],
  ids=["tokens first", "unsplit"],
)
def test_what_accelerators_compute_is_the_same(plain_config, how, fsdp):
  plain_config.optimizer.update(name="sgd", weight_decay=0.0, learning_rate=0.3)
  plain_config.sharding.min_size = 64
  _, whole, whole_metrics = updates.run(plain_config, 1)
  plain_config.model.update(how)
  plain_config.sharding.fsdp = fsdp
  _, other, metrics = updates.run(plain_config, 8)
  updates.assert_trees_close(whole, other, rtol=2e-3, atol=2e-4)
  updates.assert_trees_close(whole_metrics, metrics, rtol=1e-3)


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
def test_parts_take_less_memory(plain_config):
  plain_config.batch_size, plain_config.image_size = 64, 64
  plain_config.model.update(num_blocks=3, hidden_dim=64)

  def temporaries(accumulate):
    plain_config.optimizer.accumulate = accumulate
    return (
      updates.compiled(plain_config, 1).memory_analysis().temp_size_in_bytes
    )

  # Beside an eighth of the activations there are gradients and bytes.
  assert temporaries(8) < 0.25 * temporaries(1)


def test_patterns_are_compared_with_the_model(plain_config):
  plain_config.optimizer.lr_factors = (("MixerBlock_1/.*", 0.0),)
  with pytest.raises(UserError, match="'MixerBlock_1/.*', which matches no"):
    train_step.Trainer(plain_config, updates.PLAN, 10, sharding.make_mesh())


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
  trainer, state, _ = updates.run(plain_config, 8, steps=2)
  with saving.Checkpoints(tmp_path) as saved:
    saved.save(2, state, {})
    restored, _ = saved.restore(trainer.abstract)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  mesh = sharding.make_mesh()
  both = [
    trainer.train_step(s, sharding.put_batch(mesh, updates.make_batch(2)))[0]
    for s in (restored, state)
  ]
  jax.tree.map(np.testing.assert_array_equal, *both)
  # What comes from a checkpoint lies as what was made does.
  assert trainer.train_step._cache_size() == 1
