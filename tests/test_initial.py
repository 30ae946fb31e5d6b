"""What a run starts from: the weights of another run, or of a file."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoke
from mixer import config as config_lib
from mixer import initial, resolution, saving, sharding, train_step, weights
from mixer.errors import UserError
from tests import trained_files, updates

NAMES = [f"class {k}" for k in range(10)]
METADATA = {
  "config": config_lib.to_json(smoke.get_config()),
  "class_names": NAMES,
}
LARGE = {"image_size": 32, "data.eval_short_side": 32}


def make_config(**changes):
  """The smoke config with other values, `**{"model.variant": "S/8"}`."""
  return config_lib.changed(smoke.get_config(), changes)


def origin_of(path, names=NAMES, **changes) -> initial.Origin:
  return initial.load(make_config(init_from=str(path), **changes), names)


@functools.cache
def make_trainer(num_classes=10, ema_decay=0.9):
  config = make_config(**{"optimizer.ema_decay": ema_decay})
  mesh = sharding.make_mesh()
  return train_step.Trainer(config, updates.PLAN, num_classes, mesh)


def save(workdir, step, state, metadata):
  workdir.mkdir(exist_ok=True)
  with saving.Checkpoints(workdir) as c:
    c.save(step, state, metadata)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  """Workdirs of runs with and without an average, and what they hold."""
  workdir = tmp_path_factory.mktemp("pretrained")
  state, rng = make_trainer().init(), np.random.default_rng(0)

  def noise(tree):
    return jax.tree.map(
      lambda x: x + jnp.asarray(rng.standard_normal(x.shape), jnp.float32), tree
    )

  params, ema = noise(state.params), noise(state.params)
  both = state.replace(step=state.step + 7, params=params, ema=ema)
  save(workdir / "averaged", 7, both, METADATA)
  save(workdir / "plain", 7, both.replace(ema=None), METADATA)
  return workdir, params, ema


def assert_same(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def headless(params):
  return {k: v for k, v in params.items() if k != "head"}


@pytest.mark.parametrize("source", ["averaged", "plain"])
def test_weights_are_taken_and_all_else_starts_afresh(pretrained, source):
  workdir, params, ema = pretrained
  trainer = make_trainer(3)
  origin = origin_of(workdir / source, NAMES[:3])
  state = origin.place(trainer.init())
  # The average where there is one: it is what was evaluated.
  taken = ema if source == "averaged" else params
  assert_same(headless(state.params), headless(taken))
  assert state.params["head"]["kernel"].shape == (32, 3)
  assert not any(np.any(x) for x in state.params["head"].values())
  assert f"{workdir}/{source}/checkpoints/7 (step 7)" in origin.message
  assert "with a fresh head" in origin.message
  assert origin.resolved == {"tokens_mlp_dim": 16}
  assert int(state.step) == 0
  assert_same(state.opt_state, trainer.init().opt_state)
  # The average starts at the weights, in buffers of its own.
  assert_same(state.ema, state.params)
  leaves = jax.tree.leaves((state.ema, state.params))
  places = {x.addressable_data(0).unsafe_buffer_pointer() for x in leaves}
  assert len(places) == len(leaves)
  kinds = [
    [(x.sharding, x.dtype, x.shape) for x in jax.tree.leaves(tree)]
    for tree in (state, trainer.abstract)
  ]
  assert kinds[0] == kinds[1]
  without = make_trainer(3, ema_decay=0.0)
  assert origin.place(without.init()).ema is None
  one = origin_of(workdir / source / "checkpoints" / "7", NAMES[:3])
  assert_same(one.params, origin.params)


def test_a_head_is_kept_for_the_same_classes_alone(pretrained, tmp_path):
  workdir, params, _ = pretrained
  plain, file = workdir / "plain", tmp_path / "weights.npz"
  origin = origin_of(plain, init_head="keep")
  assert_same(origin.place(make_trainer().init()).params, params)
  assert "their head is kept" in origin.message
  weights.save(params, file)
  weights.save(headless(params), tmp_path / "headless.npz")
  for path, names, sentence in (
    (plain, NAMES[:3], "10 there and 3 here"),
    (plain, [*NAMES[:9], "a"], "class 9 is 'class 9' and 'a'"),
    (tmp_path / "headless.npz", NAMES, "0 there and 10 here"),
    (file, NAMES, "doesn't say which classes"),  # Ten classes may be any.
  ):
    with pytest.raises(UserError, match=f"init_head=keep.*{sentence}.*=new"):
      origin_of(path, names, init_head="keep")
  trained_files.describe(file, class_ids=tuple(NAMES))
  assert_same(origin_of(file, init_head="keep").params, params)
  trained_files.describe(file, class_ids=tuple(NAMES[::-1]))
  with pytest.raises(UserError, match="a head for other classes than .*=new"):
    origin_of(file, init_head="keep")
  assert_same(origin_of(file).params, headless(params))


@pytest.mark.parametrize(
  ("changes", "width", "sentence"),
  [
    (LARGE, 64, "token mixing tiled from 4 x 4 to 8 x 8"),
    (LARGE | {"init_resize": "resample"}, 16, "token mixing resampled"),
    (LARGE | {"image_size": 16, "image_width": 32}, 32, "from 4 x 4 to 4 x 8"),
  ],
)
def test_another_resolution(pretrained, tmp_path, changes, width, sentence):
  workdir, params, _ = pretrained
  origin = origin_of(workdir / "plain", **changes)
  assert sentence in origin.message
  assert origin.resolved == {"tokens_mlp_dim": width}
  # The model that is trained is the one that takes them.
  config = origin.config(make_config(**changes))
  size = config_lib.image_size(config)
  expected = resolution.resize(headless(params), size, config.init_resize)
  trainer = train_step.Trainer(config, updates.PLAN, 10, sharding.make_mesh())
  state = origin.place(trainer.init())
  assert_same(headless(state.params), expected)
  if size == (32, 32):
    # The config of such a run has the width from before; the weights decide.
    weights.save(expected, tmp_path / "large.npz")
    origin = origin_of(tmp_path / "large.npz", **changes)
    assert origin.resolved == {"tokens_mlp_dim": width}
    assert "token mixing" not in origin.message


def test_what_a_run_starts_from(pretrained, tmp_path):
  config = make_config()
  random = initial.find(config, tmp_path, NAMES)
  assert random.message == "starting from random weights"
  assert random.place("a state") == "a state"
  assert random.config(config) is config and random.resolved == {}
  # A run that goes on reads nothing: what it started from may be gone.
  workdir = pretrained[0] / "plain"
  content = {"config": {}, "resolved": {"tokens_mlp_dim": 77}}
  (workdir / "config.json").write_text(json.dumps(content))
  config.init_from = "gone"
  later = initial.find(config, workdir, NAMES)
  (workdir / "config.json").unlink()
  assert later.params is None
  assert later.config(config).model.tokens_mlp_dim == 77
  assert config.model.tokens_mlp_dim == 16


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    (
      {"model.hidden_dim": 48},
      r"LayerNorm_0/bias is \(32,\) there and \(48,\) here.*Set model\.\* as",
    ),
    ({"model.num_blocks": 3}, r"MixerBlock_2/LayerNorm_0/bias .* is missing"),
    (
      {"model.variant": "S/8"},
      r"stem/kernel is \(4, 4, .*\(8, 8, 3, 32\) here",
    ),
    (
      {"data.permute": "patches", "data.permute_seed": 3},
      "permute= --config.data.permute_seed=0",
    ),
    (
      {"image_size": 12, "data.eval_short_side": 12, "init_resize": "tiles"},
      "whole multiple",
    ),
  ],
)
def test_another_model_is_refused(pretrained, changes, sentence):
  with pytest.raises(UserError, match=sentence) as caught:
    origin_of(pretrained[0] / "averaged", **changes)
  assert " head/" not in str(caught.value)


def test_what_is_broken_or_not_there_is_refused(tmp_path):
  state = make_trainer().init()
  stem = dict(state.params["stem"])
  stem["kernel"] = stem["kernel"].at[0].set(jnp.nan)
  broken = state.replace(params=dict(state.params) | {"stem": stem}, ema=None)
  save(tmp_path / "broken", 1, broken, METADATA)
  with pytest.raises(UserError, match="NaNs or infinities in stem/kernel"):
    origin_of(tmp_path / "broken")
  with pytest.raises(UserError, match="there is no checkpoint in"):
    origin_of(tmp_path)
  with pytest.raises(UserError, match="there are no weights at .*imagenet21k"):
    origin_of("nowhere")
  with pytest.raises(UserError, match="no weights are named.*configs/scratch"):
    initial.find(make_config(init_from="?"), tmp_path, NAMES)
