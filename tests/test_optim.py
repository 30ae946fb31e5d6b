"""Schedules, optimizers beside optax's own and numpy, and what is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from configs import smoke
from mixer import durations, optim, validation, weights
from mixer.errors import UserError


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


def make_blocks(seed=0):
  """As `make_params`, and a block: of one MLP, and of several."""
  rng = np.random.default_rng((seed, 1))
  kernels = {"one": (4, 3), "several": (2, 3, 4)}
  block = {
    name: {"kernel": jnp.asarray(rng.standard_normal(shape), jnp.float32)}
    for name, shape in kernels.items()
  }
  return make_params(seed) | {"MixerBlock_0": block}


def changed(**optimizer):
  config = smoke.get_config()
  config.optimizer.update(optimizer)
  return config


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
  config = changed(learning_rate=0.5)
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


def run(config, plan, steps=8, make=make_params):
  """Ours on random gradients; yields (params, gradients, next params)."""
  optimizer = optim.make(config, plan)
  params = make()
  state = optimizer.init(params)
  for i in range(steps):
    gradients = jax.tree.map(lambda x: 3 * x, make(i + 1))
    updates, state = optimizer.update(gradients, state, params)
    following = optax.apply_updates(params, updates)
    yield params, gradients, following
    params = following


def flat(tree):
  return {
    k: np.asarray(v, np.float64) for k, v in weights.flatten(tree).items()
  }


def test_adamw_with_clipping_equals_numpy():
  config = changed(weight_decay=0.1, learning_rate=0.02, clip_norm=1.0)
  plan = make_plan()
  schedule = optim.schedule(config, plan)
  b1, b2, eps = 0.9, 0.999, 1e-8
  m = v = None
  for i, (params, gradients, following) in enumerate(run(config, plan)):
    p, g = flat(params), flat(gradients)
    norm = np.sqrt(sum(np.sum(x**2) for x in g.values()))
    g = {k: x * min(1, 1 / norm) for k, x in g.items()}
    m = {k: (1 - b1) * x + (b1 * m[k] if m else 0) for k, x in g.items()}
    v = {k: (1 - b2) * x**2 + (b2 * v[k] if v else 0) for k, x in g.items()}
    lr = float(schedule(i))
    for k, got in flat(following).items():
      direction = (m[k] / (1 - b1 ** (i + 1))) / (
        np.sqrt(v[k] / (1 - b2 ** (i + 1))) + eps
      )
      if "kernel" in k:  # Biases and norms don't decay.
        direction = direction + 0.1 * p[k]
      np.testing.assert_allclose(got, p[k] - lr * direction, atol=2e-6)


# Keys of the config, and the same by optax.
_MASK = optim.decay_mask
_OPTAX = {
  "adamw": (
    {"weight_decay": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-6},
    lambda lr: optax.adamw(lr, 0.8, 0.95, 1e-6, weight_decay=0.1, mask=_MASK),
  ),
  "sgd": (
    {"weight_decay": 0.0, "momentum": 0.7, "args": {"nesterov": True}},
    lambda lr: optax.sgd(lr, 0.7, nesterov=True),
  ),
  "lion": (
    {"weight_decay": 0.2, "args": {"b1": 0.8}},
    lambda lr: optax.lion(lr, 0.8, weight_decay=0.2, mask=_MASK),
  ),
}


def assert_same_path(config, theirs, plan, make=make_params):
  """Ours takes the parameters where an optimizer of optax does."""
  state = None
  for params, gradients, following in run(config, plan, 6, make):
    state = theirs.init(params) if state is None else state
    with jax.numpy_dtype_promotion("standard"):
      updates, state = theirs.update(gradients, state, params)
    expected = flat(optax.apply_updates(params, updates))
    for k, got in flat(following).items():
      np.testing.assert_allclose(got, expected[k], atol=2e-6)


@pytest.mark.parametrize("name", _OPTAX)
def test_optimizers_equal_optax(name):
  options, make = _OPTAX[name]
  config = changed(name=name, clip_norm=2.0, **options)
  validation.validate(config, 1)
  plan = make_plan(12, 3)
  theirs = make(optim.schedule(config, plan))
  clipped = optax.chain(optax.clip_by_global_norm(2.0), theirs)
  assert_same_path(config, clipped, plan)


def test_muon_takes_the_kernels_of_blocks_and_adamw_the_rest():
  args = {"ns_steps": 3, "adam_b1": 0.8, "adam_learning_rate": 2e-3}
  config = changed(name="muon", clip_norm=0.0, weight_decay=0.2, args=args)
  validation.validate(config, 1)
  plan = make_plan(12, 3)
  rate = optim.schedule(config, plan)
  second = optim.schedule(changed(learning_rate=2e-3), plan)
  matrix = contrib.MuonDimensionNumbers
  axes = {"one": {"kernel": matrix(0, 1)}, "several": {"kernel": matrix(1, 2)}}
  groups = {
    "MixerBlock_0": contrib.muon(
      rate,
      ns_steps=3,
      weight_decay=0.2,
      muon_weight_dimension_numbers=lambda p: {
        k: axes if k == "MixerBlock_0" else None for k in p
      },
    ),
    "rest": optax.adamw(second, 0.8, weight_decay=0.0, nesterov=True),
  }
  labels = {k: k if k in groups else "rest" for k in make_blocks()}
  theirs = optax.multi_transform(groups, labels)
  assert_same_path(config, theirs, plan, make_blocks)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_factors_equal_optax_with_an_optimizer_for_each_group(name):
  options, make = _OPTAX[name]
  factors = (("head/.*", 10.0), (".*/bias", 0.5), ("head/bias", 99.0))
  config = changed(name=name, clip_norm=0.0, lr_factors=factors, **options)
  plan = make_plan()
  schedule = optim.schedule(config, plan)
  labels = {
    "stem": {"kernel": "1", "bias": "0.5"},
    "norm": {"scale": "1", "bias": "0.5"},
    "head": {"kernel": "10", "bias": "10"},  # The first that matches.
  }

  def scaled(factor):
    # Its decay, too, is times the group's learning rate.
    return make(lambda count: factor * schedule(count))

  groups = {label: scaled(float(label)) for label in ("1", "0.5", "10")}
  assert_same_path(config, optax.multi_transform(groups, labels), plan)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"name": "lino"}, "use --config.optimizer.name=lion"),
    ({"name": "AdamW"}, "--config.optimizer.name=adamw"),
    ({"name": "schedule_free_sgd"}, "is no optimizer of optax, or needs more"),
    ({"name": "lbfgs"}, "optimizer.name='lbfgs' with .* doesn't work"),
    ({"args": {"learning_rate": 1}}, "'learning_rate', but adamw takes"),
    ({"args": {"ns_steps": "x"}, "name": "muon"}, "doesn't work: "),
    ({"name": "lion", "b1": 0.5}, 'config.optimizer.args="{.b1.: 0.5}"'),
    ({"name": "sgd", "weight_decay": 0.1}, "weight_decay=0 or --config.opt"),
  ],
)
def test_optimizers_that_are_refused(options, message):
  config = changed(**{"weight_decay": 0.0} | options)
  with pytest.raises(UserError, match=message):
    validation.validate(config, 1)


def test_the_learning_rate_goes_by_the_updates_that_were_made():
  optimizer = optim.make(changed(name="muon", weight_decay=0.0), make_plan())
  params = make_params()
  _, state = optimizer.update(params, optimizer.init(params), params)
  assert optim.updates_done(state, jnp.int32(7)) == 1
  assert optim.updates_done((), jnp.int32(7)) == 7  # Where none are counted.


@pytest.mark.parametrize(
  ("options", "trained"),
  [
    ({}, {"stem", "norm", "head"}),
    ({"train": "head"}, {"head"}),
    ({"lr_factors": ((".*", 0.0),)}, set()),
    ({"lr_factors": (("stem/.*", 0), (".*", 2))}, {"norm", "head"}),
    ({"lr_factors": [["head/.*", 1.0], [".*", 0.0]]}, {"head"}),
    ({"train": "head", "lr_factors": (("stem/.*", 3.0),)}, {"head"}),
    # The whole name has to match.
    ({"lr_factors": (("head", 0), ("kernel", 0))}, {"stem", "norm", "head"}),
  ],
)
def test_what_is_trained(options, trained):
  params = make_params()
  chosen, frozen = optim.split(changed(**options), params)
  assert {*chosen} == trained
  assert {*frozen} == {*params} - trained
  # No empty groups, which can't be saved.
  assert all([*chosen.values(), *frozen.values()])
  both = optim.merge(chosen, frozen)
  assert jax.tree.structure(both) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, both, params)


@pytest.mark.parametrize(
  ("options", "sentence"),
  [
    ({"lr_factors": (("haed/.*", 1.0),)}, "matches no parameter's whole"),
    ({"lr_factors": (("head", 1.0),)}, "there are: head/bias; head/kernel; "),
    ({"lr_factors": ((".*", 0.0),)}, "leaves nothing to train"),
    ({"train": "head", "lr_factors": (("head/.*", 0),)}, "leaves nothing"),
  ],
)
def test_factors_that_do_not_fit_the_model(options, sentence):
  with pytest.raises(UserError) as caught:
    optim.check_names(changed(**options), weights.flatten(make_params()))
  message = str(caught.value)
  assert message.startswith("optimizer.lr_factors") and sentence in message
  assert "--config.optimizer.lr_factors=\"(('head/.*', 10.0),)\"" in message
