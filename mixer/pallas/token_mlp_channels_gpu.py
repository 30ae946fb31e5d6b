"""The token MLP's output and its input's gradient, on Hopper GPUs.

A program has 128 channels of one image, half of them in each warpgroup, and
goes through the hidden layer 64 units at a time: makes them, in registers,
hands them over in shared memory, and adds what comes of them to the output.
Tiles of both kernels come in turn through a ring of slots.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mixer.pallas import hopper_gpu as hopper
from mixer.pallas.hopper_gpu import GROUPS, TILE

WIDTH = GROUPS * TILE  # Channels of a program.


def forward(
  y: jax.Array,
  w1: jax.Array,
  bias1: jax.Array,
  w2: jax.Array,
  bias2: jax.Array,
  interpret: Any,
) -> jax.Array:
  """`w2 gelu(w1^T y + bias1) + bias2` of each image.

  Args:
    y: `[B, S, C]`, bfloat16.
    w1: the first kernel, `[S, T]`, bfloat16.
    bias1: `[T]`, float32.
    w2: the second kernel, `[S, T]`, bfloat16.
    bias2: `[rows]`, float32: S up to a multiple of 64.
    interpret: see `token_mlp_gpu.token_mlp`.

  Returns:
    `[B, S, C]`, bfloat16.
  """
  rows, steps = hopper.up(y.shape[1], TILE), w1.shape[1] // TILE
  slots = _slots(rows, 1)

  def multiply(group: Any, r: Any) -> None:
    mine = None if interpret is None else r.spare.at[group]
    plgpu.barrier_wait(r.b_full)
    plgpu.barrier_wait(r.x_full.at[group])

    def over_hidden(out: Any) -> jax.Array:
      def step(i: Any, _: Any) -> tuple[()]:
        slot = _slot(2 * i, slots)

        def first(total: Any) -> jax.Array:
          left = hopper.turned(r.ring.at[slot], mine)
          plgpu.wgmma(total, left, r.y.at[group])
          return total[...]

        plgpu.barrier_wait(r.full.at[slot])
        x = pl.run_scoped(first, hopper.sums(TILE, TILE))
        plgpu.barrier_arrive(r.empty.at[slot])
        x = hopper.gelu(x + hopper.along_rows(r.b1[i], TILE))
        r.hidden[group] = x.astype(y.dtype)
        plgpu.commit_smem()
        slot = _slot(2 * i + 1, slots)
        plgpu.barrier_wait(r.full.at[slot])
        plgpu.wgmma(out, r.ring.at[slot], r.hidden.at[group])
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(r.empty.at[slot])
        return ()

      lax.fori_loop(0, steps, step, ())
      return out[...]

    out = pl.run_scoped(over_hidden, hopper.sums(rows, TILE))
    _store(group, r, out + hopper.along_rows(r.b2[...], TILE))

  def load(r: Any) -> None:
    plgpu.copy_gmem_to_smem(r.b1_in, r.b1, r.b_full)
    plgpu.copy_gmem_to_smem(r.b2_in, r.b2, r.b_full)
    _load_channels(r.y_in, r.y, r.x_full, rows)
    _load_weights(r, slots, rows, steps)

  scratch = _scratch(rows, steps, slots, interpret) | {
    "y": hopper.tile(GROUPS, rows, TILE),
    "b2": plgpu.SMEM((rows,), jnp.float32),
    "x_full": plgpu.Barrier(num_barriers=GROUPS),
    "b_full": plgpu.Barrier(num_arrivals=2),
  }
  inputs = {"y_in": y, "b2_in": bias2}
  name = "token_mlp_forward"
  return _run(multiply, load, name, inputs, w1, bias1, w2, scratch, interpret)


def input_gradient(
  y: jax.Array,
  dout: jax.Array,
  w1: jax.Array,
  bias1: jax.Array,
  w2: jax.Array,
  interpret: Any,
) -> jax.Array:
  """The gradient of `forward` by y.

  Args:
    y: `[B, S, C]`, bfloat16.
    dout: `[B, S, C]`, bfloat16.
    w1: the first kernel, `[S, T]`, bfloat16.
    bias1: `[T]`, float32.
    w2: the second kernel, `[S, T]`, bfloat16.
    interpret: see `token_mlp_gpu.token_mlp`.

  Returns:
    `[B, S, C]`, bfloat16.
  """
  rows, steps = hopper.up(y.shape[1], TILE), w1.shape[1] // TILE
  slots = _slots(rows, 2)

  def multiply(group: Any, r: Any) -> None:
    mine = None if interpret is None else r.spare.at[group]
    plgpu.barrier_wait(r.b_full)
    plgpu.barrier_wait(r.x_full.at[group])

    def over_hidden(dy: Any) -> jax.Array:
      def step(i: Any, _: Any) -> tuple[()]:
        slot1, slot2 = _slot(2 * i, slots), _slot(2 * i + 1, slots)

        def first(total: Any) -> jax.Array:
          left = hopper.turned(r.ring.at[slot1], mine)
          plgpu.wgmma(total, left, r.y.at[group])
          return total[...]

        def second(total: Any) -> jax.Array:
          left = hopper.turned(r.ring.at[slot2], mine)
          plgpu.wgmma(total, left, r.dout.at[group])
          return total[...]

        plgpu.barrier_wait(r.full.at[slot1])
        x = pl.run_scoped(first, hopper.sums(TILE, TILE))
        slope = hopper.gelu_slope(x + hopper.along_rows(r.b1[i], TILE))
        plgpu.barrier_wait(r.full.at[slot2])
        dh = pl.run_scoped(second, hopper.sums(TILE, TILE))
        plgpu.barrier_arrive(r.empty.at[slot2])
        r.hidden[group] = (dh * slope).astype(y.dtype)
        plgpu.commit_smem()
        plgpu.wgmma(dy, r.ring.at[slot1], r.hidden.at[group])
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(r.empty.at[slot1])
        return ()

      lax.fori_loop(0, steps, step, ())
      return dy[...]

    _store(group, r, pl.run_scoped(over_hidden, hopper.sums(rows, TILE)))

  def load(r: Any) -> None:
    plgpu.copy_gmem_to_smem(r.b1_in, r.b1, r.b_full)
    _load_channels(r.y_in, r.y, r.x_full, rows)
    _load_channels(r.dout_in, r.dout, r.x_full, rows)
    _load_weights(r, slots, rows, steps)

  scratch = _scratch(rows, steps, slots, interpret) | {
    "y": hopper.tile(GROUPS, rows, TILE),
    "dout": hopper.tile(GROUPS, rows, TILE),
    "x_full": plgpu.Barrier(num_barriers=GROUPS, num_arrivals=2),
    "b_full": plgpu.Barrier(),
  }
  inputs = {"y_in": y, "dout_in": dout}
  name = "token_mlp_input_gradient"
  return _run(multiply, load, name, inputs, w1, bias1, w2, scratch, interpret)


def _run(
  multiply: Any,
  load: Any,
  name: str,
  inputs: dict[str, jax.Array],
  w1: jax.Array,
  bias1: jax.Array,
  w2: jax.Array,
  scratch: dict[str, Any],
  interpret: Any,
) -> jax.Array:
  y = inputs["y_in"]
  weights = {"w1_in": w1, "b1_in": bias1.reshape(-1, TILE), "w2_in": w2}
  (out,) = hopper.kernel(
    multiply,
    load,
    name=name,
    inputs=inputs | weights,
    outputs={"out": jax.ShapeDtypeStruct(y.shape, y.dtype)},
    scratch=scratch,
    grid={"columns": y.shape[2] // WIDTH, "image": y.shape[0]},
    interpret=interpret,
  )
  return out


def _slots(rows: int, inputs: int) -> int:
  """How many tiles of weights fit beside so many inputs; at least two."""
  tile = rows * TILE * 2
  taken = inputs * GROUPS * tile + GROUPS * TILE * TILE * 2
  return min(4, (hopper.SHARED_MEMORY - taken) // tile)


def _slot(i: Any, slots: int) -> Any:
  """Where the tile i of the weights goes; even: of the first kernel.

  The second kernel's tile is done with before the first's in the gradient. If
  there are two slots, the next of the first kernel goes there, to come early.
  """
  return lax.rem(i + lax.div(i, 2) if slots == 2 else i, slots)


def _scratch(rows: int, steps: int, slots: int, interpret: Any) -> Any:
  """Of both kernels: tiles of weights and of the hidden layer, barriers."""
  scratch = {
    "ring": hopper.tile(slots, rows, TILE),
    "hidden": hopper.tile(GROUPS, TILE, TILE),
    "b1": plgpu.SMEM((steps, TILE), jnp.float32),
    "full": plgpu.Barrier(num_barriers=slots),
    "empty": plgpu.Barrier(num_arrivals=GROUPS, num_barriers=slots),
    "done": plgpu.Barrier(num_arrivals=GROUPS),
  }
  if interpret is not None:
    scratch["spare"] = plgpu.SMEM((GROUPS, TILE, rows), jnp.bfloat16)
  return scratch


def _columns(group: Any) -> Any:
  return pl.ds((lax.axis_index("columns") * GROUPS + group) * TILE, TILE)


def _load_channels(memory: Any, shared: Any, full: Any, rows: int) -> None:
  for group in range(GROUPS):
    plgpu.copy_gmem_to_smem(
      memory.at[lax.axis_index("image"), pl.ds(0, rows), _columns(group)],
      shared.at[group],
      full.at[group],
    )


def _load_weights(r: Any, slots: int, rows: int, steps: int) -> None:
  """Both kernels in turn, 64 columns at a time."""

  def load(i: Any, slot: Any) -> None:
    columns = pl.ds(lax.div(i, 2) * TILE, TILE)
    for which, memory in enumerate((r.w1_in, r.w2_in)):

      @pl.when(lax.rem(i, 2) == which)
      def _load(memory: Any = memory) -> None:
        plgpu.copy_gmem_to_smem(
          memory.at[pl.ds(0, rows), columns], r.ring.at[slot], r.full.at[slot]
        )

  hopper.stream(slots, 2 * steps, r.empty, load, lambda i: _slot(i, slots))


def _store(group: Any, r: Any, value: jax.Array) -> None:
  """To the group's columns, by a tile that no weights are in any more."""
  plgpu.barrier_arrive(r.done)
  plgpu.barrier_wait(r.done)
  r.ring[group] = value.astype(r.out.dtype)
  plgpu.commit_smem()
  rows = pl.ds(0, value.shape[0])
  plgpu.copy_smem_to_gmem(
    r.ring.at[group],
    r.out.at[lax.axis_index("image"), rows, _columns(group)],
  )
  plgpu.wait_smem_to_gmem(0)
