"""One layer of a Mixer (equation 1 of the paper), and how it is laid out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, PartitionSpec

from mixer import mlp, norm, sharding, token_mixing

# Of the activations: `[B, S, C]`, as in the authors' code, or `[S, B, C]`, in
# which both MLPs are plain matmuls and nothing is ever transposed.
LAYOUTS = ("batch_major", "token_major")
# What the backward pass computes again: nothing; all but the residual stream
# and what the MLPs' first matmuls give out, so no matmul; all but a block's
# input.
REMAT = ("none", "pre_activations", "block")
_RESIDUAL = "residual"


class MixerBlock(nn.Module):
  """Token mixing, then channel mixing, each residual.

  Attributes:
    tokens_mlp_dim: T.
    channels_mlp_dim: F.
    num_tokens: S' after the block.
    dropout: rate inside both MLPs.
    dtype: of the computation.
    layout: of `LAYOUTS`.
    mixing: how tokens are mixed.
    grad_dtype: of the kernels' gradients; see `mixer.linear`.
  """

  tokens_mlp_dim: int
  channels_mlp_dim: int
  num_tokens: int
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  layout: str = ""
  mixing: token_mixing.TokenMixing = token_mixing.TokenMixing()
  grad_dtype: jnp.dtype | None = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    key: jax.Array | None = None,
    drop_path: jax.Array | None = None,
  ) -> jax.Array:
    """Computes the block.

    Args:
      x: `[B, S, C]`, or `[S, B, C]`, as `layout` says.
      key: for dropout and stochastic depth, which act only where it is given.
      drop_path: probability that a branch is left out, for each example; None
        for 0.

    Returns:
      The same with S'.
    """
    axis = token_axis(self.layout)
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    x = checkpoint_name(self._mix(x, keys[0], keys[1], drop_path), _RESIDUAL)
    y = norm.LayerNorm(self.grad_dtype, name="LayerNorm_1")(x)
    of_channels = self._mlp(
      self.channels_mlp_dim, "channel_mixing", x.shape[-1], -1
    )
    if axis == 1:
      y = of_channels(y.reshape(-1, y.shape[-1]), keys[2]).reshape(x.shape)
    else:
      # As one axis, of which the batch isn't the first part, they could not be
      # split over devices.
      y = of_channels(y, keys[2])
    return _add(x, y, _keep(x.shape[1 - axis], keys[3], drop_path), 1 - axis)

  def _mix(
    self,
    x: jax.Array,
    key: jax.Array | None,
    path_key: jax.Array | None,
    drop_path: jax.Array | None,
  ) -> jax.Array:
    """The first half of the block."""
    axis = token_axis(self.layout)
    width = self.num_tokens * self.mixing.groups
    direct = token_mixing.direct(self.mixing, axis)
    of_tokens = self._mlp(
      self.tokens_mlp_dim, "token_mixing", width, 0 if direct else -1
    )
    y = norm.LayerNorm(self.grad_dtype, name="LayerNorm_0")(x)
    y = token_mixing.mix(self.mixing, of_tokens, y, key, axis)
    x = token_mixing.shortcut(x, self.num_tokens, self.grad_dtype, axis)
    return _add(x, y, _keep(x.shape[1 - axis], path_key, drop_path), 1 - axis)

  def _mlp(
    self, mlp_dim: int, name: str, out_dim: int, axis: int
  ) -> mlp.MlpBlock:
    return mlp.MlpBlock(
      mlp_dim,
      self.dropout,
      self.dtype,
      out_dim,
      self.grad_dtype,
      axis,
      name=name,
    )


def token_axis(layout: str) -> int:
  """Which axis of the activations the tokens are; the batch is the other."""
  return 0 if layout == "token_major" else 1


def as_written(x_SBC: jax.Array, mesh: Mesh | None) -> jax.Array:
  """The same, in memory too in the order of its axes.

  Else XLA makes nothing of the transposition before it but another order of the
  bytes, which every block inherits, and turns them for every matmul.

  Args:
    x_SBC: `[S, B, C]`.
    mesh: over which B is split; None for one device.
  """

  def constrain(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout((0, 1, 2)))

  if mesh is None:
    return constrain(x_SBC)
  # By device, as XLA would gather all images for the constraint.
  split = PartitionSpec(None, sharding.AXES)
  return jax.shard_map(
    constrain, mesh=mesh, in_specs=split, out_specs=split, check_vma=False
  )(x_SBC)


def layout_for(platform: str) -> str:
  """The one that moves less on it (docs/performance.md)."""
  return "batch_major" if platform == "cpu" else "token_major"


def rematerialised(remat: str) -> Any:
  """`MixerBlock`, whose gradient keeps what a policy of `REMAT` says."""
  if remat == "none":
    return MixerBlock
  names = (_RESIDUAL, mlp.PRE_ACTIVATIONS) if remat == "pre_activations" else ()
  policy = jax.checkpoint_policies.save_only_these_names(*names)
  return nn.remat(MixerBlock, policy=policy)


def _keep(
  images: int, key: jax.Array | None, rate: jax.Array | None
) -> jax.Array | None:
  """Stochastic depth (arXiv 1603.09382), one draw an example and branch.

  What is kept is scaled by 1 / (1 - rate), so that the expected branch is
  the one that inference computes. The authors' code (big_vision) does not
  scale: there inference sees branches that are stronger than in training by
  that factor, 1.11 at most at the paper's rate of 0.1.

  Returns:
    What every branch is multiplied by, float32 `[B]`; None for 1.
  """
  if key is None or rate is None:
    return None
  keep = 1.0 - rate
  kept = jax.random.bernoulli(key, keep, (images,))
  return jnp.where(kept, 1.0 / keep, 0.0)


def _add(
  x: jax.Array, y: jax.Array, keep_B: jax.Array | None, batch_axis: int
) -> jax.Array:
  """X + keep * y."""
  if keep_B is None:
    return x + y
  shape = [1, 1, 1]
  shape[batch_axis] = -1
  keep = keep_B.astype(y.dtype).reshape(shape)
  # A branch that is left out may be anything.
  return x + jnp.where(keep == 0, jnp.zeros((), y.dtype), keep * y)
