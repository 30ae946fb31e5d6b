"""Affine layers whose gradients leave them in a stated precision.

XLA sums the parts of a gradient that the devices have in the dtype that its
matmul or sum gives out. A plain bfloat16 layer gives out bfloat16, biases
included. Here kernels' gradients are `grad_dtype`, and biases', which weigh
next to nothing, always float32. Either way a matmul adds up in float32 inside.

Such a gradient is for training alone: JAX has no forward-mode, and no second,
derivative of it. Where `grad_dtype` is None derivatives are JAX's own.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

_KERNEL = nn.initializers.lecun_normal()
_BIAS = nn.initializers.zeros


class Dense(nn.Module):
  """A matmul with one axis; parameters are those of `nn.Dense`.

  Attributes:
    features: O, width of the output.
    use_bias: whether something is added.
    dtype: of the computation.
    grad_dtype: of the kernel's gradient; see above.
    kernel_init: of the kernel `[I, O]`, float32.
    bias_init: of the bias `[O]`, float32.
    axis: of the input, its last, -1, or, with a bias, its first, 0.
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
    x = x.astype(self.dtype)
    if self.axis == 0:
      assert bias is not None
      dense = with_gradient(_dense_first, self.grad_dtype)
    else:
      dense = with_gradient(_dense, self.grad_dtype)
    return dense(x, kernel, bias, self.grad_dtype)


class PatchConv(nn.Module):
  """A convolution with a stride of its size; parameters as in `nn.Conv`.

  Attributes:
    features: C.
    patch_size: P; rows and columns beyond whole patches are left out.
    dtype: of the computation.
    grad_dtype: of the kernel's gradient; see above.
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
    patches = with_gradient(_patches, self.grad_dtype)
    return patches(images.astype(self.dtype), kernel, bias, self.grad_dtype)


def with_gradient(function: Any, grad_dtype: Any) -> Any:
  """A `custom_vjp` function, or where the dtype is None the plain one."""
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
  return dx, dkernel, _bias_gradient(bias, dy, rows)


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
  x, kernel, bias = saved
  dx = jnp.tensordot(kernel.astype(dy.dtype), dy, ((1,), (0,)))
  rest = tuple(range(1, x.ndim))
  gradient = _kernel_gradient(x, dy, rest, rest, grad_dtype)
  width = len(kernel)
  if len(x) == width:
    return dx, gradient, _bias_gradient(bias, dy, rest)
  return dx, gradient[:width], gradient[width]


_dense_first.defvjp(_dense_first_forward, _dense_first_backward)
_ALIGNED = 8


def _contract_first(kernel: jax.Array, x: jax.Array) -> jax.Array:
  """`[I, O]`, `[I, ...]` -> `[O, ...]`; neither has to be turned."""
  return jnp.tensordot(kernel, x, ((0,), (0,)))


def _on_first(x: jax.Array, ndim: int) -> jax.Array:
  """`[I]` -> `[I, 1, ...]`."""
  return jnp.expand_dims(x, tuple(range(1, ndim)))


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jax.lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    kernel.shape[:2],
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _patches(
  x: jax.Array, kernel: jax.Array, bias: jax.Array, grad_dtype: Any
) -> jax.Array:
  """`[B, H, W, I]`, `[P, P, I, C]`, `[C]` -> `[B, H / P, W / P, C]`."""
  return _convolve(x, kernel) + bias.astype(x.dtype)


def _patches_forward(x: Any, kernel: Any, bias: Any, grad_dtype: Any) -> Any:
  return _patches(x, kernel, bias, grad_dtype), (x, kernel, bias)


def _patches_backward(grad_dtype: Any, saved: Any, dy: jax.Array) -> Any:
  x, kernel, bias = saved
  # Of use to whom differentiates by images; else XLA leaves it out.
  (dx,) = jax.vjp(lambda x: _convolve(x, kernel), x)[1](dy)
  p, (b, h, w, _) = kernel.shape[0], dy.shape
  whole = x[:, : h * p, : w * p].reshape(b, h, p, w, p, -1)
  rows = (0, 1, 2)
  dkernel = _kernel_gradient(whole, dy, (0, 1, 3), rows, grad_dtype)
  return dx, dkernel, _bias_gradient(bias, dy, rows)


_patches.defvjp(_patches_forward, _patches_backward)


def _kernel_gradient(
  x: jax.Array,
  dy: jax.Array,
  rows: tuple[int, ...],
  columns: tuple[int, ...],
  grad_dtype: Any,
) -> jax.Array:
  """The sum over `rows` of x and `columns` of dy; float32."""
  if jnp.finfo(grad_dtype).bits < jnp.finfo(x.dtype).bits:
    # A matmul gives out no less than it takes in.
    x, dy = x.astype(grad_dtype), dy.astype(grad_dtype)
  gradient = jax.lax.dot_general(
    x, dy, ((rows, columns), ((), ())), preferred_element_type=grad_dtype
  )
  return gradient.astype(jnp.float32)


def _bias_gradient(
  bias: jax.Array | None, dy: jax.Array, rows: tuple[int, ...]
) -> jax.Array | None:
  if bias is None:
    return None
  return jnp.sum(dy, axis=rows, dtype=jnp.float32)
