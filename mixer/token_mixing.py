"""Ways to mix tokens: the paper's own, and those of its appendix A.1.

The paper's own has one MLP for all channels. Of the others, which its authors
tried and left out, untied MLPs, groups and pyramids can be combined.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer import layers


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
      to so many tokens, fewer than come in.
  """

  untied: bool = False
  groups: int = 1
  projection: bool = False
  pyramid: tuple[tuple[int, int], ...] = ()

  def tokens(self, block: int, num_tokens: int) -> int:
    """S after a block into which `num_tokens` come."""
    return dict(self.pyramid).get(block, num_tokens)


def mix(
  mixing: TokenMixing,
  mlp: layers.MlpBlock,
  y: jax.Array,
  key: jax.Array | None,
  token_axis: int,
) -> jax.Array:
  """Applies the MLP along the tokens. To be called in a compact method.

  The paper doesn't say in what order the channels of a group come out: here in
  the one in which they went in, so number j of view g becomes channel j * G +
  g. Its "linear functions" are taken to have no bias.

  Args:
    mixing: how.
    mlp: with G * S' outputs, and the axis 0 where `direct` says so. Untied,
      its parameters get a leading axis, C / G.
    y: `[B, S, C]`, or `[S, B, C]`, after LayerNorm.
    key: for dropout, which acts only where it is given.
    token_axis: 1, or 0.

  Returns:
    `[B, S', C]`, or `[S', B, C]`, where the MLP maps to S' tokens.
  """
  if direct(mixing, token_axis):
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


def direct(mixing: TokenMixing, token_axis: int) -> bool:
  """Whether the MLP acts on the tokens where they are, as the first axis."""
  return token_axis == 0 and mixing == TokenMixing(pyramid=mixing.pyramid)


def shortcut(
  x: jax.Array,
  num_tokens: int,
  grad_dtype: jnp.dtype | None,
  token_axis: int,
) -> jax.Array:
  """What the output of token mixing is added to. In a compact method.

  Where the number of tokens changes, it is a learned linear map along the
  tokens, shared by all channels and without bias. The paper doesn't say what
  its pyramids had; this knows of no grid, like all else in a Mixer.

  Args:
    x: `[B, S, C]`, or `[S, B, C]`: what came into the block.
    num_tokens: S' after token mixing.
    grad_dtype: of the kernel's gradient.
    token_axis: 1, or 0.

  Returns:
    `[B, S', C]`, or `[S', B, C]`; `x` itself where S' is S.
  """
  if num_tokens == x.shape[token_axis]:
    return x
  x_BCS = jnp.moveaxis(x, token_axis, -1)
  x_BCS = layers.Dense(
    num_tokens, False, x.dtype, grad_dtype, name="token_shortcut"
  )(x_BCS)
  return jnp.moveaxis(x_BCS, -1, token_axis)
