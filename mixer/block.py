"""A block of a Mixer, and the token mixings of the paper and its appendix.

The paper's own token mixing is one MLP for all channels. Of the alternatives
in its appendix A.1, untied MLPs, groups and pyramids can be combined.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mixer import layers

# Of the activations: `[B, S, C]`, as in the authors' code, or `[S, B, C]`, in
# which both MLPs are plain matmuls and nothing is ever transposed.
LAYOUTS = ("batch_major", "token_major")
# What the backward pass computes again: nothing; all but the residual stream
# and what the MLPs' first matmuls give out, so no matmul; all but a block's
# input.
REMAT = ("none", "pre_activations", "block")
_RESIDUAL = "residual"


@dataclasses.dataclass(frozen=True)
class TokenMixing:
  """How tokens are mixed; the defaults are section 2 of the paper.

  Attributes:
    untied: C MLPs, one for each channel (or C / G, one for each group),
      instead of one that they share.
    groups: G, neighbouring channels that the MLP sees at once: its input has
      G * S numbers in place of S, and there are C / G such inputs.
    projection: before grouping, map every token by G linear functions of its
      C channels to G views of C / G numbers; a group is then number j of all
      views.
    pyramid: pairs (block, tokens): in that block, counted from 0, the MLP maps
      to that number of tokens, fewer than come in.
  """

  untied: bool = False
  groups: int = 1
  projection: bool = False
  pyramid: tuple[tuple[int, int], ...] = ()

  def tokens(self, block: int, num_tokens: int) -> int:
    """S after a block into which `num_tokens` come."""
    return dict(self.pyramid).get(block, num_tokens)

  def mlp_axis(self, token_axis: int) -> int:
    """Axis of the token MLP: 0 if it acts on `[S, B, C]` as it is, else -1."""
    plain = self == TokenMixing(pyramid=self.pyramid)
    return 0 if plain and token_axis == 0 else -1


class MixerBlock(nn.Module):
  """Token mixing, then channel mixing, each residual (equation 1).

  Its attributes are those of `MlpMixer`; `num_tokens` is S' after it.
  """

  tokens_mlp_dim: int
  channels_mlp_dim: int
  num_tokens: int
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  layout: str = ""
  mixing: TokenMixing = TokenMixing()
  grad_dtype: jnp.dtype | None = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    key: jax.Array | None = None,
    drop_path: jax.Array | None = None,
  ) -> jax.Array:
    """`[B, S, C]` -> `[B, S', C]`, or `[S, B, C]`, as `layout` says.

    Dropout and stochastic depth act only with a key; `drop_path` is the
    probability that a branch is left out, for each example.
    """
    axis = token_axis(self.layout)
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    norm = functools.partial(layers.LayerNorm, self.grad_dtype)
    mlp = functools.partial(
      layers.MlpBlock,
      dropout=self.dropout,
      dtype=self.dtype,
      grad_dtype=self.grad_dtype,
    )
    of_tokens = mlp(
      self.tokens_mlp_dim,
      out_dim=self.num_tokens * self.mixing.groups,
      axis=self.mixing.mlp_axis(axis),
      name="token_mixing",
    )
    y = norm(name="LayerNorm_0")(x)
    y = _mix(self.mixing, of_tokens, y, keys[0], axis)
    x = _shortcut(x, self.num_tokens, self.grad_dtype, axis)
    x = _residual(x, y, keys[1], drop_path, 1 - axis)
    x = checkpoint_name(x, _RESIDUAL)

    of_channels = mlp(self.channels_mlp_dim, name="channel_mixing")
    y = norm(name="LayerNorm_1")(x)
    if axis == 1:
      y = of_channels(y.reshape(-1, y.shape[-1]), keys[2]).reshape(x.shape)
    else:
      # As one axis, of which the batch isn't the first part, they could not be
      # split over devices.
      y = of_channels(y, keys[2])
    return _residual(x, y, keys[3], drop_path, 1 - axis)


def _residual(
  x: jax.Array,
  y: jax.Array,
  key: jax.Array | None,
  drop_path: jax.Array | None,
  batch_axis: int,
) -> jax.Array:
  """x + y, or with stochastic depth (arXiv 1603.09382) x alone for some images.

  What is kept is scaled by 1 / (1 - rate), so that the expected branch is
  the one that inference computes. The authors' code (big_vision) does not
  scale: there inference sees branches that are stronger than in training by
  that factor, 1.11 at most at the paper's rate of 0.1.
  """
  if key is None or drop_path is None:
    return x + y
  keep = 1.0 - drop_path
  kept_B = jax.random.bernoulli(key, keep, (x.shape[batch_axis],))
  factor_B = jnp.where(kept_B, 1.0 / keep, 0.0).astype(y.dtype)
  other_axes = tuple(i for i in range(x.ndim) if i != batch_axis)
  factor = jnp.expand_dims(factor_B, other_axes)
  # A branch that is left out may be anything, NaN as well.
  return x + jnp.where(factor == 0, jnp.zeros((), y.dtype), factor * y)


def _mix(
  mixing: TokenMixing,
  mlp: layers.MlpBlock,
  y: jax.Array,
  key: jax.Array | None,
  token_axis: int,
) -> jax.Array:
  """Applies the MLP along the tokens; to be called in a compact method.

  The paper doesn't say in what order the channels of a group come out: here in
  the one in which they went in, so number j of view g becomes channel j * G +
  g. Its "linear functions" are taken to have no bias. `mlp` has G * S' outputs;
  untied, its parameters get a leading axis, C / G.
  """
  if mlp.axis == 0:
    return mlp(y, key)
  if mixing.projection:
    # The G functions side by side, a view's outputs G columns apart.
    y = layers.Dense(
      y.shape[-1], False, mlp.dtype, mlp.grad_dtype, name="group_projection"
    )(y)
  y_BCS = jnp.moveaxis(y, token_axis, -1)
  b, c, s = y_BCS.shape
  if mixing.groups > 1:
    y_BCS = y_BCS.reshape(b, c // mixing.groups, mixing.groups * s)
  if mixing.untied:
    keys = None if key is None else jax.random.split(key, y_BCS.shape[1])
    axes: Any = (1, None if keys is None else 0)
    y_BCS = nn.vmap(
      lambda m, x, key: m(x, key),
      in_axes=axes,
      out_axes=1,
      variable_axes={"params": 0},
      split_rngs={"params": True},
    )(mlp, y_BCS, keys)
  else:
    # One plain matmul on two axes: CPUs lack a fast kernel for more.
    y_BCS = mlp(y_BCS.reshape(-1, y_BCS.shape[-1]), key)
  return jnp.moveaxis(y_BCS.reshape(b, c, -1), -1, token_axis)


def _shortcut(
  x: jax.Array,
  num_tokens: int,
  grad_dtype: jnp.dtype | None,
  token_axis: int,
) -> jax.Array:
  """What token mixing is added to: x, or a linear map of it to S' tokens.

  The map is learned, shared by all channels, without bias. The paper doesn't
  say what its pyramids had; this one, like the rest of a Mixer, knows no grid.
  To be called in a compact method.
  """
  if num_tokens == x.shape[token_axis]:
    return x
  x_BCS = jnp.moveaxis(x, token_axis, -1)
  x_BCS = layers.Dense(
    num_tokens, False, x.dtype, grad_dtype, name="token_shortcut"
  )(x_BCS)
  return jnp.moveaxis(x_BCS, -1, token_axis)


def token_axis(layout: str) -> int:
  """Which axis of the activations the tokens are; the batch is the other."""
  return 0 if layout == "token_major" else 1


def rematerialised(remat: str) -> Any:
  """`MixerBlock`, whose gradient keeps what a policy of `REMAT` says."""
  if remat == "none":
    return MixerBlock
  kept = () if remat == "block" else (_RESIDUAL, layers.PRE_ACTIVATIONS)
  policy = jax.checkpoint_policies.save_only_these_names(*kept)
  return nn.remat(MixerBlock, policy=policy)
