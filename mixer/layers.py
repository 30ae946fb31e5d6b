"""Layers of a Mixer: affine maps, LayerNorm, GELU and MLP.

With a `grad_dtype` they have gradients for training, which can't be
differentiated again; with None all derivatives are JAX's own.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.ad_checkpoint import checkpoint_name

# Names of arrays that `model.remat` can keep.
RESIDUAL, PRE_ACTIVATIONS = "residual", "pre_activations"


class Dense(nn.Module):
  """A matmul over the last axis, or the first; parameters as in `nn.Dense`."""

  features: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32
  grad_dtype: jnp.dtype | None = None
  axis: int = -1
  kernel_init: Initializer = nn.initializers.lecun_normal()
  bias_init: Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array, share: Any = None) -> jax.Array:
    """`[..., I]` -> `[..., O]`, or for axis 0 `[I, ...]` -> `[O, ...]`.

    `share`, which broadcasts with the result, multiplies the bias.
    """
    o = self.features
    kernel = self.param("kernel", self.kernel_init, (x.shape[self.axis], o))
    bias = self.param("bias", self.bias_init, (o,)) if self.use_bias else None
    x = x.astype(self.dtype)
    return affine(x, kernel, bias, self.grad_dtype, self.axis, share)


class PatchConv(nn.Module):
  """A convolution whose stride is its size; parameters as in `nn.Conv`.

  Rows and columns of pixels beyond whole patches are left out.
  """

  features: int
  patch_size: int
  dtype: jnp.dtype = jnp.float32
  grad_dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """`[B, H, W, I]` -> `[B, H / P, W / P, C]`."""
    shape = (self.patch_size,) * 2 + (images.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    images = images.astype(self.dtype)
    return affine(images, kernel, bias, self.grad_dtype)


def affine(
  x: jax.Array,
  kernel: jax.Array,
  bias: Any,
  grad_dtype: Any,
  axis: int = -1,
  share: Any = None,
) -> jax.Array:
  """A layer's matmul or convolution; gradients leave it in `grad_dtype`.

  XLA sums gradients over devices in the dtype in which they leave their matmul:
  in a plain bfloat16 layer bfloat16, here `grad_dtype` for kernels and float32
  for biases.
  """
  if grad_dtype is None:
    return _affine(x, kernel, bias, share, axis)
  return _affine_in(x, kernel, bias, share, axis, grad_dtype)


def _affine(x: Any, kernel: Any, bias: Any, share: Any, axis: int) -> jax.Array:
  kernel = kernel.astype(x.dtype)
  if kernel.ndim == 4:
    axes = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
      x, kernel, kernel.shape[:2], "VALID", dimension_numbers=axes
    )
  elif axis == 0:
    # The other axes stay apart: a TPU tiles the last two, so that joining them
    # moved every byte, 8 of B/16's 70 GB a step (docs/performance.md).
    y = jnp.tensordot(kernel, x, ((0,), (0,)))
  else:
    y = jnp.matmul(x, kernel)
  if bias is None:
    return y
  bias = bias.astype(x.dtype)
  bias = bias if axis else bias.reshape(-1, *(1,) * (x.ndim - 1))
  return y + (bias if share is None else share * bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _affine_in(
  x: Any, kernel: Any, bias: Any, share: Any, axis: int, grad_dtype: Any
) -> jax.Array:
  return _affine(x, kernel, bias, share, axis)


def _affine_forward(
  x: Any, kernel: Any, bias: Any, share: Any, axis: int, grad_dtype: Any
) -> Any:
  saved = x, kernel, bias, share
  return _affine(*saved, axis), saved


def _affine_backward(axis: int, grad_dtype: Any, saved: Any, dy: Any) -> Any:
  x, kernel, bias, share = saved
  if kernel.ndim == 2 and axis:
    # Turned, so that a split kernel is gathered anew and not kept whole.
    dx = jnp.matmul(dy, kernel.astype(dy.dtype).T)
  else:

    def forward(x: Any) -> jax.Array:
      return _affine(x, kernel, None, None, axis)

    (dx,) = jax.linear_transpose(forward, x)(dy)
  rows = rows_x = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
  own = dy if share is None else share * dy
  dbias = None if bias is None else jnp.sum(own, rows, dtype=jnp.float32)
  if kernel.ndim == 4:  # As the matmul of patches that it is.
    p, (b, h, w, _) = len(kernel), dy.shape
    x = x[:, : h * p, : w * p].reshape(b, h, p, w, p, -1)
    rows_x = (0, 1, 3)
  if jnp.finfo(grad_dtype).bits < jnp.finfo(x.dtype).bits:
    # A matmul gives out no less than it takes in.
    x, dy = x.astype(grad_dtype), dy.astype(grad_dtype)
  dkernel = jax.lax.dot_general(
    x, dy, ((rows_x, rows), ((), ())), preferred_element_type=grad_dtype
  )
  # A share is drawn: nothing asks for its gradient.
  return dx, dkernel.astype(jnp.float32), dbias, None


_affine_in.defvjp(_affine_forward, _affine_backward)


class LayerNorm(nn.Module):
  """LayerNorm over the last axis (arXiv 1607.06450), as `nn.LayerNorm`.

  Statistics and parameters are float32; the output has the input's dtype.
  """

  grad_dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., C]` -> `[..., C]`."""
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    return _chosen(layer_norm, self.grad_dtype)(x, scale, bias)


def _chosen(function: Any, grad_dtype: Any) -> Any:
  """A function with its own gradient, or plain where `grad_dtype` is None."""
  return function.__wrapped__ if grad_dtype is None else function


# With JAX's own gradient a step of S/32 takes 1.25 times as long on two CPU
# cores; in `jax.checkpoint` 1.03 times, and B/16's on a v5e accesses 69.8 GB
# where it accesses 62.5 (docs/log.md). This one keeps x and two numbers a row.
@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
  """`(x - mean) / sqrt(variance + 1e-6) * scale + bias`."""
  return _norm_forward(x, scale, bias)[0]


def _norm_forward(x: Any, scale: Any, bias: Any) -> Any:
  wide = x.astype(jnp.float32)
  # Both means in one pass over x, as Flax takes them.
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  variance = jnp.maximum(square - jnp.square(mean), 0.0)
  rate = jax.lax.rsqrt(variance + 1e-6)
  y = (wide - mean) * (rate * scale) + bias
  return y.astype(x.dtype), (x, scale, mean, rate)


def _norm_backward(saved: Any, dy: jax.Array) -> Any:
  x, scale, mean, rate = saved
  wide, rows = dy.astype(jnp.float32), tuple(range(x.ndim - 1))
  normal = (x.astype(jnp.float32) - mean) * rate
  weighted = wide * scale
  along = jnp.mean(weighted * normal, axis=-1, keepdims=True)
  dx = rate * (
    weighted - jnp.mean(weighted, axis=-1, keepdims=True) - normal * along
  )
  dscale, dbias = jnp.sum(wide * normal, axis=rows), jnp.sum(wide, axis=rows)
  return dx.astype(x.dtype), dscale, dbias


layer_norm.defvjp(_norm_forward, _norm_backward)

# GELU's tanh approximation is x / 2 (1 + tanh(ROOT (x + CUBE x^3))).
_ROOT, _CUBE = math.sqrt(2.0 / math.pi), 0.044715


# With JAX's own gradient a step of S/32 keeps 827 MiB, not 601; and see above.
@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """GELU by its tanh approximation (arXiv 1606.08415), as released models."""
  # So written, and in the matmul's own dtype, XLA's compiler for GPUs makes it
  # the end of the matmul before it, which has float32 there (BIAS_GELU_AUX).
  cubic = x + _CUBE * (x * x * x)
  return x * (0.5 * (1.0 + jnp.tanh(_ROOT * cubic)))


def _gelu_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
  # Else XLA takes this tanh and that of the forward pass for one, and keeps it.
  x = jax.lax.optimization_barrier(x)
  square = x * x
  t = jnp.tanh(_ROOT * (x + _CUBE * (square * x)))
  slope = _ROOT * (1.0 + 3.0 * _CUBE * square)
  # In the dtype of x: were it float32, XLA would write that for the sum that is
  # the bias's gradient. Inside of a kernel it has float32 all the same.
  return (dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.checkpoint  # For the backward pass x alone is kept.
def exact_gelu(x: jax.Array) -> jax.Array:
  """GELU as PyTorch computes it unless told otherwise, by erf."""
  return jax.nn.gelu(x, approximate=False)


class MlpBlock(nn.Module):
  """Dense -> GELU -> dropout -> Dense -> dropout over one axis."""

  mlp_dim: int
  out_dim: int
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  grad_dtype: jnp.dtype | None = None
  axis: int = -1
  gelu: str = "tanh"

  @nn.compact
  def __call__(
    self, x: jax.Array, key: jax.Array | None = None, share: Any = None
  ) -> jax.Array:
    """`[..., D]` -> `[..., out_dim]`; dropout acts only with a key.

    `share`, which broadcasts with the result, multiplies it.
    """
    keys = (None, None) if key is None else jax.random.split(key)
    drop = nn.Dropout(self.dropout, deterministic=key is None)
    how: Any = (True, self.dtype, self.grad_dtype, self.axis)
    x = checkpoint_name(Dense(self.mlp_dim, *how)(x), PRE_ACTIVATIONS)
    tanh = _chosen(gelu, self.grad_dtype)
    x = exact_gelu(x) if self.gelu == "exact" else tanh(x)
    x = drop(x, rng=keys[0])
    if share is not None:
      # Here it is part of GELU's pass over memory; of the result it would be
      # one more, and two more of its gradient: 3.5 of B/16's 61.6 GB a step on
      # a v5e (docs/log.md). What has no share may be anything, NaN as well.
      x = jnp.where(share == 0, jnp.zeros((), x.dtype), share * x)
    x = Dense(self.out_dim, *how)(x, share)
    return drop(x, rng=keys[1])
