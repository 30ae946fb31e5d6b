import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import block as block_lib
from mixer import config as config_lib
from mixer import model, train_step, weights
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


def abstract_params(name: str, num_classes: int = 1000, side: int = 224):
  module = model.build(name, num_classes)
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return jax.eval_shape(module.init, jax.random.key(0), images)["params"]


def count(params) -> int:
  return sum(x.size for x in jax.tree.leaves(params))


def small(**overrides):
  shape = dict(
    num_blocks=3, hidden_dim=24, tokens_mlp_dim=12, channels_mlp_dim=40
  )
  return model.build("S/4", 7, **(shape | overrides))


def random_params(module, side=16, seed=0):
  """Parameters away from their special initial values (zeros, ones)."""
  images = jnp.zeros((1, side, side, 3))
  params = jax.jit(module.init)(jax.random.key(seed), images)["params"]
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params
  )


def random_images(batch=2, side=16, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, (batch, side, side, 3)).astype(np.float32)


@pytest.mark.parametrize("name", TABLE)
def test_parameter_counts(name):
  assert count(abstract_params(name)) == TABLE[name][0]


def test_parameter_count_with_the_head_of_imagenet21k():
  assert count(abstract_params("B/16", 21_843)) == 75_908_739


@pytest.mark.parametrize("name", [n for n in TABLE if TABLE[n][1]])
def test_flops(name):
  module = model.build(name, 1000)
  macs, _ = model.forward_macs(module, 224)
  # S and the smallest are given to two decimals.
  np.testing.assert_allclose(macs / 1e9, TABLE[name][1], atol=0.0051)
  training = model.training_flop(module, 224) / 1e9
  np.testing.assert_allclose(training, TABLE[name][2], atol=0.0051)


def test_flops_of_an_update():
  module = model.build("B/16", 1000)
  config = config_lib.default()
  plain = model.training_flop(module, 224)
  assert train_step.update_flop(module, config) == plain
  config.image_width = 448  # Twice the tokens: only the head stays.
  head = 768 * 1000
  assert train_step.update_flop(module, config) == 2 * plain - 6 * head
  config.image_width = 0
  config.optimizer.sam_rho = 0.1
  assert train_step.update_flop(module, config) == 2 * plain
  config.optimizer.sam_rho = 0.0
  config.optimizer.train = "head"
  macs, _ = model.forward_macs(module, 224)
  assert train_step.update_flop(module, config) == 2 * macs + 2 * head


def test_names_and_shapes_are_those_of_the_released_checkpoints():
  shapes = weights.shapes(abstract_params("B/16"))
  expected = {
    "stem/kernel": (16, 16, 3, 768),
    "stem/bias": (768,),
    "pre_head_layer_norm/scale": (768,),
    "pre_head_layer_norm/bias": (768,),
    "head/kernel": (768, 1000),
    "head/bias": (1000,),
  }
  for i in range(12):
    block = f"MixerBlock_{i}"
    for norm in ("LayerNorm_0", "LayerNorm_1"):
      expected[f"{block}/{norm}/scale"] = (768,)
      expected[f"{block}/{norm}/bias"] = (768,)
    for mlp, width, hidden in (
      ("token_mixing", 196, 384),
      ("channel_mixing", 768, 3072),
    ):
      expected[f"{block}/{mlp}/Dense_0/kernel"] = (width, hidden)
      expected[f"{block}/{mlp}/Dense_0/bias"] = (hidden,)
      expected[f"{block}/{mlp}/Dense_1/kernel"] = (hidden, width)
      expected[f"{block}/{mlp}/Dense_1/bias"] = (width,)
  assert shapes == expected


def assert_close_to_reference(module, params, images):
  logits = jax.jit(module.apply)({"params": params}, images)
  expected = reference.forward(params, images)
  assert logits.dtype == jnp.float32
  scale = np.abs(expected).max()
  assert np.abs(np.asarray(logits) - expected).max() <= 1e-5 * scale


@settings(deadline=None, max_examples=4)
@given(
  st.integers(1, 3), st.integers(1, 24), st.integers(1, 9), st.integers(0, 99)
)
def test_forward_pass_equals_numpy(blocks, channels, width, seed):
  module = small(num_blocks=blocks, hidden_dim=channels, tokens_mlp_dim=width)
  params = random_params(module, seed=seed)
  assert_close_to_reference(module, params, random_images(seed=seed))


def test_forward_pass_equals_numpy_at_full_size():
  module = model.build("S/32", 1000)
  params = random_params(module, side=224)
  assert_close_to_reference(module, params, random_images(2, 224))


def test_images_need_not_be_square():
  module = small()
  images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 20, 3))
  images = images.astype(np.float32)
  params = jax.jit(module.init)(jax.random.key(0), images)["params"]
  params = jax.tree.map(lambda x: x + 0.1, params)
  assert_close_to_reference(module, params, images)


def test_jit_equals_eager():
  # Guards against XLA's fusions: see runtime.set_xla_flags.
  module, images = small(), random_images()
  params = random_params(module)

  def loss(params, images):
    return jnp.sum(jnp.sin(module.apply({"params": params}, images)))

  gradient = jax.grad(loss)
  with jax.disable_jit():
    eager = module.apply({"params": params}, images)
    eager_gradient = gradient(params, images)
  np.testing.assert_allclose(
    jax.jit(module.apply)({"params": params}, images), eager, atol=1e-5
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    jax.jit(gradient)(params, images),
    eager_gradient,
  )


def test_initialisation():
  module = model.build("S/16", 1000, head_bias=-6.9)
  images = jnp.zeros((1, 224, 224, 3))
  params = jax.jit(module.init)(jax.random.key(0), images)["params"]
  assert not np.any(params["head"]["kernel"])
  np.testing.assert_array_equal(params["head"]["bias"], np.float32(-6.9))
  for name, fan_in in (("token_mixing", 196), ("channel_mixing", 512)):
    dense = params["MixerBlock_3"][name]["Dense_0"]
    assert not np.any(dense["bias"])
    # LeCun normal: variance 1 / fan-in.
    assert np.std(dense["kernel"]) == pytest.approx(fan_in**-0.5, rel=0.02)
  assert np.std(params["stem"]["kernel"]) == pytest.approx(
    (16 * 16 * 3) ** -0.5, rel=0.02
  )
  logits = module.apply({"params": params}, images)
  np.testing.assert_allclose(logits, -6.9, rtol=1e-6)


def test_pre_logits():
  images = random_images()
  module = small()
  params = random_params(module)
  expected = reference.forward(params, images, head=False)
  got = module.apply({"params": params}, images, pre_logits=True)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
  headless = {k: v for k, v in params.items() if k != "head"}
  bare = model.build(
    "S/4",
    num_blocks=3,
    hidden_dim=24,
    tokens_mlp_dim=12,
    channels_mlp_dim=40,
  )
  np.testing.assert_array_equal(bare.apply({"params": headless}, images), got)


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  module, images = small(dtype=jnp.bfloat16), random_images()
  params = random_params(module)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  logits = module.apply({"params": params}, images.astype(jnp.bfloat16))
  assert logits.dtype == jnp.float32
  expected = reference.forward(params, images)
  # bfloat16 has 8 bits of mantissa.
  np.testing.assert_allclose(logits, expected, atol=0.05 * expected.std() * 4)


def test_dropout_and_stochastic_depth_act_in_training_alone():
  images, params = random_images(), random_params(small())
  module = small(dropout=0.5, stochastic_depth=0.5)
  plain = small().apply({"params": params}, images)
  np.testing.assert_array_equal(module.apply({"params": params}, images), plain)
  one, two = (
    module.apply({"params": params}, images, key=jax.random.key(i))
    for i in range(2)
  )
  assert not np.allclose(one, two)
  assert not np.allclose(one, plain)


@pytest.mark.parametrize("layout", block_lib.LAYOUTS)
def test_the_module_has_derivatives_of_every_kind(layout):
  module = small(num_blocks=1, layout=layout)
  of_training = module.clone(grad_dtype=jnp.dtype("float32"))
  params, images = random_params(module, 8), random_images(side=8)

  def loss(scale, module=module):
    scaled = jax.tree.map(lambda x: x * scale, params)
    return jnp.sum(model.apply(module, scaled, images) ** 2)

  def of_backward(scale):
    return jax.grad(loss)(scale, of_training)

  def derivatives(at):
    first = of_backward(at)
    second = (of_backward(at + 1e-2) - of_backward(at - 1e-2)) / 2e-2
    firsts = [jax.jacfwd(loss)(at), jax.jacrev(loss)(at)]
    firsts.append(jax.jvp(loss, (at,), (1.0,))[1])
    return (firsts, first), ([jax.hessian(loss)(at)], second)

  for found, expected in jax.jit(derivatives)(1.0):
    for derivative in found:
      np.testing.assert_allclose(derivative, expected, rtol=1e-3)
  # What keeps fewer arrays for the gradient has no other derivative.
  with pytest.raises(TypeError, match="forward-mode"):
    jax.eval_shape(jax.jacfwd(lambda x: loss(x, of_training)), 1.0)


@pytest.mark.parametrize("name", ["", "B16", "X/16", "B/0", "b/16", "B/16/2"])
def test_unknown_variants_are_refused(name):
  with pytest.raises(UserError, match=r"model\.variant=.*B/16"):
    model.build(name)


# What the paper says of its layers (introduction, section 4): that they are
# convolutions.


@pytest.fixture(scope="module")
def layers():
  """name -> (parameters, input, output) of layers of a model."""
  module, images = small(num_blocks=1), random_images(side=16)[:, :12]
  params = jax.jit(module.init)(jax.random.key(0), images)["params"]
  params = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), params)
  found, kinds = {}, ("token", "channel")

  def note(next_fun, args, kwargs, context):
    result = next_fun(*args, **kwargs)
    path = "/".join(context.module.path)
    if path in ("stem", *(f"MixerBlock_0/{kind}_mixing" for kind in kinds)):
      found[path] = (context.module.variables["params"], args[0], result)
    return result

  with nn.intercept_methods(note):
    module.apply({"params": params}, images)
  return found


def convolve(x, kernel, groups=1):
  """`[B, H, W, I]` by `[h, w, I / groups, O]`, no padding, stride 1."""
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def test_the_stem_is_a_strided_convolution(layers):
  p, images, got = layers["stem"]
  assert got.shape == (2, 3, 4, 24)
  for b in range(2):
    for c in range(24):
      # Of a convolution at every place, every fourth row and column.
      dense = scipy.signal.correlate(images[b], p["kernel"][..., c], "valid")
      expected = dense[::4, ::4, 0] + p["bias"][c]
      np.testing.assert_allclose(got[b, ..., c], expected, rtol=1e-4, atol=1e-4)


def test_channel_mixing_is_1x1_convolutions(layers):
  p, x_BSC, got = layers["MixerBlock_0/channel_mixing"]
  x = x_BSC.reshape(2, 3, 4, 24)
  for i in range(2):
    dense = p[f"Dense_{i}"]
    x = convolve(x, dense["kernel"][None, None]) + dense["bias"]
    x = nn.gelu(x) if i == 0 else x
  np.testing.assert_allclose(
    x.reshape(got.shape), got, rtol=1e-4, atol=1e-4 * np.abs(got).max()
  )


def test_token_mixing_is_depthwise_convolutions_that_share_weights(layers):
  p, x_BCS, got = layers["MixerBlock_0/token_mixing"]
  into, out = p["Dense_0"], p["Dense_1"]
  x = jnp.swapaxes(x_BCS.reshape(2, 24, 12), 1, 2).reshape(2, 3, 4, 24)
  # The receptive field is the whole image; every channel, a group of its own,
  # has the same T filters.
  filters = into["kernel"].reshape(3, 4, 1, 12)
  x = convolve(x, jnp.tile(filters, (1, 1, 1, 24)), groups=24)
  x = nn.gelu(x + jnp.tile(into["bias"], 24))
  assert x.shape == (2, 1, 1, 24 * 12)
  filters = jnp.tile(out["kernel"][None, None], (1, 1, 1, 24))
  x = convolve(x, filters, groups=24) + jnp.tile(out["bias"], 24)
  np.testing.assert_allclose(
    x.reshape(got.shape), got, rtol=1e-4, atol=1e-4 * np.abs(got).max()
  )
