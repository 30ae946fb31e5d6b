"""Starting from the weights of another run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoke
from mixer import checkpoints, durations, finetune, sharding
from mixer import step as step_lib
from mixer.errors import UserError

_PLAN = durations.Plan(
  total=20, warmup=2, log_every=1, eval_every=1, checkpoint_every=1
)


@functools.cache
def make_trainer(num_classes=10, devices=8, **model) -> step_lib.Trainer:
  config = smoke.get_config()
  config.optimizer.ema_decay = model.pop("ema_decay", 0.9)
  config.image_size = model.pop("image_size", 16)
  for key, value in model.items():
    config.model[key] = value
  mesh = sharding.make_mesh(jax.devices()[:devices])
  return step_lib.Trainer(config, _PLAN, num_classes, mesh)


def noise(tree, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + jnp.asarray(rng.standard_normal(x.shape), jnp.float32), tree
  )


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  """Workdirs of runs with and without an average, and what they hold.

  Weights and averages differ in every number from each other and from what a
  model starts with.
  """
  workdir = tmp_path_factory.mktemp("pretrained")
  state = make_trainer().init()
  params, ema = noise(state.params, 1), noise(state.params, 2)
  both = state.replace(step=state.step + 7, params=params, ema=ema)
  for name, kept in (("averaged", both), ("plain", both.replace(ema=None))):
    with checkpoints.Checkpoints(workdir / name) as c:
      c.save(7, kept, {})
  return workdir, params, ema


def assert_same(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def without_head(params):
  return {k: v for k, v in params.items() if k != "head"}


@pytest.mark.parametrize("source", ["averaged", "plain"])
@pytest.mark.parametrize("num_classes", [10, 3])
def test_weights_are_taken_and_the_head_is_fresh(
  pretrained, source, num_classes
):
  workdir, params, ema = pretrained
  trainer = make_trainer(num_classes)
  state, origin = finetune.take_weights(str(workdir / source), trainer.init())
  # The average where there is one: it is what was evaluated.
  taken = ema if source == "averaged" else params
  assert_same(without_head(state.params), without_head(taken))
  assert state.params["head"]["kernel"].shape == (32, num_classes)
  assert state.params["head"]["bias"].shape == (num_classes,)
  assert not np.any(state.params["head"]["kernel"])
  assert not np.any(state.params["head"]["bias"])
  assert f"{workdir}/{source}/checkpoints/7 (step 7)" in origin
  assert "fresh head" in origin


def test_the_heads_bias_is_the_configs(pretrained):
  trainer = make_trainer(3, head_bias=-4.5)
  state, _ = finetune.take_weights(str(pretrained[0] / "plain"), trainer.init())
  np.testing.assert_array_equal(state.params["head"]["bias"], [-4.5] * 3)


def test_everything_else_starts_afresh(pretrained):
  trainer = make_trainer(3)
  state, _ = finetune.take_weights(
    str(pretrained[0] / "averaged"), trainer.init()
  )
  assert int(state.step) == 0
  assert_same(state.opt_state, trainer.init().opt_state)
  # The average starts at the weights, in buffers of its own.
  assert_same(state.ema, state.params)
  leaves = zip(
    jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True
  )
  assert all(
    a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()
    for a, b in (
      (a.addressable_data(0), b.addressable_data(0)) for a, b in leaves
    )
  )


def test_no_average_where_none_is_wanted(pretrained):
  trainer = make_trainer(3, ema_decay=0.0)
  state, _ = finetune.take_weights(
    str(pretrained[0] / "averaged"), trainer.init()
  )
  assert state.ema is None


@pytest.mark.parametrize("devices", [2, 8])
def test_the_state_lies_where_it_should(pretrained, devices):
  trainer = make_trainer(3, devices)
  state, _ = finetune.take_weights(
    str(pretrained[0] / "averaged"), trainer.init()
  )
  pairs = zip(
    jax.tree.leaves(state), jax.tree.leaves(trainer.abstract), strict=True
  )
  for leaf, wanted in pairs:
    assert leaf.sharding == wanted.sharding
    assert (leaf.dtype, leaf.shape) == (wanted.dtype, wanted.shape)


def test_one_checkpoint_may_be_named(pretrained):
  workdir, params, _ = pretrained
  state, _ = finetune.take_weights(
    str(workdir / "plain" / "checkpoints" / "7"), make_trainer().init()
  )
  assert_same(without_head(state.params), without_head(params))


@pytest.mark.parametrize(
  ("model", "what"),
  [
    (
      {"hidden_dim": 48},
      "MixerBlock_0/LayerNorm_0/bias is (32,) there and (48,) here",
    ),
    ({"num_blocks": 3}, "MixerBlock_2/LayerNorm_0/bias (32,) is missing"),
    ({"num_blocks": 1}, "MixerBlock_1/LayerNorm_0/bias (32,) is unexpected"),
    (
      {"image_size": 24},
      "token_mixing/Dense_0/kernel is (16, 16) there and (36, 16) here",
    ),
    (
      {"variant": "S/8"},
      "stem/kernel is (4, 4, 3, 32) there and (8, 8, 3, 32) here",
    ),
  ],
  ids=["width", "deeper", "shallower", "resolution", "patch"],
)
def test_another_model_is_refused(pretrained, model, what):
  path = str(pretrained[0] / "averaged")
  with pytest.raises(UserError) as caught:
    # Shapes are all that it takes to know.
    finetune.take_weights(path, make_trainer(**model).abstract)
  message = str(caught.value)
  assert message.startswith(f"init_from={path} holds another model")
  assert what in message
  assert "head" not in message.split("config: ")[1]
  assert "Set model.* and image_size as they were there." in message


def test_nothing_there_is_refused(tmp_path):
  with pytest.raises(UserError, match="there is no checkpoint in"):
    finetune.take_weights(str(tmp_path), make_trainer().abstract)
