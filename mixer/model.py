"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601, section 2, table 1).

Module and parameter names, shapes, initialisation and function are those of
the released checkpoints. Shape letters: B batch, H W image, S tokens, C
channels, T token-MLP width (the paper's D_S), F channel-MLP width (D_C), K
classes.
"""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer import linear, permutation, token_mixing
from mixer import mlp as mlp_lib
from mixer.errors import UserError


class MixerBlock(nn.Module):
  """Token mixing, then channel mixing, each residual (equation 1).

  Attributes:
    tokens_mlp_dim: T.
    channels_mlp_dim: F.
    dropout: rate inside both MLPs.
    drop_path: probability that a branch is left out, for each example.
    dtype: of the computation.
    num_tokens: S after the block; 0: as before.
    mixing: how tokens are mixed.
    grad_dtype: of the kernels' gradients; see `mixer.linear`.
  """

  tokens_mlp_dim: int
  channels_mlp_dim: int
  dropout: float = 0.0
  drop_path: float = 0.0
  dtype: jnp.dtype = jnp.float32
  num_tokens: int = 0
  mixing: token_mixing.TokenMixing = token_mixing.TokenMixing()
  grad_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BSC: jax.Array, train: bool = False) -> jax.Array:
    """`[B, S, C]` -> `[B, num_tokens or S, C]`."""
    num_tokens = self.num_tokens or x_BSC.shape[1]
    token_mlp = mlp_lib.MlpBlock(
      self.tokens_mlp_dim,
      self.dropout,
      self.dtype,
      num_tokens * self.mixing.groups,
      self.grad_dtype,
      name="token_mixing",
    )
    y_BSC = token_mixing.mix(self.mixing, token_mlp, _layer_norm(x_BSC), train)
    x_BSC = token_mixing.shortcut(x_BSC, num_tokens, self.grad_dtype)
    x_BSC = x_BSC + self._drop_path(y_BSC, train)
    y_BSC = _layer_norm(x_BSC)
    y_BSC = mlp_lib.MlpBlock(
      self.channels_mlp_dim,
      self.dropout,
      self.dtype,
      grad_dtype=self.grad_dtype,
      name="channel_mixing",
    )(y_BSC, train=train)
    return x_BSC + self._drop_path(y_BSC, train)

  def _drop_path(self, y_BSC: jax.Array, train: bool) -> jax.Array:
    """Stochastic depth (arXiv 1603.09382), one draw an example and branch.

    What is kept is scaled by 1 / (1 - rate), so that the expected branch is
    the one that inference computes. The authors' code (big_vision) does not
    scale: there inference sees branches that are stronger than in training by
    that factor, 1.11 at most at the paper's rate of 0.1.
    """
    if not train or self.drop_path == 0.0:
      return y_BSC
    keep = 1.0 - self.drop_path
    kept = jax.random.bernoulli(
      self.make_rng("dropout"), keep, (y_BSC.shape[0], 1, 1)
    )
    return jnp.where(kept, y_BSC / jnp.asarray(keep, y_BSC.dtype), 0)


def _layer_norm(x: jax.Array, name: str | None = None) -> jax.Array:
  """LayerNorm over the last axis: float32 inside, the dtype of `x` outside."""
  norm = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)
  return norm(x.astype(jnp.float32)).astype(x.dtype)


class MlpMixer(nn.Module):
  """The whole model.

  Stochastic depth grows linearly over the blocks, from 0 at the first to
  `stochastic_depth` at the last.

  Attributes:
    patch_size: P, in pixels.
    num_blocks: depth.
    hidden_dim: C.
    tokens_mlp_dim: T.
    channels_mlp_dim: F.
    num_classes: K; 0 for a model without head, which returns pre-logits.
    dropout: rate inside the MLPs.
    stochastic_depth: rate of the last block.
    head_bias: initial bias of the head, whose kernel starts at zero.
    dtype: of activations and matmul operands; parameters, LayerNorm
      statistics, pre-logits and head are float32.
    remat: recompute each block in the backward pass instead of keeping its
      activations.
    mixing: how tokens are mixed.
    permute: a fixed permutation of the images, of `permutation.KINDS`.
    permute_seed: its seed.
    grad_dtype: of the kernels' gradients; see `mixer.linear`.
  """

  patch_size: int
  num_blocks: int
  hidden_dim: int
  tokens_mlp_dim: int
  channels_mlp_dim: int
  num_classes: int = 0
  dropout: float = 0.0
  stochastic_depth: float = 0.0
  head_bias: float = 0.0
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  mixing: token_mixing.TokenMixing = token_mixing.TokenMixing()
  permute: str = ""
  permute_seed: int = 0
  grad_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool = False, pre_logits: bool = False
  ) -> jax.Array:
    """Computes logits.

    Args:
      images: float `[B, H, W, 3]` in [-1, 1].
      train: whether dropout and stochastic depth act; they draw from the
        "dropout" stream.
      pre_logits: return what enters the head instead.

    Returns:
      Logits, float32 `[B, K]`, or pre-logits, float32 `[B, C]`.
    """
    # Here, so that training and whatever is done with a model do it alike. It
    # commutes with scaling and mixup.
    images = permutation.permute(
      images, self.permute, self.patch_size, self.permute_seed
    )
    x = linear.PatchConv(
      self.hidden_dim,
      self.patch_size,
      self.dtype,
      self.grad_dtype,
      name="stem",
    )(images)
    x_BSC = x.reshape(x.shape[0], -1, x.shape[-1])
    # `train` is argument 2 of the block's method, counting `self`.
    block = (
      nn.remat(MixerBlock, static_argnums=(2,)) if self.remat else (MixerBlock)
    )
    for i in range(self.num_blocks):
      x_BSC = block(
        self.tokens_mlp_dim,
        self.channels_mlp_dim,
        self.dropout,
        self.stochastic_depth * i / max(self.num_blocks - 1, 1),
        self.dtype,
        self.mixing.tokens(i, x_BSC.shape[1]),
        self.mixing,
        self.grad_dtype,
        name=f"MixerBlock_{i}",
      )(x_BSC, train)
    x_BSC = _layer_norm(x_BSC, "pre_head_layer_norm")
    x_BC = jnp.mean(x_BSC, axis=1, dtype=jnp.float32)
    if pre_logits or not self.num_classes:
      return x_BC
    return linear.Dense(
      self.num_classes,
      grad_dtype=self.grad_dtype,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.head_bias),
      name="head",
    )(x_BC)


@dataclasses.dataclass(frozen=True)
class Variant:
  """The shape of a model (table 1), without its head."""

  patch_size: int
  num_blocks: int
  hidden_dim: int
  tokens_mlp_dim: int
  channels_mlp_dim: int


# Blocks, C, T, F of each size, whatever the patch size.
_SIZES = {
  "S": (8, 512, 256, 2048),
  "B": (12, 768, 384, 3072),
  "L": (24, 1024, 512, 4096),
  "H": (32, 1280, 640, 5120),
}
# Those of the paper, and S/8, which was released later.
VARIANTS = ("S/32", "S/16", "S/8", "B/32", "B/16", "L/32", "L/16", "H/14")


def parse_variant(name: str) -> Variant:
  """The shape that a name such as "B/16" stands for.

  Any patch size goes with any size; `VARIANTS` lists those that have been
  published.

  Raises:
    UserError: another form of name.
  """
  match = re.fullmatch(r"([SBLH])/([1-9][0-9]*)", name)
  if not match:
    raise UserError(
      f"model.variant={name!r} is not known; it is a size (S, B, L, H) and a "
      f"patch size, as in --config.model.variant=B/16. Published: "
      + ", ".join(VARIANTS)
      + "."
    )
  return Variant(int(match.group(2)), *_SIZES[match.group(1)])


def build(name: str, num_classes: int = 0, **overrides: Any) -> MlpMixer:
  """Makes the module of a variant.

  Args:
    name: such as "B/16".
    num_classes: K; 0 for pre-logits.
    **overrides: any other attribute of `MlpMixer`.

  Raises:
    UserError: an unknown name.
  """
  attributes: dict[str, Any] = dataclasses.asdict(parse_variant(name))
  attributes |= {"num_classes": num_classes} | overrides
  return MlpMixer(**attributes)


def apply(
  module: MlpMixer,
  params: Any,
  images: jax.Array,
  *,
  key: jax.Array | None = None,
  pre_logits: bool = False,
) -> jax.Array:
  """`module.apply`, for training where a key is given.

  Args:
    module: of `build`.
    params: nested dict of parameters.
    images: float `[B, H, W, 3]` in [-1, 1].
    key: for dropout and stochastic depth, which act only then.
    pre_logits: return what enters the head instead of logits.

  Returns:
    Logits, float32 `[B, K]`, or pre-logits, float32 `[B, C]`.
  """
  rngs = None if key is None else {"dropout": key}
  out: Any = module.apply(
    {"params": params},
    images,
    train=key is not None,
    pre_logits=pre_logits,
    rngs=rngs,
  )
  return out
