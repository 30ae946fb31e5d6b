import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
  config = smoke.get_config()
  config.optimizer.learning_rate = 0.5
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


def test_decay_mask_takes_kernels_alone():
  mask = optim.decay_mask(make_params())
  assert mask == {
    "stem": {"kernel": True, "bias": False},
    "norm": {"scale": False, "bias": False},
    "head": {"kernel": True, "bias": False},
  }


def run(config, plan, steps=8):
  """Ours on random gradients; yields (params, gradients, next params)."""
  optimizer = optim.make(config, plan)
  params = make_params()
  state = optimizer.init(params)
  for i in range(steps):
    gradients = jax.tree.map(lambda x: 3 * x, make_params(i + 1))
    updates, state = optimizer.update(gradients, state, params)
    following = optax.apply_updates(params, updates)
    yield params, gradients, following
    params = following


def flat(tree):
  return {
    jax.tree_util.keystr(k): np.asarray(v, np.float64)
    for k, v in jax.tree_util.tree_leaves_with_path(tree)
  }


def clipped(gradients, limit):
  norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
  return {k: g * min(1, limit / norm) for k, g in gradients.items()}


def test_adamw_with_clipping_equals_numpy():
  config = smoke.get_config()
  config.optimizer.weight_decay = 0.1
  config.optimizer.learning_rate = 0.02
  config.optimizer.clip_norm = 1.0
  plan = make_plan()
  schedule = optim.schedule(config, plan)
  b1, b2, eps = 0.9, 0.999, 1e-8
  m = v = None
  for i, (params, gradients, following) in enumerate(run(config, plan)):
    p, g = flat(params), clipped(flat(gradients), 1.0)
    m = {k: (1 - b1) * x + (b1 * m[k] if m else 0) for k, x in g.items()}
    v = {k: (1 - b2) * x**2 + (b2 * v[k] if v else 0) for k, x in g.items()}
    lr = float(schedule(i))
    for k, got in flat(following).items():
      direction = (m[k] / (1 - b1 ** (i + 1))) / (
        np.sqrt(v[k] / (1 - b2 ** (i + 1))) + eps
      )
      if "kernel" in k:
        direction = direction + 0.1 * p[k]
      np.testing.assert_allclose(got, p[k] - lr * direction, atol=2e-6)


def test_sgd_with_momentum_equals_numpy():
  config = smoke.get_config()
  config.optimizer.name = "sgd"
  config.optimizer.weight_decay = 0.0
  config.optimizer.momentum = 0.9
  config.optimizer.clip_norm = 0.5
  plan = make_plan()
  schedule = optim.schedule(config, plan)
  trace = None
  for i, (params, gradients, following) in enumerate(run(config, plan)):
    g = clipped(flat(gradients), 0.5)
    trace = {k: x + (0.9 * trace[k] if trace else 0) for k, x in g.items()}
    for k, got in flat(following).items():
      expected = flat(params)[k] - float(schedule(i)) * trace[k]
      np.testing.assert_allclose(got, expected, atol=2e-6)


def test_no_clipping_where_the_norm_is_zero():
  config = smoke.get_config()
  config.optimizer.name = "sgd"
  config.optimizer.weight_decay = config.optimizer.momentum = 0.0
  config.optimizer.clip_norm = 0.0
  config.schedule.decay = "constant"
  for params, gradients, following in run(config, make_plan(100, 0), 1):
    for k, got in flat(following).items():
      expected = flat(params)[k] - 1e-2 * flat(gradients)[k]
      np.testing.assert_allclose(got, expected, atol=1e-5)


def changed(**optimizer):
  config = smoke.get_config()
  config.optimizer.update(optimizer)
  return config


# Each of the two, plain and with all that goes with it; and optax's own.
_OPTAX = {
  "adamw": (
    {"weight_decay": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-6},
    lambda lr: optax.adamw(
      lr, 0.8, 0.95, 1e-6, weight_decay=0.1, mask=optim.decay_mask
    ),
  ),
  "sgd": (
    {"weight_decay": 0.0, "momentum": 0.7},
    lambda lr: optax.sgd(lr, 0.7),
  ),
}


@pytest.mark.parametrize("clip", [0.0, 2.0])
@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("name", _OPTAX)
def test_optimizers_equal_optax(name, decay, clip):
  options, make = _OPTAX[name]
  config = changed(name=name, clip_norm=clip, **options)
  config.schedule.decay = decay
  plan = make_plan(12, 3)
  schedule = optim.schedule(config, plan)
  theirs = make(lambda count: schedule(count))
  if clip:
    theirs = optax.chain(optax.clip_by_global_norm(clip), theirs)
  state = None
  for params, gradients, following in run(config, plan, 12):
    state = theirs.init(params) if state is None else state
    with jax.numpy_dtype_promotion("standard"):
      updates, state = theirs.update(gradients, state, params)
    expected = flat(optax.apply_updates(params, updates))
    for k, got in flat(following).items():
      np.testing.assert_allclose(got, expected[k], atol=2e-6)


@pytest.mark.parametrize("name", _OPTAX)
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
  theirs = optax.multi_transform(groups, labels)
  state = None
  for params, gradients, following in run(config, plan):
    state = theirs.init(params) if state is None else state
    with jax.numpy_dtype_promotion("standard"):
      updates, state = theirs.update(gradients, state, params)
    expected = flat(optax.apply_updates(params, updates))
    for k, got in flat(following).items():
      np.testing.assert_allclose(got, expected[k], atol=2e-6)


def test_factors_leave_the_optimizer_state_as_it_is():
  plan, params = make_plan(), make_params()
  plain = optim.make(changed(), plan).init(params)
  scaled = optim.make(changed(lr_factors=((".*", 2.0),)), plan).init(params)
  assert jax.tree.structure(plain) == jax.tree.structure(scaled)


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
  for part in (chosen, frozen):
    assert all(part.values())  # No empty groups, which can't be saved.
    jax.tree.map(
      np.testing.assert_array_equal, part, {k: params[k] for k in part}
    )


_LEAVES = sorted(weights.flatten(make_params()))


@given(st.dictionaries(st.sampled_from(_LEAVES), st.integers(0, 2)))
def test_split_and_merge_are_inverse(factors):
  params = make_params()
  config = changed(lr_factors=tuple(factors.items()))
  trained, frozen = optim.split(config, params)
  assert {*weights.flatten(frozen)} == {k for k, f in factors.items() if not f}
  both = optim.merge(trained, frozen)
  assert jax.tree.structure(both) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, both, params)


_NAMES = ("head/bias", "head/kernel", "stem/bias", "stem/kernel")


@pytest.mark.parametrize(
  ("factors", "sentence"),
  [
    (("head/.*", 10.0), "has 'head/.*', which is no pair of a pattern and"),
    ((("head/.*",),), "has ('head/.*',), which is no pair"),
    ((("head/.*", 1.0, 2.0),), "which is no pair"),
    (((1.0, "head/.*"),), "has (1.0, 'head/.*'), whose first is no pattern"),
    ((("head/.*", "10"),), "has ('head/.*', '10'), whose second should be a"),
    ((("head/.*", True),), "has ('head/.*', True), whose second"),
    ((("head/.*", -1.0),), "has ('head/.*', -1.0), whose second"),
    ((("head/.*", float("nan")),), "has ('head/.*', nan), whose second"),
    ((("head/.*", float("inf")),), "has ('head/.*', inf), whose second"),
    ((("head/(", 1.0),), "whose first is no regular expression (missing )"),
    (
      (("a{99999999999}", 1.0),),
      "whose first is no regular expression (the rep",
    ),
    ((("(" * 9999, 1.0),), "whose first is no regular expression"),
    ((("haed/.*", 1.0),), "has 'haed/.*', which matches no parameter's whole"),
    ((("head", 1.0),), "there are: head/bias; head/kernel; stem/bias; "),
    (((".*", 0.0),), "leaves no parameter to train"),
  ],
)
def test_factors_that_are_refused(factors, sentence):
  config = changed(lr_factors=factors)
  with pytest.raises(UserError) as caught:
    validation.validate(config, 1)
    optim.check_names(config, _NAMES)
  message = str(caught.value)
  assert message.startswith("optimizer.lr_factors") and sentence in message
  assert "--config.optimizer.lr_factors=\"(('head/.*', 10.0),)\"" in message


@pytest.mark.parametrize(
  "factors",
  [(), (("head/.*", 0),), [["head/.*", 10.0], ["stem/.*", 0.1]], ((".*", 3),)],
)
def test_factors_that_are_taken(factors):
  config = changed(lr_factors=factors)
  validation.validate(config, 1)
  optim.check_names(config, _NAMES)


def test_a_probe_needs_a_head_that_is_trained():
  config = changed(train="head", lr_factors=(("head/.*", 0.0),))
  with pytest.raises(UserError, match="optimizer.train='head' leaves no"):
    optim.check_names(config, _NAMES)
