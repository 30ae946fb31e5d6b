"""Appendix A.1's ways to mix tokens, against plain numpy and laws."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import experiments
from mixer import block as block_lib
from mixer import config as config_lib
from mixer import model, optim, validation, weights
from mixer.errors import UserError

KINDS = experiments.MIXINGS
TokenMixing = block_lib.TokenMixing


def small(mixing, **overrides):
  shape = dict(
    num_blocks=2, hidden_dim=12, tokens_mlp_dim=5, channels_mlp_dim=14
  )
  return model.build("S/4", 7, mixing=mixing, **(shape | overrides))


def random_params(module, side=12, seed=0) -> Any:
  """Parameters away from their special initial values."""
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), shapes
  )


def apply(module, params, images, key=None):
  """`model.apply`, jitted: faster than one operation after the other."""

  @jax.jit
  def run(params, images, key):
    return model.apply(module, params, images, key=key)

  return np.asarray(run(params, images, key))


def random_images(batch=2, side=12, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, (batch, side, side, 3)).astype(np.float32)


# The appendix in numpy, one vector after the other.


def norm(x, p):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return x * p["scale"] + p["bias"]


def mlp(x, p):
  x = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
  x = 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
  return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def token_mixing_by_columns(x_SC, block, mixing):
  """One image: a vector for each group, its MLP, and back to columns."""
  g, (_, c) = mixing.groups, x_SC.shape
  if mixing.projection:
    # View k is a linear function of its own: columns k, k + G, ...
    kernel = block["group_projection"]["kernel"]
    views = [x_SC @ kernel[:, k::g] for k in range(g)]  # Each [S, C / G].
    vectors = [np.concatenate([v[:, j] for v in views]) for j in range(c // g)]
  else:
    columns = list(x_SC.T)
    vectors = [np.concatenate(columns[j : j + g]) for j in range(0, c, g)]
  out = []
  for j, vector in enumerate(vectors):
    p = block["token_mixing"]
    if mixing.untied:
      p = jax.tree.map(lambda leaf, j=j: leaf[j], p)
    out.extend(np.split(mlp(vector, p), g))
  return np.stack(out, axis=1)


def forward(params, images, mixing):
  p: Any = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  size = p["stem"]["kernel"].shape[0]
  logits = []
  for image in images.astype(np.float64):
    h, w, _ = image.shape
    patches = [
      image[i : i + size, j : j + size].ravel()
      for i in range(0, h, size)
      for j in range(0, w, size)
    ]
    kernel = p["stem"]["kernel"].reshape(len(patches[0]), -1)
    x = np.stack(patches) @ kernel + p["stem"]["bias"]
    for i in range(sum(k.startswith("MixerBlock_") for k in p)):
      block = p[f"MixerBlock_{i}"]
      y = token_mixing_by_columns(norm(x, block["LayerNorm_0"]), block, mixing)
      if "token_shortcut" in block:
        x = block["token_shortcut"]["kernel"].T @ x
      x = x + y
      x = x + mlp(norm(x, block["LayerNorm_1"]), block["channel_mixing"])
    x = norm(x, p["pre_head_layer_norm"]).mean(0)
    logits.append(x @ p["head"]["kernel"] + p["head"]["bias"])
  return np.stack(logits)


MIXINGS = st.builds(
  TokenMixing,
  untied=st.booleans(),
  groups=st.sampled_from([1, 2, 4, 12]),
  projection=st.booleans(),
  pyramid=st.sampled_from([(), ((0, 5),), ((1, 1),), ((0, 6), (1, 2))]),
)


@settings(deadline=None, max_examples=6)
@given(MIXINGS, st.integers(0, 99))
def test_models_equal_numpy(mixing, seed):
  module = small(mixing)
  params, images = random_params(module, seed=seed), random_images(seed=seed)
  expected = forward(params, images, mixing)
  got = apply(module, params, images)
  assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def shapes(mixing):
  return weights.shapes(random_params(small(mixing)))


def block_shapes(mixing, block=1):
  prefix = f"MixerBlock_{block}/"
  return {
    k.removeprefix(prefix): v
    for k, v in shapes(mixing).items()
    if k.startswith(prefix) and "Layer" not in k and "channel" not in k
  }


def dense(name, *kernel):
  return {f"{name}/kernel": kernel, f"{name}/bias": (*kernel[:-2], kernel[-1])}


def test_names_and_shapes():
  # S 9, C 12, T 5.
  into, out = "token_mixing/Dense_0", "token_mixing/Dense_1"
  assert block_shapes(TokenMixing()) == dense(into, 9, 5) | dense(out, 5, 9)
  untied = dense(into, 12, 9, 5) | dense(out, 12, 5, 9)
  assert block_shapes(TokenMixing(untied=True)) == untied
  grouped = dense(into, 36, 5) | dense(out, 5, 36)
  assert block_shapes(TokenMixing(groups=4)) == grouped
  projected = grouped | {"group_projection/kernel": (12, 12)}
  assert block_shapes(TokenMixing(groups=4, projection=True)) == projected
  pyramid = TokenMixing(pyramid=((0, 4),))
  assert block_shapes(pyramid, 0) == (
    dense(into, 9, 5) | dense(out, 5, 4) | {"token_shortcut/kernel": (9, 4)}
  )
  assert block_shapes(pyramid, 1) == dense(into, 4, 5) | dense(out, 5, 4)


def with_blocks(params, change):
  """Weights with each block's changed; `change` gives what is new in it."""
  return {
    k: v | change(v) if k.startswith("MixerBlock_") else v
    for k, v in params.items()
  }


def test_untied_mlps_with_equal_weights_are_the_shared_one():
  plain, untied = small(TokenMixing()), small(TokenMixing(untied=True))
  params, images = random_params(plain), random_images()
  copies = with_blocks(
    params,
    lambda block: {
      "token_mixing": jax.tree.map(
        lambda x: np.stack([x] * 12), block["token_mixing"]
      )
    },
  )
  np.testing.assert_allclose(
    apply(untied, copies, images),
    apply(plain, params, images),
    rtol=1e-4,
    atol=1e-5,
  )


def test_an_identical_projection_is_none():
  plain = small(TokenMixing(groups=3))
  projected = small(TokenMixing(groups=3, projection=True))
  params, images = random_params(plain), random_images()
  identity = {"kernel": np.eye(12, dtype=np.float32)}
  same = with_blocks(params, lambda _: {"group_projection": identity})
  np.testing.assert_allclose(
    apply(projected, same, images),
    apply(plain, params, images),
    rtol=1e-4,
    atol=1e-5,
  )


def test_initialisation():
  def kernels(**mixing):
    module = small(
      TokenMixing(**mixing), hidden_dim=64, tokens_mlp_dim=40, num_blocks=1
    )
    images = jnp.zeros((1, 40, 40, 3))
    params = jax.jit(module.init)(jax.random.key(0), images)["params"]
    block = params["MixerBlock_0"]
    assert not np.any(block["token_mixing"]["Dense_0"]["bias"])
    return {
      k.removesuffix("/kernel"): np.asarray(v)
      for k, v in weights.flatten(block).items()
      if k.endswith("kernel")
    }

  # LeCun normal: variance 1 / fan-in, of each MLP for itself.
  untied = kernels(untied=True)["token_mixing/Dense_0"]
  assert untied.shape == (64, 100, 40)
  np.testing.assert_allclose(untied.std(axis=(1, 2)), 0.1, rtol=0.1)
  assert np.abs(np.corrcoef(untied.reshape(64, -1)) - np.eye(64)).max() < 0.1
  grouped = kernels(groups=8, projection=True)
  assert grouped["token_mixing/Dense_0"].std() == pytest.approx(
    800**-0.5, rel=0.03
  )
  assert grouped["group_projection"].std() == pytest.approx(1 / 8, rel=0.05)
  pyramid = kernels(pyramid=((0, 49),))
  assert pyramid["token_shortcut"].std() == pytest.approx(0.1, rel=0.05)


ALL = TokenMixing(untied=True, groups=2, projection=True, pyramid=((0, 4),))


def test_dropout_and_stochastic_depth_act_in_training_alone():
  params, images = random_params(small(ALL)), random_images()
  module = small(ALL, dropout=0.5, stochastic_depth=0.5)
  plain = apply(small(ALL), params, images)
  np.testing.assert_array_equal(apply(module, params, images), plain)
  one, two = (
    apply(module, params, images, jax.random.key(seed)) for seed in range(2)
  )
  assert not np.allclose(one, two)
  assert not np.allclose(one, plain)


def test_untied_mlps_draw_dropout_of_their_own():
  # All channels come out alike, but for what dropout leaves out of each.
  how = TokenMixing(untied=True)
  block = block_lib.MixerBlock(8, 4, 6, dropout=0.5, mixing=how)
  x = np.arange(6, dtype=np.float32)[:, None] + np.linspace(-1, 1, 5)
  x = x[None].astype(np.float32)
  shapes = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
  params = jax.tree.map(lambda p: np.full(p.shape, 0.1, p.dtype), shapes)
  silent = jax.tree.map(np.zeros_like, params["channel_mixing"])

  @jax.jit
  def run(params):
    return block.apply({"params": params}, x, jax.random.key(1))

  zero = np.asarray(run(params | {"channel_mixing": silent}) == x)[0]
  assert 0 < zero.mean() < 1
  assert len({tuple(column) for column in zero.T}) > 1


@pytest.mark.parametrize(
  "how", [dict(layout="token_major"), dict(remat="pre_activations")]
)
def test_variants_of_the_step_change_nothing(how):
  # Stochastic depth draws the same for all; dropout's order is the layout's.
  params, images = random_params(small(ALL)), random_images()
  rates = dict(stochastic_depth=0.5, dropout=0.0 if "layout" in how else 0.2)

  def loss(variant):
    module = small(ALL, **rates, **variant)
    return lambda p: jnp.sum(
      model.apply(module, p, images, key=jax.random.key(1)) ** 2
    )

  plain = jax.jit(jax.grad(loss({})))(params)
  other = jax.jit(jax.grad(loss(how)))(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max() + 1e-6
    ),
    plain,
    other,
  )


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  module, images = small(ALL, dtype=jnp.bfloat16), random_images()
  params = random_params(module)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  logits = apply(module, params, images.astype(jnp.bfloat16))
  assert logits.dtype == jnp.float32
  expected = forward(params, images, ALL)
  assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


def test_weight_decay_is_on_all_kernels():
  mask = weights.flatten(optim.decay_mask(random_params(small(ALL))))
  assert {k for k, v in mask.items() if v} == {
    k for k in mask if k.endswith("/kernel")
  }
  assert "MixerBlock_0/token_shortcut/kernel" in mask


# Operations, counted in the program that JAX traces.


def macs(jaxpr) -> int:
  total = 0
  for e in jaxpr.eqns:
    for inner in jax.tree.leaves(
      list(e.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
    ):
      if hasattr(inner, "jaxpr"):
        total += macs(inner.jaxpr)
    if e.primitive.name == "dot_general":
      ((left, _), _) = e.params["dimension_numbers"]
      shared = math.prod(e.invars[0].aval.shape[i] for i in left)
      total += shared * e.outvars[0].aval.size
    elif e.primitive.name == "conv_general_dilated":
      total += e.outvars[0].aval.size * math.prod(e.invars[1].aval.shape[:3])
  return total


@settings(deadline=None, max_examples=10)
@given(MIXINGS)
def test_flops_are_those_of_the_program(mixing):
  module = small(mixing)
  images = jnp.zeros((1, 12, 12, 3))
  traced = jax.make_jaxpr(module.apply)(
    {"params": random_params(module)}, images
  )
  assert model.forward_macs(module, 12)[0] == macs(traced.jaxpr)


# Configs.


def config_with(**keys):
  c = config_lib.default()
  c.model.dtype = "float32"
  for key, value in keys.items():
    c.model[key] = value
  return c


def test_configs_give_the_model_its_mixing():
  c = config_with(
    token_mixing="untied",
    token_groups=4,
    group_projection=True,
    pyramid_blocks=(1, 5),
    pyramid_tokens=[98, 49],
  )
  validation.validate(c, 1)
  module = model.from_config(c, 5)
  assert module.mixing == TokenMixing(True, 4, True, ((1, 98), (5, 49)))
  module = model.from_config(config_lib.default(), 5)
  assert module.mixing == TokenMixing()


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    (
      {"token_mixing": "tied"},
      "token_mixing='tied' is not known.*token_mixing=untied",
    ),
    ({"token_groups": 0}, "token_groups=0 should be at least 1"),
    (
      {"token_groups": 7},
      "token_groups=7 doesn't divide the model's 768 .*token_groups=6",
    ),
    (
      {"token_groups": 2, "hidden_dim": 9},
      "token_groups=2 doesn't divide the model's 9 .*token_groups=1",
    ),
    ({"pyramid_blocks": (3,)}, "pyramid_tokens=.. should be equally long"),
    ({"pyramid_tokens": (9,)}, "pyramid_blocks=.. and .*equally long"),
    (
      {"pyramid_blocks": (3, 3), "pyramid_tokens": (98, 49)},
      "rising numbers of blocks, of 0 to 11",
    ),
    (
      {"pyramid_blocks": (5, 3), "pyramid_tokens": (98, 49)},
      "rising numbers of blocks",
    ),
    (
      {"pyramid_blocks": (12,), "pyramid_tokens": (49,)},
      "pyramid_blocks=.12. .*rising.*0 to 11",
    ),
    ({"pyramid_blocks": (-1,), "pyramid_tokens": (49,)}, "rising"),
    (
      {"num_blocks": 2, "pyramid_blocks": (2,), "pyramid_tokens": (49,)},
      "0 to 1",
    ),
    (
      {"pyramid_blocks": (3,), "pyramid_tokens": (196,)},
      "falling numbers of tokens, below the 196",
    ),
    ({"pyramid_blocks": (3,), "pyramid_tokens": (0,)}, "falling"),
    ({"pyramid_blocks": (3, 4), "pyramid_tokens": (49, 49)}, "falling"),
    (
      {"pyramid_blocks": ("3",), "pyramid_tokens": (49,)},
      "pyramid_blocks=.'3'. .*rising",
    ),
    (
      {"pyramid_blocks": (3,), "pyramid_tokens": (4.5,)},
      "pyramid_tokens=.4.5. .*falling",
    ),
  ],
)
def test_what_does_not_fit_is_refused(keys, message):
  with pytest.raises(UserError, match=message):
    validation.validate(config_with(**keys), 1)


def test_tokens_of_an_oblong_image():
  c = config_with(pyramid_blocks=(0,), pyramid_tokens=(196,))
  c.image_width = 448
  c.data.eval_short_side = 448
  validation.validate(c, 1)
  c.model.pyramid_tokens = (392,)
  with pytest.raises(UserError, match="below the 392"):
    validation.validate(c, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["", ",paper"])
def test_recipes_differ_in_token_mixing_alone(kind, size):
  config = experiments.get_config(kind + size)
  validation.validate(config, 8)
  plain = experiments.get_config("shared" + size)
  changed = config_lib.differences(plain, config)
  assert all(
    re.match(r"model\.(token_|group_|pyramid_)", key) for key in changed
  )
  assert bool(changed) == (kind != "shared")
  assert model.from_config(plain, 5).mixing == TokenMixing()


@pytest.mark.parametrize("words", ["", "tied", "Untied", "untied,big"])
def test_other_experiments_are_refused(words):
  with pytest.raises(UserError, match=f"no experiment '{words}'; there are"):
    experiments.get_config(words)


def test_the_table_in_the_docstring():
  images = 300 * (13_153_500 - 2 * 25_600)
  found = []
  for kind in KINDS:
    config = experiments.get_config(f"{kind},paper")
    net = model.from_config(config, 19_167)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), net.dtype)
    tree = jax.eval_shape(net.init, jax.random.key(0), image)
    millions = sum(x.size for x in jax.tree.leaves(tree)) / 1e6
    total = f"{model.training_flop(net, 224) * images:.1e}".replace("e+", "e")
    found.append((kind, total, f"{millions:.1f}"))
  told = re.findall(
    r"(?m)^    (\w+) +(\S+e\d+) +(\S+) M", experiments.__doc__ or ""
  )
  assert told == found
