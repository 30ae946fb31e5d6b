"""The model against numpy in float64 and flax; its variants and draws."""

import itertools
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import block as block_lib
from mixer import config as config_lib
from mixer import (
  durations,
  layers,
  model,
  planning,
  sharding,
  train_step,
  weights,
)
from mixer.errors import UserError
from tests import conftest, reference

# Parameters with 1000 classes at 224 px, of the released checkpoints where
# there is one; GMAC forward and training GFLOP an image, by hand.
TABLE = {
  "S/32": (19_104_624, 1.00, 5.86),
  "S/16": (18_528_264, 3.78, 22.51),
  "B/32": (60_293_428, 3.24, 19.20),
  "B/16": (59_880_472, 12.60, 75.38),
  "L/32": (206_939_264, 11.25, 67.21),
  "L/16": (208_196_168, 44.55, 266.98),
  "H/14": (432_350_952, 120.99, 725.55),
  "S/8": (20_646_504, None, None),
}
FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")
LAYOUTS = ("batch_major", "token_major")
REMAT = ("none", "pre_activations", "block")
TokenMixing = block_lib.TokenMixing
ALL = TokenMixing(untied=True, groups=2, projection=True, pyramid=((0, 4),))


def small(**overrides):
  shape = dict(
    num_blocks=2, hidden_dim=12, tokens_mlp_dim=5, channels_mlp_dim=14
  )
  return model.build("S/4", 7, **(shape | overrides))


def abstract(module, height, width=0):
  images = jax.ShapeDtypeStruct((1, height, width or height, 3), jnp.float32)
  return jax.eval_shape(module.init, jax.random.key(0), images)["params"]


def random_params(module, height=12, width=0, seed=0):
  """Parameters away from their special initial values (zeros, ones)."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
    abstract(module, height, width),
  )


def random_images(batch=2, height=12, width=0, seed=0):
  rng = np.random.default_rng(seed)
  shape = (batch, height, width or height, 3)
  return rng.uniform(-1, 1, shape).astype(np.float32)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


_APPLY = jax.jit(model.apply, static_argnums=0, static_argnames=("pre_logits",))


def apply(module, params, images, **options):
  return np.asarray(_APPLY(module, params, images, **options))


def close(got, expected, digits=1e-5):
  assert np.abs(got - expected).max() <= digits * np.abs(expected).max()


# What the tables say.


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_operations(name):
  module, (count, macs, training) = model.build(name, 1000), TABLE[name]
  params = abstract(module, 224)
  assert sum(x.size for x in jax.tree.leaves(params)) == count
  # Names and shapes of the released checkpoints.
  shape = weights.shape_of(params)
  assert weights.shapes(params) == weights.expected(shape)
  if macs:
    found = model.forward_macs(module, 224)[0] / 1e9
    assert found == pytest.approx(macs, abs=0.0051)
    found = model.training_flop(module, 224) / 1e9
    assert found == pytest.approx(training, abs=0.0051)


def test_operations_of_an_update():
  module, config = model.build("B/16", 1000), config_lib.default()
  plain = model.training_flop(module, 224)
  assert model.update_flop(module, config) == plain
  config.image_width = 448  # Twice the tokens: only the head stays.
  assert model.update_flop(module, config) == 2 * plain - 6 * 768 * 1000
  config.image_width = 0
  config.optimizer.sam_rho = 0.1
  assert model.update_flop(module, config) == 2 * plain
  config.optimizer.update(sam_rho=0.0, train="head")
  macs, _ = model.forward_macs(module, 224)
  assert model.update_flop(module, config) == 2 * macs + 2 * 768 * 1000


@pytest.mark.parametrize("name", ["", "B16", "X/16", "B/0", "b/16", "B/16/2"])
def test_unknown_variants_are_refused(name):
  with pytest.raises(UserError, match=r"model\.variant=.*B/16"):
    model.build(name)


# Layers.


def twins(kind, dtype):
  """(ours, flax.linen's, an input)."""
  if kind == "patches":  # Rows and columns beyond whole patches are left out.
    theirs = nn.Conv(7, (4, 4), strides=(4, 4), padding="VALID", dtype=dtype)
    return layers.PatchConv(7, 4, dtype, FLOAT32), theirs, normal(2, 9, 14, 3)
  if kind == "norm":
    return layers.LayerNorm(), nn.LayerNorm(), 3 * normal(3, 4, 5) + 1
  bias, x = kind == "dense", normal(3, 4, 5)
  ours = layers.Dense(7, bias, dtype, FLOAT32)
  return ours, nn.Dense(7, bias, dtype), x


@pytest.mark.parametrize("kind", ["dense", "no bias", "patches", "norm"])
def test_parameters_outputs_and_gradients_are_flax_s(kind):
  def gradients(module, params, x):
    y, pull = jax.vjp(module.apply, params, x)
    return y, pull(jnp.cos(y))

  ours, theirs, x = twins(kind, FLOAT32)
  params: Any = ours.init(jax.random.key(3), x)
  jax.tree.map(
    np.testing.assert_array_equal, params, theirs.init(jax.random.key(3), x)
  )
  params = jax.tree.map(lambda p: p + 0.5, params)
  compiled = jax.jit(gradients, static_argnums=0)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4),
    compiled(ours, params, x),
    compiled(theirs, params, x),
  )
  if kind != "norm":  # In bfloat16 to the bit.
    ours, theirs, _ = twins(kind, BFLOAT16)
    assert ours.apply(params, x).dtype == BFLOAT16
    np.testing.assert_array_equal(
      ours.apply(params, x), theirs.apply(params, x)
    )


@pytest.mark.parametrize("grad_dtype", [FLOAT32, BFLOAT16])
def test_sums_over_many_rows_are_float32_in_a_bfloat16_model(grad_dtype):
  x, dy = normal(2, 2048, 7).astype(BFLOAT16)
  wide, dy_wide = x.astype(np.float64), dy.astype(np.float64)
  module = layers.Dense(7, True, BFLOAT16, grad_dtype)
  params = module.init(jax.random.key(0), x)
  found = jax.vjp(lambda p: module.apply(p, x), params)[1](jnp.asarray(dy))
  found = found[0]["params"]
  assert found["kernel"].dtype == found["bias"].dtype == FLOAT32
  # Of about sqrt(rows) = 45: bfloat16 would be off by up to 0.1.
  np.testing.assert_allclose(found["bias"], dy_wide.sum(axis=0), atol=1e-3)
  expected = wide.T @ dy_wide
  digits = 2.0**-8 * np.abs(expected).max() if grad_dtype == BFLOAT16 else 0
  np.testing.assert_allclose(found["kernel"], expected, atol=digits + 1e-3)


@pytest.mark.parametrize(
  ("dtype", "grad_dtype"),
  [(BFLOAT16, FLOAT32), (BFLOAT16, BFLOAT16), (FLOAT32, BFLOAT16)],
)
def test_gradients_have_been_in_the_stated_precision(dtype, grad_dtype):
  # Every kind of layer: stem, blocks, head, all of the appendix.
  module = model.MlpMixer(
    *(4, 1, 8, 12, 40, 7), mixing=ALL, dtype=dtype, grad_dtype=grad_dtype
  )
  images = jnp.asarray(normal(16, 16, 16, 3), dtype)
  params = random_params(module, 16)

  def loss(params):
    return jnp.sum(model.apply(module, params, images) ** 2)

  # Not jitted, as XLA may leave such rounding out where nothing is summed.
  for name, found in conftest.leaves(jax.grad(loss)(params)):
    assert found.dtype == FLOAT32
    rounded = np.asarray(found).astype(BFLOAT16).astype(np.float32)
    narrow = np.array_equal(rounded, found)
    assert narrow == ("kernel" in name and grad_dtype == BFLOAT16), name


# Function and gradients.

MIXINGS = st.builds(
  TokenMixing,
  untied=st.booleans(),
  groups=st.sampled_from([1, 2, 4, 12]),
  projection=st.booleans(),
  pyramid=st.sampled_from([(), ((0, 5),), ((1, 1),), ((0, 6), (1, 2))]),
)


def traced_macs(jaxpr) -> int:
  """Multiply-accumulates of the program that JAX traces."""
  total = 0
  for e in jaxpr.eqns:
    for inner in jax.tree.leaves(
      list(e.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      inner = getattr(inner, "jaxpr", inner)
      total += traced_macs(inner) if hasattr(inner, "eqns") else 0
    if e.primitive.name == "dot_general":
      ((left, _), _) = e.params["dimension_numbers"]
      shared = math.prod(e.invars[0].aval.shape[i] for i in left)
      total += shared * e.outvars[0].aval.size
    elif e.primitive.name == "conv_general_dilated":
      total += e.outvars[0].aval.size * math.prod(e.invars[1].aval.shape[:3])
  return total


@settings(max_examples=5)
@given(
  MIXINGS,
  st.sampled_from(LAYOUTS),
  st.sampled_from([12, 8, 20]),
  st.integers(0, 99),
)
def test_models_equal_numpy(mixing, layout, width, seed):
  if width < 12:
    mixing = TokenMixing(mixing.untied, mixing.groups, mixing.projection)
  module = small(mixing=mixing, layout=layout)
  params = random_params(module, 12, width, seed)
  images = random_images(2, 12, width, seed)
  got = apply(module, params, images)
  close(got, reference.forward(params, images, mixing=mixing))
  traced = jax.make_jaxpr(module.apply)({"params": params}, images[:1])
  macs, _ = model.forward_macs(module, (12, width))
  assert macs == traced_macs(traced.jaxpr)


def test_pre_logits_and_bfloat16():
  module, images = small(mixing=ALL, num_blocks=1), random_images()
  params = random_params(module)
  got = apply(module, params, images, pre_logits=True)
  close(got, reference.forward(params, images, head=False, mixing=ALL))
  headless = {k: v for k, v in params.items() if k != "head"}
  bare = apply(module.clone(num_classes=0), headless, images)
  np.testing.assert_array_equal(bare, got)
  # With 8 bits of digits; logits are float32 all the same.
  half = apply(module.clone(dtype=jnp.bfloat16), params, images)
  assert half.dtype == np.float32
  close(half, reference.forward(params, images, mixing=ALL), 0.1)


def gradient(module, params, images, key=None):
  def loss(params):
    return jnp.sin(model.apply(module, params, images, key=key)).sum()

  return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize(
  ("mixing", "how"),
  [
    (TokenMixing(), [("batch_major", "none"), ("token_major", "block")]),
    (ALL, [("token_major", "pre_activations")]),
    pytest.param(
      *(ALL, [*itertools.product(LAYOUTS, REMAT)]), marks=pytest.mark.slow
    ),
  ],
)
def test_gradients_are_those_of_numpy_in_every_variant(mixing, how):
  module = small(mixing=mixing, grad_dtype=jnp.float32)
  params, images = random_params(module), random_images()
  # The model of a run, and the plain one.
  variants = [
    gradient(module.clone(layout=layout, remat=remat), params, images)
    for layout, remat in how
  ] + [gradient(model.plain(module), params, images)]
  # Each parameter along a random direction.
  rng = np.random.default_rng(5)
  leaves, tree = jax.tree.flatten(
    jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  )
  found = [jax.tree.leaves(variant) for variant in variants]
  for i, leaf in enumerate(leaves):
    along = rng.standard_normal(leaf.shape)
    ends = []
    for sign in (1, -1):
      moved = [*leaves]
      moved[i] = leaf + sign * 1e-5 * along
      logits = reference.forward(
        jax.tree.unflatten(tree, moved), images, mixing=mixing
      )
      ends.append(np.sin(logits).sum())
    slope = (ends[0] - ends[1]) / 2e-5
    for variant in found:
      got = np.asarray(variant[i], np.float64)
      size = np.linalg.norm(got) * np.linalg.norm(along)
      assert np.sum(got * along) == pytest.approx(slope, abs=3e-5 * size + 1e-5)


def test_a_plain_module_has_derivatives_of_every_kind():
  module = small(num_blocks=1)
  params, images = random_params(module, 8), random_images(2, 8)

  def loss(scale):
    scaled = jax.tree.map(lambda x: x * scale, params)
    return jnp.sum(model.apply(module, scaled, images) ** 2)

  def derivatives(at):
    first, h = jax.grad(loss), 1e-2
    second = (first(at + h) - first(at - h)) / (2 * h)
    return [jax.jacfwd(loss)(at), jax.hessian(loss)(at)], [first(at), second]

  # Guards against XLA's fusions too: see runtime.set_xla_flags.
  with jax.disable_jit():
    eager = loss(1.0)
  found, expected = jax.jit(derivatives)(1.0)
  np.testing.assert_allclose(found, expected, rtol=2e-3)
  np.testing.assert_allclose(jax.jit(loss)(1.0), eager, rtol=1e-5)


def test_initialisation():
  module = model.build("S/16", 1000, num_blocks=1, head_bias=-6.9)
  images = jnp.zeros((1, 224, 224, 3))
  params = jax.jit(module.init)(jax.random.key(0), images)["params"]
  assert not np.any(params["head"]["kernel"])
  np.testing.assert_array_equal(params["head"]["bias"], np.float32(-6.9))
  block = params["MixerBlock_0"]
  for kernel, fan_in in (
    # LeCun normal: variance 1 / fan-in.
    (params["stem"]["kernel"], 16 * 16 * 3),
    (block["token_mixing"]["Dense_0"]["kernel"], 196),
    (block["channel_mixing"]["Dense_0"]["kernel"], 512),
  ):
    assert np.std(kernel) == pytest.approx(fan_in**-0.5, rel=0.02)
  assert not np.any(block["channel_mixing"]["Dense_0"]["bias"])
  # Each of the untied MLPs for itself.
  mixing = TokenMixing(untied=True)
  untied = small(mixing=mixing, num_blocks=1, hidden_dim=64, tokens_mlp_dim=40)
  params = jax.jit(untied.init)(jax.random.key(0), images[:, :40, :40])
  kernel = params["params"]["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"]
  assert kernel.shape == (64, 100, 40)
  np.testing.assert_allclose(np.std(kernel, axis=(1, 2)), 0.1, rtol=0.1)
  rows = np.reshape(kernel, (64, -1))
  assert np.abs(np.corrcoef(rows) - np.eye(64)).max() < 0.1


# Dropout and stochastic depth.


def test_dropout_and_stochastic_depth_act_in_training_alone():
  images, params = random_images(), random_params(small(mixing=ALL))
  module = small(mixing=ALL, dropout=0.5, stochastic_depth=0.5)
  plain = apply(small(mixing=ALL), params, images)
  np.testing.assert_array_equal(apply(module, params, images), plain)
  keys = [jax.random.key(i) for i in range(2)]
  one, two = (apply(module, params, images, key=key) for key in keys)
  assert not np.allclose(one, two)
  assert not np.allclose(one, plain)
  # Drawn alike whatever is recomputed; stochastic depth in any layout.
  again = apply(module.clone(remat="block"), params, images, key=keys[0])
  close(again, one)
  depth = module.clone(dropout=0.0)
  close(
    *(
      apply(depth.clone(layout=layout), params, images, key=keys[0])
      for layout in LAYOUTS
    )
  )


@pytest.mark.parametrize("axis", [0, 1])
def test_stochastic_depth_keeps_the_expectation_per_example(axis):
  block = block_lib.MixerBlock(8, 16, 4, token_axis=axis)
  x = np.moveaxis(random_images(1, 4, 6)[..., 0], 1, axis)
  params = block.init(jax.random.key(0), x)["params"]
  # With channel mixing silenced, the output is x + kept * branch / (1 - p).
  silent = jax.tree.map(jnp.zeros_like, params["channel_mixing"])
  variables = {"params": params | {"channel_mixing": silent}}
  n, rate = 4000, jnp.float32(0.25)
  branch = block.apply(variables, x) - x
  many = np.repeat(x, n, 1 - axis)
  out = block.apply(variables, many, jax.random.key(1), rate)
  ratios = np.moveaxis(np.asarray((out - x) / branch), axis, 1).reshape(n, -1)
  # A whole branch is kept, and scaled, or left out, for each example.
  np.testing.assert_allclose(ratios, ratios[:, :1] + 0 * ratios, atol=1e-3)
  kept = ratios[:, 0] > 0.5
  np.testing.assert_allclose(ratios[kept, 0], 1 / 0.75, rtol=1e-3)
  np.testing.assert_allclose(ratios[~kept, 0], 0, atol=1e-3)
  assert kept.mean() == pytest.approx(0.75, abs=0.03)


def test_stochastic_depth_is_linear_over_depth():
  # At rates of 0 and nearly 1 a branch is there, or isn't: so are gradients.
  module = small(stochastic_depth=1 - 1e-6)
  params = random_params(small())
  grads = gradient(module, params, random_images(4), jax.random.key(0))
  for block, there in ((0, True), (1, False)):
    leaves = jax.tree.leaves(grads[f"MixerBlock_{block}"]["channel_mixing"])
    assert all(np.any(x) == there for x in leaves)


# What is kept, and where it is.


def test_policies_keep_less_and_less():
  params, images = random_params(small(), 16), random_images(1, 16)

  def kept(remat):
    """Floats that the backward pass keeps."""
    module = small(layout="token_major", remat=remat, grad_dtype=FLOAT32)
    _, pull = jax.vjp(lambda p: model.apply(module, p, images), params)
    known = {id(x) for x in jax.tree.leaves(params)}
    return sum(
      x.size for x in jax.tree.leaves(pull) if x.ndim > 1 and id(x) not in known
    )

  none, pre, block = map(kept, REMAT)
  s, c, t, f = 16, 12, 5, 14
  # Of two blocks: stream in and between, and pre-activations.
  assert block < pre < none
  assert pre - block >= 2 * (s * c + t * c + s * f)
  # Stream and norms of either branch, pre-activations, what GELU gives out.
  assert none - pre <= 2 * (4 * s * c + t * c + s * f)


def test_the_layout_is_asked_for_by_device(smoke_config):
  # Of whole arrays XLA would gather all images for it.
  smoke_config.model.layout = "token_major"
  plan = durations.plan(smoke_config, 1400)
  text = planning.lower(
    smoke_config, plan, 10, sharding.make_mesh(jax.devices()[:4])
  ).as_text()
  b, s, c = smoke_config.batch_size // 4, 16, smoke_config.model.hidden_dim
  asked = re.findall(r"@LayoutConstraint\(.*-> tensor<(\w+)>", text)
  # Forward, and of its gradient.
  assert set(asked) == {f"{s}x{b}x{c}xf32"}


# Permuted images.


def orders_seen(height, width, patch, seed):
  """Orders of patches and pixels, read off an image that numbers pixels."""
  numbers = np.arange(height * width, dtype=np.int32)
  image = jnp.asarray(numbers.reshape(1, height, width, 1))
  got = np.asarray(model.permute(image, "patches", patch, seed))[0, ..., 0]
  corners = got[::patch, ::patch].ravel()
  across = width // patch
  patches = corners // width // patch * across + corners % width // patch
  first = got[:patch, :patch].ravel()
  pixels = first // width % patch * patch + first % width % patch
  return patches, pixels


def test_orders_are_permutations_that_never_change():
  for purpose, seed in itertools.product((0, 1), (0, 2**32 - 1)):
    order = model.random_order(500, seed, purpose)
    np.testing.assert_array_equal(np.sort(order), np.arange(500))
  # A checkpoint's meaning hangs on them.
  assert model.random_order(10, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
  assert model.random_order(10, 7, 1).tolist() == [3, 9, 1, 6, 2, 5, 4, 8, 0, 7]


def reordered(params, patches, pixels):
  """The weights that do with permuted images what `params` do with others."""
  stem = params["stem"]["kernel"]
  turned = stem.reshape(16, 3, -1)[pixels].reshape(stem.shape)
  same = params | {"stem": params["stem"] | {"kernel": turned}}
  for name in ("MixerBlock_0", "MixerBlock_1"):
    into, out = (params[name]["token_mixing"][f"Dense_{i}"] for i in range(2))
    same[name] = params[name] | {
      "token_mixing": {
        "Dense_0": into | {"kernel": into["kernel"][patches]},
        "Dense_1": {
          "kernel": out["kernel"][:, patches],
          "bias": out["bias"][patches],
        },
      }
    }
  return same


def test_a_mixer_does_not_mind_the_order_of_patches_and_pixels():
  # The paper's figure 4: the curves match. Weights follow the permutation.
  orders = patches, pixels = orders_seen(12, 12, 4, 7)
  np.testing.assert_array_equal(np.sort(patches), np.arange(9))
  np.testing.assert_array_equal(np.sort(pixels), np.arange(16))
  images, params = random_images(3), random_params(small())
  expected = apply(small(), params, images)
  shuffled = small(permute="patches", permute_seed=7)
  close(apply(shuffled, reordered(params, *orders), images), expected)
  for other in (shuffled, small(permute="pixels")):  # Those must follow.
    assert np.abs(apply(other, params, images) - expected).max() > 0.01
  every = model.permute(jnp.asarray(images), "pixels", 4, 3)
  order = model.random_order(12 * 12, 3)
  flat = images.reshape(3, -1, 3)[:, order]
  np.testing.assert_array_equal(every, flat.reshape(images.shape))


def test_shuffled_patches_change_nothing_of_training(smoke_config):
  smoke_config.image_size = 12
  # An epsilon by which rounding can't turn the sign of what is nearly 0.
  smoke_config.optimizer.update(learning_rate=1e-2, eps=1e-2)
  smoke_config.model.update(dropout=0.0, stochastic_depth=0.0)
  plan, mesh = durations.Plan(9, 1, 1, 1, 1), sharding.make_mesh()
  batch = {"image": np.uint8(127 * (random_images(8) + 1))}
  batch["label"] = np.arange(8) % 7

  def train(module, params):
    trainer = train_step.Trainer(smoke_config, plan, 7, mesh, module)
    where = jax.tree.map(lambda x: x.sharding, trainer.abstract.params)
    state = trainer.init().replace(params=jax.device_put(params, where))
    for _ in range(9):
      state, _ = trainer.train_step(state, sharding.put_batch(mesh, batch))
    return jax.device_get(state.params)

  orders, params = orders_seen(12, 12, 4, 7), random_params(small())
  plain = train(small(), params)
  shuffled = small(permute="patches", permute_seed=7)
  found = train(shuffled, reordered(params, *orders))
  moved = np.abs(plain["stem"]["kernel"] - params["stem"]["kernel"]).max()
  assert moved > 0.01
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    found,
    reordered(plain, *orders),
  )


def test_configs_describe_the_model():
  c = config_lib.default()
  c.model.update(token_mixing="untied", token_groups=4, group_projection=True)
  c.model.update(pyramid_blocks=(1, 5), pyramid_tokens=[98, 49], num_blocks=7)
  c.data.update(permute="pixels", permute_seed=11)
  module = model.from_config(c, 5)
  assert module.mixing == TokenMixing(True, 4, True, ((1, 98), (5, 49)))
  assert (module.permute, module.permute_seed) == ("pixels", 11)
  assert (module.num_blocks, module.hidden_dim) == (7, 768)
  assert model.from_config(config_lib.default(), 5).mixing == TokenMixing()
