"""Dense, patch convolution, LayerNorm, GELU and MLP, with their own gradients.

XLA sums gradients over devices in the dtype in which they leave their matmul.
In a plain bfloat16 layer that is bfloat16; here it is `grad_dtype` for kernels
and float32 for biases, which are small. A matmul itself always adds up in
float32. LayerNorm and GELU keep only their input for the backward pass.

These gradients are for training: JAX can't differentiate them a second time,
nor in forward mode. With `grad_dtype=None` all derivatives are JAX's own.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.ad_checkpoint import checkpoint_name

_KERNEL = nn.initializers.lecun_normal()
_BIAS = nn.initializers.zeros
# Name of an MLP's hidden pre-activations, for rematerialisation policies.
PRE_ACTIVATIONS = "pre_activations"


class Dense(nn.Module):
  """A matmul over one axis; parameters are those of `nn.Dense`.

  Attributes:
    features: O, width of the output.
    use_bias: whether there is a bias.
    dtype: of the computation.
    grad_dtype: of the kernel's gradient, see above.
    kernel_init: of the kernel, float32 `[I, O]`.
    bias_init: of the bias, float32 `[O]`.
    axis: of the input: -1, the last, or 0, the first, which needs a bias.
  """

  features: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32
  grad_dtype: jnp.dtype | None = jnp.float32
  kernel_init: Initializer = _KERNEL
  bias_init: Initializer = _BIAS
  axis: int = -1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., I]` -> `[..., O]`, or `[I, ...]` -> `[O, ...]`."""
    shape = (x.shape[self.axis], self.features)
    kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
    bias = None
    if self.use_bias:
      bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
    function = _dense_first if self.axis == 0 else _dense
    dense = _with_gradient(function, self.grad_dtype)
    return dense(x.astype(self.dtype), kernel, bias, self.grad_dtype)


class PatchConv(nn.Module):
  """A convolution whose stride is its size; parameters as in `nn.Conv`.

  Rows and columns of pixels beyond whole patches are left out.
  """

  features: int
  patch_size: int
  dtype: jnp.dtype = jnp.float32
  grad_dtype: jnp.dtype | None = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """`[B, H, W, I]` -> `[B, H / P, W / P, C]`."""
    p = self.patch_size
    shape = (p, p, images.shape[-1], self.features)
    kernel = self.param("kernel", _KERNEL, shape, jnp.float32)
    bias = self.param("bias", _BIAS, (self.features,), jnp.float32)
    patches = _with_gradient(_patches, self.grad_dtype)
    return patches(images.astype(self.dtype), kernel, bias, self.grad_dtype)


class LayerNorm(nn.Module):
  """LayerNorm over the last axis; parameters are those of `nn.LayerNorm`.

  Statistics and parameters are float32; the output has the input's dtype.
  """

  grad_dtype: jnp.dtype | None = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., C]` -> `[..., C]`."""
    shape = (x.shape[-1],)
    scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
    return _with_gradient(layer_norm, self.grad_dtype)(x, scale, bias)


class MlpBlock(nn.Module):
  """Dense -> GELU -> dropout -> Dense -> dropout over one axis."""

  mlp_dim: int
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  out_dim: int = 0
  grad_dtype: jnp.dtype | None = jnp.float32
  axis: int = -1

  @nn.compact
  def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """`[..., D]` -> `[..., out_dim]`; dropout acts only with a key."""
    out_dim = self.out_dim or x.shape[self.axis]
    keys = (None, None) if key is None else jax.random.split(key)
    dense = functools.partial(
      Dense, dtype=self.dtype, grad_dtype=self.grad_dtype, axis=self.axis
    )
    drop = nn.Dropout(self.dropout, deterministic=key is None)
    x = checkpoint_name(dense(self.mlp_dim)(x), PRE_ACTIVATIONS)
    x = _with_gradient(gelu, self.grad_dtype)(x)
    x = dense(out_dim)(drop(x, rng=keys[0]))
    return drop(x, rng=keys[1])


def _with_gradient(function: Any, grad_dtype: Any) -> Any:
  """A `custom_vjp` function; the plain one if `grad_dtype` is None."""
  return function.__wrapped__ if grad_dtype is None else function


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _dense(
  x: jax.Array, kernel: jax.Array, bias: jax.Array | None, grad_dtype: Any
) -> jax.Array:
  """`[..., I]`, `[I, O]`, `[O]` -> `[..., O]`, all in the dtype of `x`."""
  y = jnp.matmul(x, kernel.astype(x.dtype))
  return y if bias is None else y + bias.astype(x.dtype)


def _dense_forward(x: Any, kernel: Any, bias: Any, grad_dtype: Any) -> Any:
  return _dense(x, kernel, bias, grad_dtype), (x, kernel, bias)


def _dense_backward(grad_dtype: Any, saved: Any, dy: jax.Array) -> Any:
  x, kernel, bias = saved
  dx = jnp.matmul(dy, kernel.astype(dy.dtype).T)
  rows = tuple(range(x.ndim - 1))
  dkernel = _kernel_gradient(x, dy, rows, rows, grad_dtype)
  return dx, dkernel, None if bias is None else _bias_gradient(dy, rows)


_dense.defvjp(_dense_forward, _dense_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _dense_first(
  x: jax.Array, kernel: jax.Array, bias: jax.Array, grad_dtype: Any
) -> jax.Array:
  """`[I, ...]`, `[I, O]`, `[O]` -> `[O, ...]`, all in the dtype of `x`.

  The other axes stay apart: a TPU tiles the last two, so that joining them
  moved every byte, 8 of B/16's 70 GB a step (docs/performance.md).
  """
  return _dense_first_forward(x, kernel, bias, grad_dtype)[0]


def _dense_first_forward(
  x: Any, kernel: Any, bias: Any, grad_dtype: Any
) -> Any:
  spare = -len(x) % _ALIGNED
  if not spare:
    y = _contract_first(kernel.astype(x.dtype), x)
    return y + _on_first(bias.astype(x.dtype), x.ndim), (x, kernel, bias)
  # A bias on the first axis is no part of any matmul of cuBLAS, which wants its
  # operands aligned besides: as one of the rows that are filled up it is one
  # more weight, of an input that is 1, and its gradient comes with the others'.
  x = jnp.pad(x, ((0, spare), *((0, 0),) * (x.ndim - 1)))
  is_bias = _on_first(jnp.arange(len(x)) == len(kernel), x.ndim)
  x = jnp.where(is_bias, jnp.ones((), x.dtype), x)
  whole = jnp.concatenate([kernel, bias[None]]).astype(x.dtype)
  whole = jnp.pad(whole, ((0, spare - 1), (0, 0)))
  return _contract_first(whole, x), (x, kernel, bias)


def _dense_first_backward(grad_dtype: Any, saved: Any, dy: jax.Array) -> Any:
  x, kernel, _ = saved
  dx = jnp.tensordot(kernel.astype(dy.dtype), dy, ((1,), (0,)))
  rest = tuple(range(1, x.ndim))
  gradient = _kernel_gradient(x, dy, rest, rest, grad_dtype)
  width = len(kernel)
  if len(x) == width:
    return dx, gradient, _bias_gradient(dy, rest)
  return dx, gradient[:width], gradient[width]


_dense_first.defvjp(_dense_first_forward, _dense_first_backward)
_ALIGNED = 8


def _contract_first(kernel: jax.Array, x: jax.Array) -> jax.Array:
  """`[I, O]`, `[I, ...]` -> `[O, ...]`, without a transposition."""
  return jnp.tensordot(kernel, x, ((0,), (0,)))


def _on_first(x: jax.Array, ndim: int) -> jax.Array:
  """`[I]` -> `[I, 1, ...]`."""
  return jnp.expand_dims(x, tuple(range(1, ndim)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _patches(
  x: jax.Array, kernel: jax.Array, bias: jax.Array, grad_dtype: Any
) -> jax.Array:
  """`[B, H, W, I]`, `[P, P, I, C]`, `[C]` -> `[B, H / P, W / P, C]`."""
  return _convolve(x, kernel) + bias.astype(x.dtype)


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  axes = ("NHWC", "HWIO", "NHWC")
  kernel, p = kernel.astype(x.dtype), kernel.shape[:2]
  return jax.lax.conv_general_dilated(
    x, kernel, p, "VALID", dimension_numbers=axes
  )


def _patches_forward(x: Any, kernel: Any, bias: Any, grad_dtype: Any) -> Any:
  return _patches(x, kernel, bias, grad_dtype), (x, kernel)


def _patches_backward(grad_dtype: Any, saved: Any, dy: jax.Array) -> Any:
  x, kernel = saved
  # For gradients by images; XLA drops it in training.
  (dx,) = jax.vjp(lambda x: _convolve(x, kernel), x)[1](dy)
  p, (b, h, w, _) = kernel.shape[0], dy.shape
  whole = x[:, : h * p, : w * p].reshape(b, h, p, w, p, -1)
  rows = (0, 1, 2)
  dkernel = _kernel_gradient(whole, dy, (0, 1, 3), rows, grad_dtype)
  return dx, dkernel, _bias_gradient(dy, rows)


_patches.defvjp(_patches_forward, _patches_backward)


def _kernel_gradient(
  x: jax.Array,
  dy: jax.Array,
  rows_x: tuple[int, ...],
  rows_dy: tuple[int, ...],
  grad_dtype: Any,
) -> jax.Array:
  """Contracts x with dy over their rows; float32, summed as `grad_dtype`."""
  if jnp.finfo(grad_dtype).bits < jnp.finfo(x.dtype).bits:
    # A matmul gives out no less than it takes in.
    x, dy = x.astype(grad_dtype), dy.astype(grad_dtype)
  axes = ((rows_x, rows_dy), ((), ()))
  gradient = jax.lax.dot_general(x, dy, axes, preferred_element_type=grad_dtype)
  return gradient.astype(jnp.float32)


def _bias_gradient(dy: jax.Array, rows: tuple[int, ...]) -> jax.Array:
  return jnp.sum(dy, axis=rows, dtype=jnp.float32)


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
  """`(x - mean) / sqrt(variance + 1e-6) * scale + bias` (arXiv 1607.06450).

  Its backward pass keeps x and two numbers a row, where JAX's own keeps float32
  arrays as large as x.
  """
  return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x: Any, scale: Any, bias: Any) -> Any:
  wide = x.astype(jnp.float32)
  # Both means in one pass over x, as Flax takes them.
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  variance = jnp.maximum(square - jnp.square(mean), 0.0)
  rate = jax.lax.rsqrt(variance + 1e-6)
  y = (wide - mean) * (rate * scale) + bias
  return y.astype(x.dtype), (x, scale, mean, rate)


def _layer_norm_backward(saved: Any, dy: jax.Array) -> Any:
  x, scale, mean, rate = saved
  wide = dy.astype(jnp.float32)
  normal = (x.astype(jnp.float32) - mean) * rate
  rows = tuple(range(x.ndim - 1))
  weighted = wide * scale
  along = jnp.mean(weighted * normal, axis=-1, keepdims=True)
  dx = rate * (
    weighted - jnp.mean(weighted, axis=-1, keepdims=True) - normal * along
  )
  dscale, dbias = jnp.sum(wide * normal, axis=rows), jnp.sum(wide, axis=rows)
  return dx.astype(x.dtype), dscale, dbias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)

# GELU's tanh approximation is x / 2 (1 + tanh(ROOT (x + CUBE x^3))).
_ROOT = math.sqrt(2.0 / math.pi)
_CUBE = 0.044715


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """GELU by its tanh approximation (arXiv 1606.08415), as released models use.

  Its backward pass keeps x alone and computes the tanh again, which moves fewer
  bytes than JAX's own derivative.
  """
  # So written, and in the matmul's own dtype, XLA's compiler for GPUs makes it
  # the end of the matmul before it, which has float32 there (BIAS_GELU_AUX).
  cubic = x + _CUBE * (x * x * x)
  return x * (0.5 * (1.0 + jnp.tanh(_ROOT * cubic)))


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  return gelu(x), x


def _gelu_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
  # Else XLA takes this tanh and that of the forward pass for one, and keeps it.
  x = jax.lax.optimization_barrier(x)
  square = x * x
  t = jnp.tanh(_ROOT * (x + _CUBE * (square * x)))
  slope = _ROOT * (1.0 + 3.0 * _CUBE * square)
  # In the dtype of x: were it float32, XLA would write that for the sum that is
  # the bias's gradient. Inside of a kernel it has float32 all the same.
  return (dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope),)


gelu.defvjp(_gelu_forward, _gelu_backward)
