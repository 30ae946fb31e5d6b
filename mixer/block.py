"""A block of a Mixer, and the token mixings of the paper and its appendix.

The paper's own token mixing is one MLP for all channels. Of the alternatives in
its appendix A.1, untied MLPs, groups, projection and pyramids can be combined.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

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
      to that number of tokens, fewer than come in.
  """

  untied: bool = False
  groups: int = 1
  projection: bool = False
  pyramid: tuple[tuple[int, int], ...] = ()

  def tokens(self, block: int, num_tokens: int) -> int:
    """S after a block into which `num_tokens` come."""
    return dict(self.pyramid).get(block, num_tokens)


class MixerBlock(nn.Module):
  """Token mixing, then channel mixing, each residual (equation 1).

  `num_tokens` is S' after it; `token_axis` is 1 for `[B, S, C]`, 0 for
  `[S, B, C]`. Other attributes are those of `MlpMixer`.
  """

  tokens_mlp_dim: int
  channels_mlp_dim: int
  num_tokens: int
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  grad_dtype: jnp.dtype | None = None
  token_axis: int = 1
  mixing: TokenMixing = TokenMixing()
  gelu: str = "tanh"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    key: jax.Array | None = None,
    drop_path: jax.Array | None = None,
  ) -> jax.Array:
    """`[B, S, C]` -> `[B, S', C]`; `drop_path`: how likely branches drop."""
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    how: Any = (self.dropout, self.dtype, self.grad_dtype)
    norm = functools.partial(layers.LayerNorm, self.grad_dtype)
    batch = x.shape[1 - self.token_axis]
    shares = [_shares(k, drop_path, batch, self.dtype) for k in keys[1::2]]
    y = _mix(self, norm(name="LayerNorm_0")(x), keys[0], shares[0])
    if self.num_tokens != x.shape[self.token_axis]:
      # What a pyramid's mixing is added to: a linear map that all channels
      # share. The paper doesn't say what its pyramids had; this one, like the
      # rest of a Mixer, knows no grid.
      x = jnp.moveaxis(x, self.token_axis, -1)
      linear = (self.num_tokens, False, *how[1:])
      x = layers.Dense(*linear, name="token_shortcut")(x)
      x = jnp.moveaxis(x, -1, self.token_axis)
    x = checkpoint_name(x + y, layers.RESIDUAL)

    y = norm(name="LayerNorm_1")(x)
    if self.token_axis:
      # Two axes: CPUs lack a fast kernel for more. Not in the other layout,
      # where joined axes could not be split over devices by the batch.
      y = y.reshape(-1, y.shape[-1])
    mlp = layers.MlpBlock(
      *(self.channels_mlp_dim, x.shape[-1], *how),
      gelu=self.gelu,
      name="channel_mixing",
    )
    return x + mlp(y, keys[2], _along(shares[1], y)).reshape(x.shape)


def _mix(
  block: MixerBlock, y: jax.Array, key: jax.Array | None, share_B: Any
) -> jax.Array:
  """Applies the token MLP; to be called in the block's compact method.

  The paper doesn't say in what order the channels of a group come out: here in
  the one in which they went in, so number j of view g becomes channel j * G +
  g. Its "linear functions" are taken to have no bias.
  """
  mixing, how = block.mixing, (block.dtype, block.grad_dtype)
  g, plain = mixing.groups, TokenMixing(pyramid=mixing.pyramid)
  axis = 0 if mixing == plain and block.token_axis == 0 else -1
  widths = (block.tokens_mlp_dim, block.num_tokens * g)
  sizes: Any = (*widths, block.dropout, *how, axis, block.gelu)
  mlp = layers.MlpBlock(*sizes, name="token_mixing")
  if axis == 0:
    return mlp(y, key, _along(share_B, y))
  if mixing.projection:
    # The G functions side by side, a view's outputs G columns apart.
    y = layers.Dense(y.shape[-1], False, *how, name="group_projection")(y)
  y_BCS = jnp.moveaxis(y, block.token_axis, -1)
  b, c, s = y_BCS.shape
  if mixing.untied:
    y_BCS = y_BCS.reshape(b, c // g, g * s)
    keys = None if key is None else jax.random.split(key, c // g)
    y_BCS = nn.vmap(
      lambda mlp, y, key: mlp(y, key, _along(share_B, y)),
      in_axes=(1, None if keys is None else 0),  # pyright: ignore
      out_axes=1,
      variable_axes={"params": 0},
      split_rngs={"params": True},
    )(mlp, y_BCS, keys)
  else:
    rows = y_BCS.reshape(-1, g * s)
    y_BCS = mlp(rows, key, _along(share_B, rows))
  return jnp.moveaxis(y_BCS.reshape(b, c, -1), -1, block.token_axis)


def _shares(key: Any, drop_path: Any, batch: int, dtype: Any) -> Any:
  """Stochastic depth (arXiv 1603.09382): each image's share of a branch, `[B]`.

  0, or 1 / (1 - rate), so that the expected branch is the one that inference
  computes; None without it. The authors' code (big_vision) does not scale:
  there inference sees branches that are stronger than in training by that
  factor, 1.11 at most at the paper's rate of 0.1.
  """
  if key is None or drop_path is None:
    return None
  keep = 1.0 - drop_path
  kept_B = jax.random.bernoulli(key, keep, (batch,))
  return jnp.where(kept_B, 1.0 / keep, 0.0).astype(dtype)


def _along(share_B: Any, y: jax.Array) -> Any:
  """So that it broadcasts with `[., B, .]`, or n rows an image, `[B n, .]`."""
  if share_B is None:
    return None
  if y.ndim == 3:
    return share_B[:, None]
  return jnp.repeat(share_B, len(y) // len(share_B))[:, None]
