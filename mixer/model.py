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
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from mixer import block, layers
from mixer import config as config_lib
from mixer.errors import UserError


class MlpMixer(nn.Module):
  """The whole model.

  Layout and rematerialisation change neither the parameters nor, but for
  rounding, the function.

  Attributes:
    stochastic_depth: rate of the last block; linear over depth, the first's 0.
    head_bias: initial bias of the head, whose kernel starts at zero.
    dtype: of activations and matmul operands; parameters, LayerNorm
      statistics, pre-logits and head are float32.
    layout: "batch_major", activations `[B, S, C]`, as in the authors' code;
      "token_major", `[S, B, C]`, in which both MLPs are plain matmuls and
      nothing is transposed; "" is "batch_major" until `placed` chooses.
    remat: what the backward pass computes again: "none"; "pre_activations",
      all but the residual stream and the outputs of the MLPs' first matmuls,
      so no matmul; "block", all but a block's input.
    gelu: "tanh", the approximation of the released models, or "exact".
    permute: a fixed permutation of the images, see `permute`.
    grad_dtype: of the kernels' gradients, see `layers.affine`.
    mesh: over which the batch is split; None for one device.
  """

  patch_size: int  # P, in pixels.
  num_blocks: int
  hidden_dim: int  # C
  tokens_mlp_dim: int  # T
  channels_mlp_dim: int  # F
  num_classes: int = 0  # K; 0: no head, pre-logits are returned.
  dropout: float = 0.0
  stochastic_depth: float = 0.0
  head_bias: float = 0.0
  dtype: jnp.dtype = jnp.float32
  layout: str = ""
  remat: str = "none"
  mixing: block.TokenMixing = block.TokenMixing()
  gelu: str = "tanh"
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
    """Logits, float32 `[B, K]`, or the head's input, float32 `[B, C]`.

    Images are float `[B, H, W, 3]` in [-1, 1]; dropout and stochastic depth act
    only with a key.
    """
    # Here, so that training and whatever is done with a model do it alike. It
    # commutes with scaling and mixup.
    images = permute(images, self.permute, self.patch_size, self.permute_seed)
    types = (self.dtype, self.grad_dtype)
    x = layers.PatchConv(self.hidden_dim, self.patch_size, *types, name="stem")(
      images
    )
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    token_axis = int(self.layout != "token_major")
    if token_axis == 0:
      x = jnp.swapaxes(x, 0, 1)
      if not self.is_initializing():
        x = _as_written(x, self.mesh)
    for i in range(self.num_blocks):
      rate = self.stochastic_depth * i / max(self.num_blocks - 1, 1)
      x = _block_class(self.remat)(
        self.tokens_mlp_dim,
        self.channels_mlp_dim,
        self.mixing.tokens(i, x.shape[token_axis]),
        self.dropout,
        *types,
        token_axis,
        self.mixing,
        self.gelu,
        name=f"MixerBlock_{i}",
      )(
        x,
        None if key is None else jax.random.fold_in(key, i),
        jnp.float32(rate) if rate else None,
      )
    x = layers.LayerNorm(self.grad_dtype, name="pre_head_layer_norm")(x)
    x_BC = jnp.mean(x, axis=token_axis, dtype=jnp.float32)
    if pre_logits or not self.num_classes:
      return x_BC
    return layers.Dense(
      self.num_classes,
      grad_dtype=self.grad_dtype,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.head_bias),
      name="head",
    )(x_BC)


def _block_class(remat: str) -> Any:
  """`MixerBlock`, whose gradient keeps what `remat` says."""
  if remat == "none":
    return block.MixerBlock
  kept = () if remat == "block" else (layers.RESIDUAL, layers.PRE_ACTIVATIONS)
  policy = jax.checkpoint_policies.save_only_these_names(*kept)
  return nn.remat(block.MixerBlock, policy=policy)


def _as_written(x_SBC: jax.Array, mesh: Mesh | None) -> jax.Array:
  """The same, in memory too in the order of its axes.

  Else XLA makes nothing of the transposition before it but another order of the
  bytes, which every block inherits, and turns them for every matmul.
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
  """The shape of a variant such as "B/16": any size with any patch size."""
  match = re.fullmatch(r"([SBLH])/([1-9][0-9]{0,3})", name)
  if not match:
    raise UserError(
      f"model.variant={name[:60]!r} is not known; it is a size (S, B, L, H) "
      "and a patch size, as in --config.model.variant=B/16. Published: "
      f"{', '.join(VARIANTS)}."
    )
  return Variant(int(match[2]), *_SIZES[match[1]])


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


def from_config(config: config_lib.Config, num_classes: int) -> MlpMixer:
  """The module that a config describes."""
  m = config.model
  names = [f.name for f in dataclasses.fields(Variant)]
  return build(
    m.variant,
    num_classes,
    **{k: m[k] for k in names if m.get(k)},
    dropout=m.dropout,
    stochastic_depth=m.stochastic_depth,
    head_bias=m.head_bias,
    dtype=jnp.dtype(m.dtype),
    grad_dtype=jnp.dtype(config.sharding.reduce_dtype),
    layout=m.layout,
    remat=m.remat,
    mixing=block.TokenMixing(
      untied=m.token_mixing == "untied",
      groups=m.token_groups,
      projection=m.group_projection,
      pyramid=tuple(zip(m.pyramid_blocks, m.pyramid_tokens, strict=True)),
    ),
    gelu=m.gelu,
    permute=config.data.permute,
    permute_seed=config.data.permute_seed,
  )


def placed(module: MlpMixer, mesh: Mesh | AbstractMesh) -> MlpMixer:
  """The module for the devices of a mesh, in the layout that suits them.

  A layout that was asked for stays; an abstract mesh changes nothing.
  """
  if isinstance(mesh, AbstractMesh):
    return module
  # The one that moves less on a device (docs/performance.md).
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  layout = module.layout or ("batch_major" if on_cpu else "token_major")
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
  """`module(images, ...)` with its parameters, a nested dict."""
  out: Any = module.apply(
    {"params": params}, images, key=key, pre_logits=pre_logits
  )
  return out


def scale(images: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """uint8 `[B, H, W, 3]` in [0, 255] -> `dtype` in [-1, 1]."""
  return (images.astype(jnp.float32) / 127.5 - 1.0).astype(dtype)


def random_order(count: int, seed: int, purpose: int = 0) -> np.ndarray:
  """A random order of `count` things, int32 `[count]`, alike on any machine."""
  # Ranks of raw numbers: NumPy promises these for ever, unlike its own
  # permutations (NEP 19). `purpose` tells apart orders of one seed.
  key = np.array([seed, purpose], np.uint64)
  raw = np.random.Philox(key=key).random_raw(count)
  return np.argsort(raw, kind="stable").astype(np.int32)


def permute(
  images: jax.Array, kind: str, patch_size: int, seed: int
) -> jax.Array:
  """Permutes the pixels of all images alike (section 3.4, figure 4).

  Colours stay together. `kind` is "patches" (the patches are shuffled, and the
  pixels within each, by one permutation for all), "pixels" (all pixels are), or
  "" for none. `[B, H, W, 3]` of any dtype; new patch i is an old one.
  """
  if not kind:
    return images
  b, h, w, c = images.shape
  if kind == "pixels":
    flat = images.reshape(b, h * w, c)
    flat = jnp.take(flat, random_order(h * w, seed), axis=1)
    return flat.reshape(images.shape)
  p = patch_size
  x = images.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3)
  x = x.reshape(b, (h // p) * (w // p), p * p, c)
  x = jnp.take(x, random_order(x.shape[1], seed), axis=1)
  x = jnp.take(x, random_order(p * p, seed, purpose=1), axis=2)
  x = x.reshape(b, h // p, w // p, p, p, c).swapaxes(2, 3)
  return x.reshape(images.shape)


def forward_macs(
  module: MlpMixer, image_size: int | tuple[int, int]
) -> tuple[int, int]:
  """Multiply-accumulates of one image: (all, those of the stem).

  Untied MLPs and groups change nothing.
  """
  sides = (image_size,) * 2 if isinstance(image_size, int) else image_size
  s = math.prod(side // module.patch_size for side in sides)
  c, t, f = module.hidden_dim, module.tokens_mlp_dim, module.channels_mlp_dim
  total = stem = s * 3 * module.patch_size**2 * c
  for i in range(module.num_blocks):
    after = module.mixing.tokens(i, s)
    total += s * c * c if module.mixing.projection else 0
    total += s * after * c if after != s else 0  # The shortcut.
    total += (s + after) * c * t + 2 * after * c * f
    s = after
  return total + c * module.num_classes, stem


def training_flop(module: MlpMixer, image_size: int | tuple[int, int]) -> int:
  """FLOP to train on one image: forward, and twice that backward.

  The stem's input needs no gradient. Nothing elementwise or recomputed counts.
  """
  macs, stem = forward_macs(module, image_size)
  return 6 * macs - 2 * stem


def update_flop(module: MlpMixer, config: config_lib.Config) -> int:
  """FLOP of an update, per image: SAM trains twice, a probe the head alone."""
  size = config_lib.image_size(config)
  flop = training_flop(module, size)
  if config.optimizer.train == "head":
    # Forward, and backward through the head, whose input needs no gradient.
    head = module.hidden_dim * module.num_classes
    flop = 2 * forward_macs(module, size)[0] + 2 * head
  return 2 * flop if config.optimizer.sam_rho else flop
