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
from jax.sharding import AbstractMesh, Mesh

from mixer import block as block_lib
from mixer import linear, norm, permutation, token_mixing
from mixer.errors import UserError


class MlpMixer(nn.Module):
  """The whole model.

  Stochastic depth grows linearly over the blocks, from 0 at the first to
  `stochastic_depth` at the last. Layout and rematerialisation change
  neither the parameters nor, but for rounding, what is computed.

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
    layout: of the activations, of `block.LAYOUTS`; "" is "batch_major" until
      `placed` knows better.
    remat: what the backward pass computes again, of `block.REMAT`.
    mixing: how tokens are mixed.
    permute: a fixed permutation of the images, of `permutation.KINDS`.
    permute_seed: its seed.
    grad_dtype: of the kernels' gradients in training, which then have fewer
      arrays to keep; None for derivatives that are JAX's own, of any order and
      direction. See `mixer.linear`.
    mesh: over which the batch is split; None for one device.
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
  layout: str = ""
  remat: str = "none"
  mixing: token_mixing.TokenMixing = token_mixing.TokenMixing()
  permute: str = ""
  permute_seed: int = 0
  grad_dtype: jnp.dtype | None = None
  mesh: Mesh | None = None

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    *,
    key: jax.Array | None = None,
    pre_logits: bool = False,
  ) -> jax.Array:
    """Computes logits.

    Args:
      images: float `[B, H, W, 3]` in [-1, 1].
      key: for dropout and stochastic depth, which act only where it is given.
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
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    token_axis = block_lib.token_axis(self.layout)
    if token_axis == 0:
      x = jnp.swapaxes(x, 0, 1)
      if not self.is_initializing():
        x = block_lib.as_written(x, self.mesh)
    x = self._blocks(x, key)
    x = norm.LayerNorm(self.grad_dtype, name="pre_head_layer_norm")(x)
    x_BC = jnp.mean(x, axis=token_axis, dtype=jnp.float32)
    if pre_logits or not self.num_classes:
      return x_BC
    return linear.Dense(
      self.num_classes,
      grad_dtype=self.grad_dtype,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.head_bias),
      name="head",
    )(x_BC)

  def _blocks(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
    kind = block_lib.rematerialised(self.remat)
    token_axis = block_lib.token_axis(self.layout)
    for i in range(self.num_blocks):
      block = kind(
        self.tokens_mlp_dim,
        self.channels_mlp_dim,
        self.mixing.tokens(i, x.shape[token_axis]),
        self.dropout,
        self.dtype,
        self.layout,
        self.mixing,
        self.grad_dtype,
        name=f"MixerBlock_{i}",
      )
      rate = self.stochastic_depth * i / max(self.num_blocks - 1, 1)
      inner = None if key is None else jax.random.fold_in(key, i)
      x = block(x, inner, jnp.float32(rate) if rate else None)
    return x


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
  match = re.fullmatch(r"([SBLH])/([1-9][0-9]{0,3})", name)
  if not match:
    raise UserError(
      f"model.variant={name[:60]!r} is not known; it is a size (S, B, L, H) "
      "and a patch size, as in --config.model.variant=B/16. Published: "
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


def placed(module: MlpMixer, mesh: Mesh | AbstractMesh) -> MlpMixer:
  """The module for the devices of a mesh: in the layout that suits them.

  A layout that was asked for stays; so does the module where there are no
  devices.
  """
  if isinstance(mesh, AbstractMesh):
    return module
  layout = module.layout or block_lib.layout_for(mesh.devices.flat[0].platform)
  return module.clone(layout=layout, mesh=mesh if mesh.size > 1 else None)


def plain(module: MlpMixer) -> MlpMixer:
  """The same function, without what only training wants of its computation."""
  return module.clone(layout="", remat="none", grad_dtype=None, mesh=None)


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
  out: Any = module.apply(
    {"params": params}, images, key=key, pre_logits=pre_logits
  )
  return out
