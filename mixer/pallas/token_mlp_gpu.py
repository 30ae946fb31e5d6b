"""The token MLP of a Mixer block as fused kernels for Hopper GPUs.

**Compiled for an H100 and interpreted on a CPU, but never run on a GPU: off by
default.** `model.token_mlp = "pallas"` turns it on. What a CPU can't tell:
speed, that the loader fills rows beyond the tokens with zeros and the storer
drops them (the interpreter gets padded arrays), transposed operands (it copies
them), and the hardware's tanh.

XLA writes the hidden layer, which is twice as large as the activations or
more, to memory and reads it again several times. Here it stays on the chip:
`token_mlp_channels_gpu` makes the output and the input's gradient,
`token_mlp_weights_gpu` the kernels' gradients. Through memory go y and the
output; in the gradient y, dout and dy, and y and dout once more.

Both kernels are held as `[S, T]`: then S, which has to be a multiple of 64 for
the matrix unit, is always along rows, and rows beyond S are zeros that the
loader (TMA) makes up. It counts rows in eights, so XLA pads 49 and 196 tokens
to 56 and 200, which is a copy of y and of dout; under jax 0.12 to 64 and 256.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mixer.errors import UserError
from mixer.pallas import hopper_gpu as hopper
from mixer.pallas import token_mlp_channels_gpu as channels_kernels
from mixer.pallas import token_mlp_weights_gpu as weights_kernels
from mixer.pallas.hopper_gpu import TILE
from mixer.pallas.token_mlp_channels_gpu import WIDTH

# TMA counts rows in eights, and makes up zeros beyond an array. Newer versions
# of JAX (0.12 is known to) refuse slices that reach beyond one.
_ROWS = 8 if jax.__version_info__ < (0, 11) else TILE


def refusal(tokens: int, channels: int, hidden: int, dtype: Any) -> str:
  """A sentence if the kernels can't do such a block, else ""."""
  for name, value, wrong, expected in (
    ("dtype", jnp.dtype(dtype).name, dtype != jnp.bfloat16, "bfloat16"),
    ("tokens", tokens, tokens > 256, "at most 256"),
    ("channels", channels, channels % WIDTH, f"a multiple of {WIDTH}"),
    ("token MLP width", hidden, hidden % TILE, f"a multiple of {TILE}"),
  ):
    if wrong:
      return (
        f"model.token_mlp='pallas' can't compute {name} {value} on a GPU: its "
        f"kernels need {expected}; use --config.model.token_mlp=xla."
      )
  return ""


def token_mlp(
  y: jax.Array,
  kernel1: jax.Array,
  bias1: jax.Array,
  kernel2: jax.Array,
  bias2: jax.Array,
  *,
  interpret: Any = None,
) -> jax.Array:
  """Dense, GELU (tanh), Dense along the tokens of each image.

  Sums and GELU are float32; the hidden layer is rounded to bfloat16 for the
  second matmul. Gradients of kernels and biases are float32.

  Args:
    y: `[B, S, C]`, bfloat16.
    kernel1: `[S, T]`.
    bias1: `[T]`.
    kernel2: `[T, S]`.
    bias2: `[S]`.
    interpret: None to compile, or an InterpretGPUParams of JAX.

  Returns:
    `[B, S, C]`, in the dtype of y.

  Raises:
    UserError: a shape or dtype that the kernels don't do, see `refusal`.
  """
  _, tokens, channels = y.shape
  if sentence := refusal(tokens, channels, kernel1.shape[1], y.dtype):
    raise UserError(sentence)
  return _token_mlp(y, kernel1, bias1, kernel2, bias2, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _token_mlp(
  y: jax.Array,
  kernel1: jax.Array,
  bias1: jax.Array,
  kernel2: jax.Array,
  bias2: jax.Array,
  interpret: Any,
) -> jax.Array:
  tokens = y.shape[1]
  y, w1, w2 = _padded(interpret, y, kernel1, kernel2.T)
  bias2 = jnp.pad(bias2, (0, hopper.up(tokens, TILE) - tokens))
  return channels_kernels.forward(y, w1, bias1, w2, bias2, interpret)[
    :, :tokens
  ]


def _vjp_forward(
  y: Any, kernel1: Any, bias1: Any, kernel2: Any, bias2: Any, interpret: Any
) -> Any:
  out = _token_mlp(y, kernel1, bias1, kernel2, bias2, interpret)
  return out, (y, kernel1, bias1, kernel2)


def _vjp_backward(interpret: Any, saved: Any, dout: jax.Array) -> Any:
  y, kernel1, bias1, kernel2 = saved
  s = y.shape[1]
  dbias2 = jnp.sum(dout, axis=(0, 2), dtype=jnp.float32)
  y, dout, w1, w2 = _padded(interpret, y, dout, kernel1, kernel2.T)
  arrays = y, dout, w1, bias1, w2, interpret
  dy = channels_kernels.input_gradient(*arrays)
  dw1, dw2, dbias1 = weights_kernels.gradients(*arrays)
  return dy[:, :s], dw1[:, :s].T, dbias1, dw2[:, :s], dbias2


_token_mlp.defvjp(_vjp_forward, _vjp_backward)


def _padded(interpret: Any, y: jax.Array, *arrays: jax.Array) -> Any:
  """Tokens up to a multiple of `_ROWS`, or what a tile has if interpreted.

  The interpreter doesn't make up zeros, as TMA does.
  """
  tokens = y.shape[1]
  more = hopper.up(tokens, _ROWS if interpret is None else TILE) - tokens
  out = []
  for x in (y, *arrays):
    pad = [(0, 0)] * x.ndim
    pad[-2] = (0, more)
    out.append(jnp.pad(x.astype(y.dtype), pad))
  return out
