"""The model against numpy in float64; its variants, draws and permutations."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import block as block_lib
from mixer import config as config_lib
from mixer import durations, model, planning, sharding, train_step, weights
from mixer.errors import UserError
from tests import reference

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
  assert train_step.update_flop(module, config) == plain
  config.image_width = 448  # Twice the tokens: only the head stays.
  assert train_step.update_flop(module, config) == 2 * plain - 6 * 768 * 1000
  config.image_width = 0
  config.optimizer.sam_rho = 0.1
  assert train_step.update_flop(module, config) == 2 * plain
  config.optimizer.update(sam_rho=0.0, train="head")
  macs, _ = model.forward_macs(module, 224)
  assert train_step.update_flop(module, config) == 2 * macs + 2 * 768 * 1000


@pytest.mark.parametrize("name", ["", "B16", "X/16", "B/0", "b/16", "B/16/2"])
def test_unknown_variants_are_refused(name):
  with pytest.raises(UserError, match=r"model\.variant=.*B/16"):
    model.build(name)


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
      list(e.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
    ):
      if hasattr(inner, "jaxpr"):
        total += traced_macs(inner.jaxpr)
    if e.primitive.name == "dot_general":
      ((left, _), _) = e.params["dimension_numbers"]
      shared = math.prod(e.invars[0].aval.shape[i] for i in left)
      total += shared * e.outvars[0].aval.size
    elif e.primitive.name == "conv_general_dilated":
      total += e.outvars[0].aval.size * math.prod(e.invars[1].aval.shape[:3])
  return total


@settings(deadline=None, max_examples=5)
@given(
  MIXINGS,
  st.sampled_from(block_lib.LAYOUTS),
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


def test_a_released_size_equals_numpy():
  module = model.build("S/32", 1000)
  params = jax.tree.map(lambda x: x / 10, random_params(module, 224))
  images = random_images(1, 224)
  close(apply(module, params, images), reference.forward(params, images), 1e-4)


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
      *(ALL, [*itertools.product(block_lib.LAYOUTS, block_lib.REMAT)]),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_gradients_are_those_of_numpy_in_every_variant(mixing, how):
  module = small(mixing=mixing, grad_dtype=jnp.float32)
  params, images = random_params(module), random_images()
  variants = [
    gradient(module.clone(layout=layout, remat=remat), params, images)
    for layout, remat in how
  ]
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


def test_jit_equals_eager():
  # Guards against XLA's fusions: see runtime.set_xla_flags.
  module, images = small(), random_images()
  params = random_params(module)

  def loss(params):
    return jnp.sum(jnp.sin(model.apply(module, params, images)))

  with jax.disable_jit():
    eager = jax.value_and_grad(loss)(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    jax.jit(jax.value_and_grad(loss))(params),
    eager,
  )


@pytest.mark.parametrize(
  "layout", ["batch_major", pytest.param("token_major", marks=pytest.mark.slow)]
)
def test_a_plain_module_has_derivatives_of_every_kind(layout):
  of_training = small(
    num_blocks=1, layout=layout, grad_dtype=jnp.dtype("float32")
  )
  params, images = random_params(of_training, 8), random_images(2, 8)

  def loss(scale, module):
    scaled = jax.tree.map(lambda x: x * scale, params)
    return jnp.sum(model.apply(module, scaled, images) ** 2)

  def derivatives(at):
    def plain(scale):
      return loss(scale, of_training.clone(grad_dtype=None))

    def first(scale):
      return jax.grad(loss)(scale, of_training)

    second = (first(at + 1e-2) - first(at - 1e-2)) / 2e-2
    return (
      [jax.jacfwd(plain)(at), jax.jacrev(plain)(at), jax.hessian(plain)(at)],
      [first(at), first(at), second],
    )

  found, expected = jax.jit(derivatives)(1.0)
  np.testing.assert_allclose(found, expected, rtol=2e-3)
  # What keeps fewer arrays for the gradient has no other derivative.
  with pytest.raises(TypeError, match="forward-mode"):
    jax.eval_shape(jax.jacfwd(lambda x: loss(x, of_training)), 1.0)


def test_initialisation():
  mixing = TokenMixing(untied=True)
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
  np.testing.assert_allclose(
    module.apply({"params": params}, images), -6.9, rtol=1e-6
  )
  # Each of the untied MLPs for itself.
  untied = small(mixing=mixing, num_blocks=1, hidden_dim=64, tokens_mlp_dim=40)
  params = jax.jit(untied.init)(jax.random.key(0), images[:, :40, :40])
  kernel = params["params"]["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"]
  assert kernel.shape == (64, 100, 40)
  np.testing.assert_allclose(np.std(kernel, axis=(1, 2)), 0.1, rtol=0.1)
  rows = np.reshape(kernel, (64, -1))
  assert np.abs(np.corrcoef(rows) - np.eye(64)).max() < 0.1


# Dropout and stochastic depth.


@pytest.mark.parametrize(
  "mixing", [pytest.param(TokenMixing(), marks=pytest.mark.slow), ALL]
)
def test_dropout_and_stochastic_depth_act_in_training_alone(mixing):
  images, params = random_images(), random_params(small(mixing=mixing))
  module = small(mixing=mixing, dropout=0.5, stochastic_depth=0.5)
  plain = apply(small(mixing=mixing), params, images)
  np.testing.assert_array_equal(apply(module, params, images), plain)
  one, two = (
    apply(module, params, images, key=jax.random.key(i)) for i in range(2)
  )
  assert not np.allclose(one, two)
  assert not np.allclose(one, plain)
  # Drawn alike whatever is recomputed; stochastic depth in any layout.
  again = apply(
    module.clone(remat="block"), params, images, key=jax.random.key(0)
  )
  close(again, one)
  depth = module.clone(dropout=0.0)
  both = [
    apply(depth.clone(layout=layout), params, images, key=jax.random.key(0))
    for layout in block_lib.LAYOUTS
  ]
  close(*both)


@pytest.mark.parametrize("layout", block_lib.LAYOUTS)
def test_stochastic_depth_keeps_the_expectation_per_example(layout):
  block = block_lib.MixerBlock(8, 16, 4, layout=layout)
  axis = block_lib.token_axis(layout)
  x = np.moveaxis(random_images(1, 4, 6)[..., 0], 1, axis)
  params = block.init(jax.random.key(0), x)["params"]
  # With channel mixing silenced, the output is x + kept * branch / (1 - p).
  silent = jax.tree.map(jnp.zeros_like, params["channel_mixing"])
  variables = {"params": params | {"channel_mixing": silent}}
  n = 4000
  branch = block.apply(variables, x) - x
  out = block.apply(
    variables,
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
    module = small(layout="token_major", remat=remat)
    _, pull = jax.vjp(lambda p: model.apply(module, p, images), params)
    known = {id(x) for x in jax.tree.leaves(params)}
    return sum(
      x.size for x in jax.tree.leaves(pull) if x.ndim > 1 and id(x) not in known
    )

  none, pre, block = map(kept, block_lib.REMAT)
  s, c, t, f = 16, 12, 5, 14
  # Of two blocks: stream in and between, and pre-activations.
  assert block < pre < none
  assert pre - block >= 2 * (s * c + t * c + s * f)


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


@given(st.integers(1, 500), st.integers(0, 2**32 - 1))
def test_orders_are_permutations(count, seed):
  one, two = (model.random_order(count, seed, purpose) for purpose in (0, 1))
  for order in (one, two):
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
  if count > 30:
    assert (one != two).any()
    assert (one != model.random_order(count, seed ^ 1)).any()


def test_orders_never_change():
  # A checkpoint's meaning hangs on them.
  assert model.random_order(10, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
  assert model.random_order(10, 7, 1).tolist() == [3, 9, 1, 6, 2, 5, 4, 8, 0, 7]


@settings(deadline=None, max_examples=10)
@given(st.sampled_from([(8, 12, 4), (6, 9, 3), (5, 7, 1)]), st.integers(0, 999))
def test_patches_are_shuffled_and_their_pixels_alike(sizes, seed):
  h, w, p = sizes
  patches, pixels = orders_seen(h, w, p, seed)
  np.testing.assert_array_equal(np.sort(patches), np.arange(h * w // p**2))
  np.testing.assert_array_equal(np.sort(pixels), np.arange(p * p))
  images = random_images(3, h, w, seed)
  got = np.asarray(model.permute(jnp.asarray(images), "patches", p, seed))
  across = w // p
  for new, old in enumerate(patches):
    for to, source in enumerate(pixels):
      np.testing.assert_array_equal(
        got[:, new // across * p + to // p, new % across * p + to % p],
        images[
          :, old // across * p + source // p, old % across * p + source % p
        ],
      )
  every = model.permute(jnp.asarray(images), "pixels", p, seed)
  order = model.random_order(h * w, seed)
  expected = images.reshape(3, h * w, 3)[:, order].reshape(images.shape)
  np.testing.assert_array_equal(every, expected)
  assert model.permute(images, "", p, seed) is images  # pyright: ignore


@pytest.mark.parametrize("seed", [0, 7])
def test_a_mixer_does_not_mind_the_order_of_patches_and_pixels(seed):
  # The paper's figure 4: the curves match. Weights follow the permutation.
  patches, pixels = orders_seen(12, 12, 4, seed)
  images, params = random_images(3), random_params(small())
  expected = apply(small(), params, images)
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
  shuffled = small(permute="patches", permute_seed=seed)
  close(apply(shuffled, same, images), expected)
  for other in (shuffled, small(permute="pixels")):  # Those must follow.
    assert np.abs(apply(other, params, images) - expected).max() > 0.01


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
