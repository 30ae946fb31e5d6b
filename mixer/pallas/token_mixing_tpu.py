"""Token mixing as a whole for TPUs: x + keep * token_mlp(LayerNorm(x)).

XLA sends the hidden arrays of token mixing through HBM several times forward
and backward; here they never leave VMEM. A grid goes over the images, some at a
step, and LayerNorm's whole rows of C are in the block anyway. So forward x is
read once and the sum written once; backward x and the output's gradient are
read once, the hidden layer is computed again, the gradient of x is written
once, and those of the parameters add up in VMEM, as a TPU's grid is sequential.
Between LayerNorm and the sum only matmul operands are rounded to bfloat16.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mixer import norm
from mixer.pallas import grid_tpu
from mixer.pallas import token_mlp_tpu as base


def forward(
  x_BSC: jax.Array,
  keep_B: jax.Array,
  scale_C: jax.Array,
  offset_C: jax.Array,
  kernel1_ST: jax.Array,
  bias1_T: jax.Array,
  kernel2_TS: jax.Array,
  bias2_S: jax.Array,
  *,
  interpret: bool = False,
) -> jax.Array:
  """X + keep * token_mlp(LayerNorm(x)) for every image.

  Args:
    x_BSC: bfloat16 or float32 `[B, S, C]`.
    keep_B: float32 `[B]`, what an image's branch is multiplied by.
    scale_C: of LayerNorm, float32 `[C]`.
    offset_C: its bias, float32 `[C]`.
    kernel1_ST: float32 `[S, T]`.
    bias1_T: float32 `[T]`.
    kernel2_TS: float32 `[T, S]`.
    bias2_S: float32 `[S]`.
    interpret: run it without a TPU, slowly.

  Returns:
    `[B, S, C]` in the dtype of `x_BSC`.
  """
  mlp = (kernel1_ST, bias1_T, kernel2_TS, bias2_S)
  return grid_tpu.call(
    _forward_kernel,
    (x_BSC,),
    (scale_C[None], offset_C[None], *base.transposed(*mlp, x_BSC.dtype)),
    (x_BSC,),
    (),
    matmuls=2,
    width=bias1_T.size,
    name="token_mixing_forward",
    interpret=interpret,
    scalars=(keep_B,),
  )[0]


def backward(
  x_BSC: jax.Array,
  dout_BSC: jax.Array,
  keep_B: jax.Array,
  scale_C: jax.Array,
  offset_C: jax.Array,
  kernel1_ST: jax.Array,
  bias1_T: jax.Array,
  kernel2_TS: jax.Array,
  bias2_S: jax.Array,
  *,
  interpret: bool = False,
) -> Sequence[jax.Array]:
  """The gradients of `forward`.

  Args:
    x_BSC: as in `forward`.
    dout_BSC: gradient of the output, in the dtype of `x_BSC`.
    keep_B: as in `forward`.
    scale_C: as in `forward`.
    offset_C: as in `forward`.
    kernel1_ST: as in `forward`.
    bias1_T: as in `forward`.
    kernel2_TS: as in `forward`.
    bias2_S: as in `forward`; its values play no part.
    interpret: run it without a TPU, slowly.

  Returns:
    Gradients of x, of LayerNorm's scale and bias, and of the four parameters
    of the MLP, in their shapes and dtypes.
  """
  row = (1, x_BSC.shape[-1])
  mlp = base.both_ways(kernel1_ST, bias1_T, kernel2_TS, x_BSC.dtype)
  dx_BSC, *sums = grid_tpu.call(
    _backward_kernel,
    (x_BSC, dout_BSC),
    (scale_C[None], offset_C[None], *mlp),
    (x_BSC,),
    (row, row, *base.sum_shapes(kernel1_ST)),
    matmuls=5,
    width=bias1_T.size,
    name="token_mixing_backward",
    interpret=interpret,
    scalars=(keep_B,),
  )
  dscale, doffset, dkernel1_ST, dbias1, dkernel2_TS, dbias2 = sums
  return (
    dx_BSC,
    dscale[0],
    doffset[0],
    dkernel1_ST,
    dbias1[:, 0],
    dkernel2_TS,
    dbias2[:, 0],
  )


def _forward_kernel(keep, x, scale, offset, w1_TS, b1_T1, w2_ST, b2_S1, out):
  first = pl.program_id(0) * x.shape[0]

  def image(i, carry):
    x_SC = x[i].astype(jnp.float32)
    n_SC, _ = _normalise(x_SC)
    y_SC = (n_SC * scale[...] + offset[...]).astype(x.dtype)
    branch_SC = base.mlp(y_SC, w1_TS[...], b1_T1[...], w2_ST[...], b2_S1[...])
    out[i] = (x_SC + keep[first + i] * branch_SC).astype(out.dtype)
    return carry

  jax.lax.fori_loop(0, x.shape[0], image, None)


def _backward_kernel(
  keep, x, dout, scale, offset, w1_TS, b1_T1, w1_ST, w2_TS, dx, *sums
):
  grid_tpu.start_sums(sums)
  first = pl.program_id(0) * x.shape[0]

  def image(i, carry):
    n_SC, deviation_S1 = _normalise(x[i].astype(jnp.float32))
    y_SC = (n_SC * scale[...] + offset[...]).astype(x.dtype)
    dout_SC = dout[i].astype(jnp.float32)
    branch_SC = (keep[first + i] * dout_SC).astype(x.dtype)
    dy_SC, gradients = base.mlp_gradients(
      y_SC, branch_SC, w1_TS[...], b1_T1[...], w1_ST[...], w2_TS[...]
    )
    dscale = jnp.sum(dy_SC * n_SC, axis=0, keepdims=True)
    doffset = jnp.sum(dy_SC, axis=0, keepdims=True)
    grid_tpu.add(sums, (dscale, doffset, *gradients))
    dn_SC = dy_SC * scale[...]
    along = jnp.mean(dn_SC * n_SC, axis=1, keepdims=True)
    dn_SC = dn_SC - jnp.mean(dn_SC, axis=1, keepdims=True) - n_SC * along
    dx[i] = (dout_SC + dn_SC * deviation_S1).astype(dx.dtype)
    return carry

  jax.lax.fori_loop(0, x.shape[0], image, None)


def _normalise(x_SC: Any) -> tuple[jax.Array, jax.Array]:
  """Rows of mean 0 and variance 1; `[S, 1]`, what they were multiplied by."""
  x_SC = x_SC - jnp.mean(x_SC, axis=1, keepdims=True)
  variance_S1 = jnp.mean(x_SC * x_SC, axis=1, keepdims=True)
  factor_S1 = jax.lax.rsqrt(variance_S1 + norm.EPSILON)
  return x_SC * factor_S1, factor_S1
