"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601, section 2, table 1).

Module and parameter names, shapes, initialisation and function are those of
the released checkpoints. Shape letters: B batch, H W image, S tokens, C
channels, T token-MLP width (the paper's D_S), F channel-MLP width (D_C), K
classes.
"""

import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from mixer import layers, token_mixing
from mixer.errors import UserError

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
    grad_dtype: of the kernels' gradients; see `mixer.layers`.
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
    y = layers.LayerNorm(self.grad_dtype, name="LayerNorm_1")(x)
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
    y = layers.LayerNorm(self.grad_dtype, name="LayerNorm_0")(x)
    y = token_mixing.mix(self.mixing, of_tokens, y, key, axis)
    x = token_mixing.shortcut(x, self.num_tokens, self.grad_dtype, axis)
    return _add(x, y, _keep(x.shape[1 - axis], path_key, drop_path), 1 - axis)

  def _mlp(
    self, mlp_dim: int, name: str, out_dim: int, axis: int
  ) -> layers.MlpBlock:
    return layers.MlpBlock(
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
  split = PartitionSpec(None, mesh.axis_names)
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
  names = (
    (_RESIDUAL, layers.PRE_ACTIVATIONS) if remat == "pre_activations" else ()
  )
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
    layout: of the activations, of `LAYOUTS`; "" is "batch_major" until
      `placed` knows better.
    remat: what the backward pass computes again, of `REMAT`.
    mixing: how tokens are mixed.
    permute: a fixed permutation of the images, of `PERMUTATIONS`.
    permute_seed: its seed.
    grad_dtype: of the kernels' gradients in training, which then have fewer
      arrays to keep; None for derivatives that are JAX's own, of any order and
      direction. See `mixer.layers`.
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
    images = permute(images, self.permute, self.patch_size, self.permute_seed)
    x = layers.PatchConv(
      self.hidden_dim,
      self.patch_size,
      self.dtype,
      self.grad_dtype,
      name="stem",
    )(images)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    axis = token_axis(self.layout)
    if axis == 0:
      x = jnp.swapaxes(x, 0, 1)
      if not self.is_initializing():
        x = as_written(x, self.mesh)
    x = self._blocks(x, key)
    x = layers.LayerNorm(self.grad_dtype, name="pre_head_layer_norm")(x)
    x_BC = jnp.mean(x, axis=axis, dtype=jnp.float32)
    if pre_logits or not self.num_classes:
      return x_BC
    return layers.Dense(
      self.num_classes,
      grad_dtype=self.grad_dtype,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.head_bias),
      name="head",
    )(x_BC)

  def _blocks(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
    kind = rematerialised(self.remat)
    axis = token_axis(self.layout)
    for i in range(self.num_blocks):
      block = kind(
        self.tokens_mlp_dim,
        self.channels_mlp_dim,
        self.mixing.tokens(i, x.shape[axis]),
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
  layout = module.layout or layout_for(mesh.devices.flat[0].platform)
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


def from_config(config: Any, num_classes: int) -> MlpMixer:
  """The module that a config describes."""
  m = config.model
  shape = {
    k: m[k]
    for k in (
      "num_blocks",
      "hidden_dim",
      "tokens_mlp_dim",
      "channels_mlp_dim",
    )
    if m[k]
  }
  return build(
    m.variant,
    num_classes,
    dropout=m.dropout,
    stochastic_depth=m.stochastic_depth,
    head_bias=m.head_bias,
    dtype=jnp.dtype(m.dtype),
    grad_dtype=jnp.dtype(config.sharding.reduce_dtype),
    layout=m.layout,
    remat=m.remat,
    mixing=token_mixing.TokenMixing(
      untied=m.token_mixing == "untied",
      groups=m.token_groups,
      projection=m.group_projection,
      pyramid=tuple(zip(m.pyramid_blocks, m.pyramid_tokens, strict=True)),
    ),
    permute=config.data.permute,
    permute_seed=config.data.permute_seed,
    **shape,
  )


def scale(images: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """uint8 `[B, H, W, 3]` in [0, 255] -> `dtype` in [-1, 1]."""
  return (images.astype(jnp.float32) / 127.5 - 1.0).astype(dtype)


PERMUTATIONS = ("", "patches", "pixels")


def random_order(count: int, seed: int, purpose: int = 0) -> np.ndarray:
  """A random order of `count` things, int32 `[count]`.

  Args:
    count: how many.
    seed: with `purpose` decides; the same on all machines and versions.
    purpose: tells apart orders of one seed.
  """
  # Ranks of raw numbers: NumPy promises these for ever, unlike its own
  # permutations (NEP 19).
  key = np.array([seed, purpose], np.uint64)
  raw = np.random.Philox(key=key).random_raw(count)
  return np.argsort(raw, kind="stable").astype(np.int32)


def permute(
  images: jax.Array, kind: str, patch_size: int, seed: int
) -> jax.Array:
  """Permutes pixels of images, all alike.

  Args:
    images: `[B, H, W, 3]` of any dtype.
    kind: of `PERMUTATIONS`; "" leaves the images as they are.
    patch_size: P, in pixels, which divides H and W; for "patches".
    seed: the one thing, beside the sizes, that the permutation depends on.

  Returns:
    As `images`: new patch i is an old one, and so is its pixel p an old pixel.
  """
  if not kind:
    return images
  b, h, w, c = images.shape
  if kind == "pixels":
    flat = images.reshape(b, h * w, c)
    return jnp.take(flat, random_order(h * w, seed), axis=1).reshape(
      images.shape
    )
  p = patch_size
  x = images.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3)
  x = x.reshape(b, (h // p) * (w // p), p * p, c)
  x = jnp.take(x, random_order(x.shape[1], seed), axis=1)
  x = jnp.take(x, random_order(p * p, seed, purpose=1), axis=2)
  x = x.reshape(b, h // p, w // p, p, p, c).swapaxes(2, 3)
  return x.reshape(images.shape)


def forward_macs(
  model: MlpMixer, image_size: int | tuple[int, int]
) -> tuple[int, int]:
  """Multiply-accumulates of one image: (all, those of the stem).

  Sharing MLPs, or not, and grouping channels change nothing in them: the G
  times as long inputs are 1 / G as many.
  """
  sides = (image_size,) * 2 if isinstance(image_size, int) else image_size
  s = math.prod(side // model.patch_size for side in sides)
  c, t, f = model.hidden_dim, model.tokens_mlp_dim, model.channels_mlp_dim
  total = stem = s * 3 * model.patch_size**2 * c
  for block in range(model.num_blocks):
    after = model.mixing.tokens(block, s)
    if model.mixing.projection:
      total += s * c * c
    if after != s:
      total += s * after * c  # The shortcut.
    total += (s + after) * c * t + 2 * after * c * f
    s = after
  return total + c * model.num_classes, stem


def training_flop(model: MlpMixer, image_size: int | tuple[int, int]) -> int:
  """FLOP to train on one image: forward, and twice that backward.

  The stem needs no gradient for its input. Recomputation is not counted, nor
  is anything elementwise.
  """
  macs, stem = forward_macs(model, image_size)
  return 6 * macs - 2 * stem
