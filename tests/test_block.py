"""Every variant of a block: the same function, gradients and draws."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import block as block_lib
from mixer import compiling, durations, model, sharding
from tests import reference
from tests.test_model import random_images, random_params, small

ALL = [
  dict(layout=layout, remat=remat)
  for layout, remat in itertools.product(block_lib.LAYOUTS, block_lib.REMAT)
]


@pytest.fixture(scope="module")
def given():
  """Parameters, images, and what numpy says in float64 of the loss.

  That is the loss, and its derivative along one random direction of each
  parameter.
  """
  params, images = random_params(small()), random_images(3)
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  rng = np.random.default_rng(5)
  directions = jax.tree.map(lambda x: rng.standard_normal(x.shape), params)

  def loss(params):
    return np.sin(reference.forward(params, images)).sum()

  leaves, tree = jax.tree.flatten(params)
  slopes = []
  for i, along in enumerate(jax.tree.leaves(directions)):
    ends = []
    for sign in (1, -1):
      moved = [*leaves]
      moved[i] = leaves[i] + sign * 1e-5 * along
      ends.append(loss(jax.tree.unflatten(tree, moved)))
    slopes.append((ends[0] - ends[1]) / 2e-5)
  return params, images, directions, loss(params), slopes


def found(how, given, dtype=jnp.float32):
  """The loss and the slopes of a variant."""
  params, images, directions, *_ = given
  module = small(dtype=dtype, **how)

  @jax.jit
  def run(params):
    def loss(params):
      logits = model.apply(module, params, images.astype(dtype))
      return jnp.sin(logits).sum()

    return jax.value_and_grad(loss)(params)

  single = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  loss, grads = run(single)
  slopes = jax.tree.map(
    lambda g, d: float(np.sum(np.asarray(g, np.float64) * d)), grads, directions
  )
  sizes = jax.tree.map(
    lambda g, d: float(np.linalg.norm(g) * np.linalg.norm(d)), grads, directions
  )
  return float(loss), jax.tree.leaves(slopes), jax.tree.leaves(sizes)


@pytest.mark.parametrize("how", ALL)
def test_function_and_gradients_are_those_of_float64(given, how):
  loss, slopes, sizes = found(how, given)
  assert loss == pytest.approx(given[3], abs=1e-4)
  for got, want, size in zip(slopes, given[4], sizes, strict=True):
    assert got == pytest.approx(want, abs=2e-5 * size + 1e-6)


@pytest.mark.parametrize("how", [ALL[0], ALL[3]])
def test_bfloat16_stays_near(given, how):
  loss, slopes, sizes = found(how, given, jnp.bfloat16)
  assert loss == pytest.approx(given[3], abs=0.3)
  for got, want, size in zip(slopes, given[4], sizes, strict=True):
    assert got == pytest.approx(want, abs=0.05 * size + 0.02)


def gradients(how, rates):
  module = small(**how, **rates)
  images, key = random_images(4), jax.random.key(1)
  params = random_params(small())

  @jax.jit
  def run(params):
    def loss(params):
      return jnp.sum(model.apply(module, params, images, key=key) ** 2)

    return jax.value_and_grad(loss)(params)

  return run(params)


def assert_same(one, two):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-4, atol=1e-5 * (1 + np.abs(b).max())
    ),
    one,
    two,
  )


@pytest.mark.parametrize(
  "layout",
  [pytest.param("batch_major", marks=pytest.mark.slow), "token_major"],
)
def test_what_is_random_is_drawn_alike(layout):
  rates = dict(dropout=0.2, stochastic_depth=0.5)
  plain = gradients(dict(layout=layout), rates)
  other = dict(layout=layout, remat="pre_activations")
  assert_same(plain, gradients(other, rates))


def test_stochastic_depth_knows_no_layout():
  rates = dict(stochastic_depth=0.5)
  one, two = (gradients(dict(layout=n), rates) for n in block_lib.LAYOUTS)
  assert_same(one, two)


@pytest.mark.parametrize("layout", block_lib.LAYOUTS)
def test_stochastic_depth_keeps_the_expectation_per_example(layout):
  block = block_lib.MixerBlock(8, 16, 4, layout=layout)
  x_BSC = np.random.default_rng(0).standard_normal((1, 4, 6))
  axis = block_lib.token_axis(layout)
  x = np.moveaxis(x_BSC, 1, axis).astype(np.float32)
  variables = block.init(jax.random.key(0), x)
  # With channel mixing silenced, the output is x + kept * branch / (1 - p).
  params = jax.tree.map(jnp.asarray, variables["params"])
  params["channel_mixing"]["Dense_1"] = jax.tree.map(
    jnp.zeros_like, params["channel_mixing"]["Dense_1"]
  )
  branch = block.apply({"params": params}, x) - x
  n = 4000
  out = block.apply(
    {"params": params},
    np.repeat(x, n, 1 - axis),
    jax.random.key(1),
    jnp.float32(0.25),
  )
  ratios = np.moveaxis(np.asarray((out - x) / branch), axis, 1).reshape(n, -1)
  # A whole branch is kept, and scaled, or left out, for each example.
  np.testing.assert_allclose(ratios, ratios[:, :1] + 0 * ratios, atol=1e-3)
  kept = ratios[:, 0] > 0.5
  np.testing.assert_allclose(ratios[kept, 0], 1 / 0.75, rtol=1e-3)
  np.testing.assert_allclose(ratios[~kept, 0], 0, atol=1e-3)
  assert kept.mean() == pytest.approx(0.75, abs=0.03)


def test_stochastic_depth_is_linear_over_depth():
  # At rates of 0 and nearly 1 a branch is there, or isn't: so are gradients.
  module = small(num_blocks=2, stochastic_depth=1 - 1e-6)
  params, images = random_params(small(num_blocks=2)), random_images(4)

  @jax.jit
  def run(params):
    return jax.grad(
      lambda p: model.apply(module, p, images, key=jax.random.key(0)).sum()
    )(params)

  grads = run(params)
  for block, there in ((0, True), (1, False)):
    leaves = jax.tree.leaves(grads[f"MixerBlock_{block}"]["channel_mixing"])
    assert all(np.any(x) == there for x in leaves)


def kept(remat):
  """Floats that the backward pass keeps of one image, by shape."""
  module = small(layout="token_major", remat=remat)
  params, images = random_params(small()), random_images(1)
  _, pull = jax.vjp(lambda p: model.apply(module, p, images), params)
  known = {id(x) for x in jax.tree.leaves(params)}
  return sum(
    x.size for x in jax.tree.leaves(pull) if x.ndim > 1 and id(x) not in known
  )


def test_policies_keep_less_and_less():
  none, pre, block = (kept(remat) for remat in block_lib.REMAT)
  s, c, t, f = 16, 24, 12, 40
  # Of three blocks: stream in and between, and pre-activations.
  assert block < pre < none
  assert pre - block >= 3 * (s * c + t * c + s * f)


def test_the_layout_is_asked_for_by_device(smoke_config):
  # Of whole arrays XLA would gather all images for it.
  smoke_config.model.layout = "token_major"
  plan = durations.plan(smoke_config, 1400)
  text = compiling.lower(
    smoke_config, plan, 10, sharding.make_mesh(jax.devices()[:4])
  ).as_text()
  b, s, c = smoke_config.batch_size // 4, 16, smoke_config.model.hidden_dim
  asked = re.findall(r"@LayoutConstraint\(.*-> tensor<(\w+)>", text)
  # Forward, and of its gradient.
  assert set(asked) == {f"{s}x{b}x{c}xf32"}
