"""The gradients of the token MLP's kernels, on Hopper GPUs.

A program has 64 hidden units and a share of the images. It keeps both kernels'
columns for these units in shared memory and both gradients in registers, one
in each warpgroup, and goes through the images 64 channels at a time: the
hidden layer and its gradient are made again, from y and dout, and never
leave the chip. What programs have summed is added up by XLA.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mixer.pallas import hopper_gpu as hopper
from mixer.pallas.hopper_gpu import GROUPS, TILE

_HALF = TILE // GROUPS  # Channels whose hidden layer a warpgroup makes.
_STAGES = 2  # Of y and dout, 64 channels each.


def gradients(
  y: jax.Array,
  dout: jax.Array,
  w1: jax.Array,
  bias1: jax.Array,
  w2: jax.Array,
  interpret: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Sums over images and channels, float32.

  Args:
    y: `[B, S, C]`, bfloat16.
    dout: `[B, S, C]`, bfloat16.
    w1: the first kernel, `[S, T]`, bfloat16.
    bias1: `[T]`, float32.
    w2: the second kernel, `[S, T]`, bfloat16.
    interpret: see `token_mlp_gpu.token_mlp`.

  Returns:
    The gradients of the first kernel and the second, both `[T, rows]` with
    zeros beyond S, and that of the first bias, `[T]`.
  """
  images, tokens, channels = y.shape
  rows, steps = hopper.up(tokens, TILE), w1.shape[1] // TILE
  shares = max(1, min(images, hopper.MULTIPROCESSORS // steps))
  share = -(-images // shares)
  chunks = channels // TILE

  def count() -> Any:
    here = images - lax.axis_index("share") * share
    return jnp.clip(here, 0, share) * chunks

  def multiply(group: Any, r: Any) -> None:
    mine = None if interpret is None else r.spare.at[group]
    mine_x = None if interpret is None else r.spare_x.at[group]
    plgpu.barrier_wait(r.w_full)
    bias = r.b1[...]

    def over_images(dw: Any) -> tuple[jax.Array, jax.Array]:
      def step(i: Any, total: jax.Array) -> jax.Array:
        stage = lax.rem(i, _STAGES)
        now = r.hidden.at[lax.rem(i, 2)]
        plgpu.barrier_wait(r.full.at[stage])

        def again(h: Any, dh: Any) -> tuple[jax.Array, jax.Array]:
          for role, out in enumerate((h, dh)):
            left = hopper.turned(r.w.at[role], mine)
            plgpu.wgmma(out, left, r.x.at[stage, role, group])
          return h[...], dh[...]

        half = hopper.sums(TILE, _HALF)
        h, dh = pl.run_scoped(again, half, half)
        h = h + hopper.along_rows(bias, _HALF)
        dh = dh * hopper.gelu_slope(h)
        now[0, group] = dh.astype(y.dtype)
        now[1, group] = hopper.gelu(h).astype(y.dtype)
        plgpu.commit_smem()
        # The other warpgroup's half as well. Two sets of halves suffice: who
        # is here has read those of the step before.
        plgpu.barrier_arrive(r.made)
        plgpu.barrier_wait(r.made)
        for part in range(GROUPS):
          right = hopper.turned(r.x.at[stage, group, part], mine_x)
          plgpu.wgmma(dw, now.at[group, part], right)
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(r.empty.at[stage])
        return total + dh

      zeros = jnp.zeros((TILE, _HALF), jnp.float32)
      total = lax.fori_loop(0, count(), step, zeros)
      return dw[...], total

    dw, total = pl.run_scoped(over_images, hopper.sums(TILE, rows))
    here = (lax.axis_index("share"), lax.axis_index("units"), group)
    r.dw_out[here] = dw
    r.db_out[here] = total

  def load(r: Any) -> None:
    units = lax.axis_index("units")
    plgpu.copy_gmem_to_smem(r.b1_in.at[units], r.b1, r.w_full)
    for role, memory in enumerate((r.w1_in, r.w2_in)):
      here = memory.at[pl.ds(0, rows), pl.ds(units * TILE, TILE)]
      plgpu.copy_gmem_to_smem(here, r.w.at[role], r.w_full)

    def chunk(i: Any, stage: Any) -> None:
      image = lax.axis_index("share") * share + lax.div(i, chunks)
      for role, memory in enumerate((r.y_in, r.dout_in)):
        for part in range(GROUPS):
          first = lax.rem(i, chunks) * TILE + part * _HALF
          plgpu.copy_gmem_to_smem(
            memory.at[image, pl.ds(0, rows), pl.ds(first, _HALF)],
            r.x.at[stage, role, part],
            r.full.at[stage],
          )

    hopper.stream(_STAGES, count(), r.empty, chunk)

  scratch = {
    "w": hopper.tile(2, rows, TILE, columns=_HALF),
    "x": hopper.tile(_STAGES, 2, GROUPS, rows, _HALF, columns=_HALF),
    "hidden": hopper.tile(2, 2, GROUPS, TILE, _HALF, columns=_HALF),
    "b1": plgpu.SMEM((TILE,), jnp.float32),
    "w_full": plgpu.Barrier(num_arrivals=3),
    "full": plgpu.Barrier(num_arrivals=2 * GROUPS, num_barriers=_STAGES),
    "empty": plgpu.Barrier(num_arrivals=GROUPS, num_barriers=_STAGES),
    "made": plgpu.Barrier(num_arrivals=GROUPS),
  }
  if interpret is not None:
    scratch["spare"] = plgpu.SMEM((GROUPS, TILE, rows), y.dtype)
    scratch["spare_x"] = plgpu.SMEM((GROUPS, _HALF, rows), y.dtype)
  parts = (shares, steps, GROUPS, TILE)
  dw, db = hopper.kernel(
    multiply,
    load,
    name="token_mlp_weights_gradient",
    inputs={
      "y_in": y,
      "dout_in": dout,
      "w1_in": w1,
      "b1_in": bias1.reshape(steps, TILE),
      "w2_in": w2,
    },
    outputs={
      "dw_out": jax.ShapeDtypeStruct((*parts, rows), jnp.float32),
      "db_out": jax.ShapeDtypeStruct((*parts, _HALF), jnp.float32),
    },
    scratch=scratch,
    # Programs side by side read the same images, from the L2 cache.
    grid={"units": steps, "share": shares},
    interpret=interpret,
  )
  dw = jnp.sum(dw, axis=0).transpose(1, 0, 2, 3).reshape(2, -1, rows)
  return dw[0], dw[1], jnp.sum(db, axis=(0, 2, 4)).reshape(-1)
