"""Starting from the weights of another run."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoke
from mixer import (
  checkpoints,
  initial,
  npz,
  resolution,
  sharding,
  train_step,
  trained,
)
from mixer import config as config_lib
from mixer import (
  metadata as metadata_lib,
)
from mixer.errors import UserError
from tests import updates


def make_config(**changes):
  """The smoke config with other values, `**{"model.variant": "S/8"}`."""
  config = smoke.get_config()
  config.update_from_flattened_dict(changes)
  return config


def origin_of(path, num_classes=10, **changes) -> initial.Origin:
  names = [f"class {k}" for k in range(num_classes)]
  return initial.load(make_config(init_from=str(path), **changes), names)


@functools.cache
def make_trainer(num_classes=10, devices=8, ema_decay=0.9):
  config = make_config(**{"optimizer.ema_decay": ema_decay})
  mesh = sharding.make_mesh(jax.devices()[:devices])
  return train_step.Trainer(config, updates.PLAN, num_classes, mesh)


METADATA = {
  "config": config_lib.to_json(smoke.get_config()),
  "class_names": [f"class {k}" for k in range(10)],
}


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
      c.save(7, kept, METADATA)
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
  origin = origin_of(workdir / source, num_classes)
  state = origin.place(trainer.init())
  # The average where there is one: it is what was evaluated.
  taken = ema if source == "averaged" else params
  assert_same(without_head(state.params), without_head(taken))
  assert state.params["head"]["kernel"].shape == (32, num_classes)
  assert not np.any(state.params["head"]["kernel"])
  assert not np.any(state.params["head"]["bias"])
  assert f"{workdir}/{source}/checkpoints/7 (step 7)" in origin.message
  assert "with a fresh head" in origin.message
  assert origin.resolved == {"tokens_mlp_dim": 16}


def test_the_head_is_kept_where_that_is_wanted(pretrained):
  workdir, params, _ = pretrained
  origin = origin_of(workdir / "plain", init_head="keep")
  state = origin.place(make_trainer().init())
  assert_same(state.params, params)
  assert "their head is kept" in origin.message


@pytest.mark.parametrize(
  ("names", "sentence"),
  [
    (["a"] * 3, "a head for 10 classes, and data set digits has 3"),
    (["a"] * 10, "class 0 is 'class 0' there and 'a' here"),
  ],
  ids=["count", "names"],
)
def test_a_head_for_other_classes_is_not_kept(pretrained, names, sentence):
  path = str(pretrained[0] / "plain")
  config = make_config(init_from=path, init_head="keep")
  with pytest.raises(UserError, match=f"init_head=keep.*{sentence}.*=new"):
    initial.load(config, names)


def test_a_missing_head_is_not_kept(pretrained, tmp_path):
  params, _ = checkpoints.load_params(str(pretrained[0] / "plain"))
  npz.save(without_head(params), tmp_path / "headless.npz")
  with pytest.raises(UserError, match="headless.npz have no head; use"):
    origin_of(tmp_path / "headless.npz", init_head="keep")


def test_everything_else_starts_afresh(pretrained):
  trainer = make_trainer(3)
  state = origin_of(pretrained[0] / "averaged", 3).place(trainer.init())
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
  state = origin_of(pretrained[0] / "averaged", 3).place(trainer.init())
  assert state.ema is None


@pytest.mark.parametrize("devices", [2, 8])
def test_the_state_lies_where_it_should(pretrained, devices):
  trainer = make_trainer(3, devices)
  state = origin_of(pretrained[0] / "averaged", 3).place(trainer.init())
  pairs = zip(
    jax.tree.leaves(state), jax.tree.leaves(trainer.abstract), strict=True
  )
  for leaf, wanted in pairs:
    assert leaf.sharding == wanted.sharding
    assert (leaf.dtype, leaf.shape) == (wanted.dtype, wanted.shape)


def test_one_checkpoint_may_be_named(pretrained):
  workdir, params, _ = pretrained
  origin = origin_of(workdir / "plain" / "checkpoints" / "7")
  assert_same(origin.params, without_head(params))


def test_a_file_may_be_named(pretrained, tmp_path):
  params, _ = checkpoints.load_params(str(pretrained[0] / "plain"))
  npz.save(params, tmp_path / "weights.npz")
  origin = origin_of(tmp_path / "weights.npz")
  assert_same(origin.params, without_head(params))
  # Ten classes may be any: nobody knows which these were.
  with pytest.raises(UserError, match="don't say which classes .*=new"):
    origin_of(tmp_path / "weights.npz", init_head="keep")
  known = trained.load(str(pretrained[0] / "plain")).metadata
  metadata_lib.write_beside(tmp_path / "weights.npz", known)
  kept = origin_of(tmp_path / "weights.npz", init_head="keep")
  assert_same(kept.params, params)
  assert known.class_ids is not None
  others = known.class_ids[::-1]
  metadata_lib.write_beside(
    tmp_path / "weights.npz", dataclasses.replace(known, class_ids=others)
  )
  with pytest.raises(UserError, match="a head for other classes than .*=new"):
    origin_of(tmp_path / "weights.npz", init_head="keep")


@pytest.mark.parametrize(
  ("method", "width", "sentence"),
  [
    ("", 64, "token mixing tiled from 4 x 4 to 8 x 8"),
    ("tiles", 64, "token mixing tiled"),
    ("interleaved", 64, "token mixing interleaved"),
    ("resample", 16, "token mixing resampled"),
  ],
)
def test_another_resolution(pretrained, method, width, sentence):
  workdir, params, _ = pretrained
  changes = {"image_size": 32, "data.eval_short_side": 32}
  changes["init_resize"] = method
  origin = origin_of(workdir / "plain", **changes)
  assert sentence in origin.message
  assert origin.resolved == {"tokens_mlp_dim": width}
  expected = resolution.resize(without_head(params), 32, method or "tiles")
  assert_same(origin.params, expected)
  # The model that is trained is the one that takes them.
  config = origin.config(make_config(**changes))
  trainer = train_step.Trainer(config, updates.PLAN, 10, sharding.make_mesh())
  state = origin.place(trainer.init())
  assert_same(without_head(state.params), expected)


def test_an_oblong_resolution(pretrained):
  changes = {"image_size": 16, "image_width": 32, "data.eval_short_side": 32}
  origin = origin_of(pretrained[0] / "plain", **changes)
  assert "tiled from 4 x 4 to 4 x 8" in origin.message
  config = origin.config(make_config(**changes))
  trainer = train_step.Trainer(config, updates.PLAN, 10, sharding.make_mesh())
  state = origin.place(trainer.init())
  kernel = state.params["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"]
  assert kernel.shape == (32, 32)


def test_another_permutation_is_refused(pretrained):
  changes = {"data.permute": "patches", "data.permute_seed": 3}
  with pytest.raises(UserError, match="permute= --config.data.permute_seed=0"):
    origin_of(pretrained[0] / "plain", **changes)


def test_another_resolution_of_permuted_images_is_refused(tmp_path):
  config = make_config(**{"data.permute": "pixels"})
  metadata = METADATA | {"config": config_lib.to_json(config)}
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(1, make_trainer().init(), metadata)
  changes = {"data.permute": "pixels"}
  assert origin_of(tmp_path, **changes).params is not None
  changes |= {"image_size": 32, "data.eval_short_side": 32}
  with pytest.raises(UserError, match="16 x 16 px with their pixels permuted"):
    origin_of(tmp_path, **changes)


def test_a_smaller_resolution_is_resampled(pretrained):
  changes = {"image_size": 12, "data.eval_short_side": 12}
  origin = origin_of(pretrained[0] / "plain", **changes)
  assert "resampled from 4 x 4 to 3 x 3" in origin.message
  with pytest.raises(UserError, match="whole multiple"):
    origin_of(pretrained[0] / "plain", init_resize="tiles", **changes)


def test_weights_that_were_fitted_once_are_taken_as_they_are(
  pretrained, tmp_path
):
  # The config of such a run has the width from before; the weights decide.
  params, _ = checkpoints.load_params(str(pretrained[0] / "plain"))
  npz.save(resolution.resize(params, 32), tmp_path / "large.npz")
  changes = {"image_size": 32, "data.eval_short_side": 32}
  origin = origin_of(tmp_path / "large.npz", **changes)
  assert origin.resolved == {"tokens_mlp_dim": 64}
  assert "token mixing" not in origin.message


def test_what_a_run_starts_from(pretrained, tmp_path):
  names = [f"class {k}" for k in range(10)]
  random = initial.find(make_config(), tmp_path, names)
  assert random.message == "starting from random weights"
  assert random.place("a state") == "a state"
  config = make_config()
  assert random.config(config) is config and random.resolved == {}
  # A run that goes on reads nothing: what it started from may be gone.
  workdir = pretrained[0] / "plain"
  content = {"config": {}, "resolved": {"tokens_mlp_dim": 77}}
  (workdir / "config.json").write_text(json.dumps(content))
  config.init_from = "gone"
  later = initial.find(config, workdir, names)
  assert later.params is None
  assert later.config(config).model.tokens_mlp_dim == 77
  assert config.model.tokens_mlp_dim == 16


@pytest.mark.parametrize(
  ("change", "what"),
  [
    (
      {"model.hidden_dim": 48},
      "MixerBlock_0/LayerNorm_0/bias is (32,) there and (48,) here",
    ),
    (
      {"model.num_blocks": 3},
      "MixerBlock_2/LayerNorm_0/bias (32,) is missing",
    ),
    (
      {"model.num_blocks": 1},
      "MixerBlock_1/LayerNorm_0/bias (32,) is unexpected",
    ),
  ],
  ids=["width", "deeper", "shallower"],
)
def test_another_model_is_refused(pretrained, change, what):
  path = str(pretrained[0] / "averaged")
  with pytest.raises(UserError) as caught:
    origin_of(path, **change)
  message = str(caught.value)
  assert message.startswith(f"init_from={path} holds another model")
  assert what in message
  assert " head/" not in message
  assert "Set model.* as it was there." in message


def test_another_patch_size_is_refused(pretrained):
  path = pretrained[0] / "averaged"
  with pytest.raises(UserError, match="patches of 4 px.* 8 px"):
    origin_of(path, **{"model.variant": "S/8"})


def test_nan_is_refused(pretrained, tmp_path):
  broken = make_trainer().init()
  kernel = broken.params["stem"]["kernel"].at[0].set(jnp.nan)
  params = dict(broken.params) | {
    "stem": dict(broken.params["stem"]) | {"kernel": kernel}
  }
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(1, broken.replace(params=params, ema=None), METADATA)
  with pytest.raises(UserError, match="NaNs or infinities in stem/kernel;"):
    origin_of(tmp_path)


def test_nothing_there_is_refused(tmp_path):
  with pytest.raises(UserError, match="there is no checkpoint in"):
    origin_of(tmp_path)
  with pytest.raises(UserError, match="there are no weights at .*imagenet21k"):
    origin_of("nowhere")
