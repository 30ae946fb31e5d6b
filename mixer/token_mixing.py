"""Ways to mix tokens: the paper's own, and those of its appendix A.1.

The paper's own has one MLP for all channels. Of the others, which its authors
tried and left out, untied MLPs, groups and pyramids can be combined.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer import linear
from mixer import mlp as mlp_lib


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
  mixing: TokenMixing, mlp: mlp_lib.MlpBlock, y_BSC: jax.Array, train: bool
) -> jax.Array:
  """Applies the MLP along the tokens. To be called in a compact method.

  The paper doesn't say in what order the channels of a group come out: here in
  the one in which they went in, so number j of view g becomes channel j * G +
  g. Its "linear functions" are taken to have no bias.

  Args:
    mixing: how.
    mlp: with G * S' outputs. Untied, its parameters get a leading axis, C / G.
    y_BSC: `[B, S, C]`, after LayerNorm.
    train: whether dropout acts.

  Returns:
    `[B, S', C]` where the MLP maps to S' tokens.
  """
  b, s, c = y_BSC.shape
  if mixing.projection:
    # The G functions side by side, a view's outputs G columns apart.
    y_BSC = linear.Dense(
      c, False, mlp.dtype, mlp.grad_dtype, name="group_projection"
    )(y_BSC)
  y = jnp.swapaxes(y_BSC, 1, 2)
  if mixing.groups > 1:
    y = y.reshape(b, c // mixing.groups, mixing.groups * s)
  if mixing.untied:
    y = nn.vmap(
      lambda m, x: m(x, train=train),
      in_axes=1,
      out_axes=1,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
    )(mlp, y)
  else:
    y = mlp(y, train=train)
  if mixing.groups > 1:
    y = y.reshape(b, c, -1)
  return jnp.swapaxes(y, 1, 2)


def shortcut(
  x_BSC: jax.Array, num_tokens: int, grad_dtype: jnp.dtype = jnp.float32
) -> jax.Array:
  """What the output of token mixing is added to. In a compact method.

  Where the number of tokens changes, it is a learned linear map along the
  tokens, shared by all channels and without bias. The paper doesn't say what
  its pyramids had; this knows of no grid, like all else in a Mixer.

  Args:
    x_BSC: `[B, S, C]`, what came into the block.
    num_tokens: S' after token mixing.
    grad_dtype: of the kernel's gradient.

  Returns:
    `[B, S', C]`, `x_BSC` itself where S' is S.
  """
  if num_tokens == x_BSC.shape[1]:
    return x_BSC
  x_BCS = jnp.swapaxes(x_BSC, 1, 2)
  x_BCS = linear.Dense(
    num_tokens, False, x_BSC.dtype, grad_dtype, name="token_shortcut"
  )(x_BCS)
  return jnp.swapaxes(x_BCS, 1, 2)
