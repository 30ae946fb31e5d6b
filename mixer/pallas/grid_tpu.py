"""A grid over the images of a batch, for TPU kernels.

Images move to VMEM and back some at a step, weights stay there, and sums over
the batch are made there, which works as a TPU's grid is sequential.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# Of one block of images: large enough for HBM's full speed, small beside VMEM.
_BLOCK_BYTES = 3 << 19
# A v5p or v7x core has 64 MiB of VMEM, a v5e or v6e core 128.
_LEAST_VMEM, _MOST_VMEM = 16 << 20, 60 << 20


def call(
  kernel: Callable[..., None],
  inputs: Sequence[jax.Array],
  weights: Sequence[jax.Array],
  outputs: Sequence[jax.Array],
  sums: Sequence[tuple[int, int]],
  *,
  matmuls: int,
  width: int,
  name: str,
  interpret: bool,
  scalars: Sequence[jax.Array] = (),
) -> Sequence[jax.Array]:
  """Runs a kernel over the images, some at a step.

  Args:
    kernel: takes references to scalars, inputs, weights, outputs, sums.
    inputs: `[B, S, C]` each, of which a step sees its images.
    weights: whole in every step.
    outputs: like inputs; their shapes and dtypes alone matter.
    sums: shapes of float32 outputs that every step adds to.
    matmuls: how many products of S, T and C an image takes.
    width: T.
    name: for profiles.
    interpret: run it without a TPU, slowly.
    scalars: `[B]` each, whole in every step.

  Returns:
    Outputs and sums.
  """
  b, s, c = inputs[0].shape
  item = inputs[0].dtype.itemsize
  block = images_a_step(b, s * c * item)
  images = pl.BlockSpec((block, s, c), lambda i: (i, 0, 0))
  whole = [pl.BlockSpec(w.shape, lambda i: (0, 0)) for w in weights]
  totals = [pl.BlockSpec(shape, lambda i: (0, 0)) for shape in sums]
  narrow = (len(inputs) + len(outputs)) * s * c * item
  fixed = sum(w.nbytes for w in weights) + sum(4 * math.prod(x) for x in sums)
  # What moves is there twice, one being sent while the other is used; and up
  # to six hidden arrays and four of an image's own shape, in float32.
  vmem = 2 * (narrow * block + fixed) + 4 * c * (6 * width + 4 * s) + (4 << 20)
  return pl.pallas_call(
    kernel,
    grid=(b // block,),
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM)] * len(scalars)
    + [images] * len(inputs)
    + whole,
    out_specs=[images] * len(outputs) + totals,
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs]
    + [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in sums],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("arbitrary",),
      vmem_limit_bytes=min(max(vmem, _LEAST_VMEM), _MOST_VMEM),
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * matmuls * b * s * width * c,
      transcendentals=b * width * c,
      bytes_accessed=b * narrow + fixed,
    ),
    name=name,
    interpret=interpret,
  )(*scalars, *inputs, *weights)


def images_a_step(images: int, image_bytes: int) -> int:
  """The most that divide their number and fit a block; at least one."""
  most = max(1, min(images, _BLOCK_BYTES // image_bytes))
  return next(n for n in range(most, 0, -1) if images % n == 0)


def start_sums(refs: Sequence[Any]) -> None:
  """Sets sums over the grid to zero, in its first step."""

  @pl.when(pl.program_id(0) == 0)
  def _():
    for ref in refs:
      ref[...] = jnp.zeros_like(ref)


def add(refs: Sequence[Any], terms: Sequence[jax.Array]) -> None:
  """Adds an image's part to sums over the grid."""
  for ref, term in zip(refs, terms, strict=True):
    ref[...] += term
