"""What the kernels for Hopper GPUs share: tiles, operands, GELU, a ring.

A kernel here is three groups of 128 threads, "warpgroups": two multiply, the
third brings tiles to shared memory. Barriers say which tiles are full and
which are free again. Tiles are swizzled as Hopper's matrix unit (WGMMA) reads
them: 64 rows at a time of the left operand, up to 256 columns of the right
one, sums in the registers of one warpgroup.
"""

import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mixer.mlp import GELU_CUBE, GELU_ROOT

TILE = 64  # Rows of WGMMA's left operand; 128 bytes of bfloat16.
GROUPS = 2  # Warpgroups that multiply; one more loads.
MULTIPROCESSORS = 132  # Of an H100 SXM or an H200.
# Bytes of a multiprocessor's shared memory that a kernel may have, less some
# for barriers and biases.
SHARED_MEMORY = 227 * 1024 - 3 * 1024

# Of a thread that multiplies and one that loads. Three warpgroups start with
# 168 each: what two of them gain must not be more than what the third gives
# up, or they wait for ever.
_REGISTERS = (240, 24)

# Of GELU's polynomial within tanh.
_LINEAR, _CUBIC = GELU_ROOT, GELU_ROOT * GELU_CUBE


def up(size: int, multiple: int) -> int:
  """The next multiple."""
  return -(-size // multiple) * multiple


def tile(*shape: int, dtype: Any = jnp.bfloat16, columns: int = TILE) -> Any:
  """Shared memory of `shape` for WGMMA; `columns` are swizzled together."""
  width = columns * jnp.dtype(dtype).itemsize
  return plgpu.SMEM(
    shape,
    dtype,
    transforms=(
      plgpu.TilingTransform((8, columns)),
      plgpu.SwizzleTransform(width),
    ),
  )


def turned(ref: Any, spare: Any) -> Any:
  """A matrix in shared memory, transposed as an operand of WGMMA.

  The matrix unit reads either order. JAX's interpreter of these kernels
  doesn't know transposed references: it copies into `spare`, which is None in
  what is compiled.
  """
  if spare is None:
    return ref.transpose((1, 0))
  spare[...] = ref[...].T
  return spare


def along_rows(bias: jax.Array, columns: int) -> jax.Array:
  """`[M]` -> `[M, columns]`."""
  return lax.broadcast_in_dim(bias, (bias.shape[0], columns), (0,))


def gelu(x: jax.Array) -> jax.Array:
  """The tanh approximation, float32."""
  return 0.5 * x * (1.0 + jnp.tanh(x * (_LINEAR + _CUBIC * x * x)))


def gelu_slope(x: jax.Array) -> jax.Array:
  """The derivative of `gelu`, in a form that keeps few values alive."""
  inner = x * (_LINEAR + _CUBIC * x * x)
  tanh = jnp.tanh(inner)
  outer = 3.0 * inner - 2.0 * _LINEAR * x  # x times the slope of `inner`.
  return (0.5 + 0.5 * tanh) * (1.0 + outer * (1.0 - tanh))


def stream(
  slots: int,
  count: Any,
  empty: Any,
  load: Callable[[Any, Any], None],
  slot_of: Callable[[Any], Any] | None = None,
) -> None:
  """Calls `load(i, slot)` for all i < count, each when its slot is free.

  At the end every slot is free again. The tile i goes to `slot_of(i)`, or in
  turn.
  """

  def body(i: Any, _: Any) -> tuple[()]:
    slot = slot_of(i) if slot_of else lax.rem(i, slots)

    @pl.when(i >= slots)
    def _free() -> None:
      plgpu.barrier_wait(empty.at[slot])

    @pl.when(i < count)
    def _load() -> None:
      load(i, slot)

    return ()

  lax.fori_loop(0, count + slots, body, ())


def sums(rows: int, columns: int) -> Any:
  """A sum of matmuls, float32, in the registers of a warpgroup."""
  return plgpu.WGMMAAccumulatorRef((rows, columns), jnp.float32)


def kernel(
  multiply: Callable[[Any, Any], None],
  load: Callable[[Any], None],
  *,
  name: str,
  inputs: dict[str, jax.Array],
  outputs: dict[str, jax.ShapeDtypeStruct],
  scratch: dict[str, Any],
  grid: dict[str, int],
  interpret: Any,
) -> list[jax.Array]:
  """Runs a kernel of `GROUPS` warpgroups that multiply and one that loads.

  Args:
    multiply: takes the warpgroup's index and all references by name.
    load: takes the references.
    name: for profiles and compilers' messages.
    inputs: arrays, in memory.
    outputs: shapes and dtypes of what comes out, in memory.
    scratch: shared memory and barriers.
    grid: names and sizes of the grid's axes, the fastest first.
    interpret: None to compile, or the parameters of JAX's interpreter.

  Returns:
    The outputs.
  """

  def body(*memory: Any, **shared: Any) -> None:
    names = zip((*inputs, *outputs), memory, strict=True)
    refs = types.SimpleNamespace(**dict(names), **shared)
    group = lax.axis_index("group")

    @pl.when(group < GROUPS)
    def _multiply() -> None:
      plgpu.set_max_registers(_REGISTERS[0], action="increase")
      multiply(group, refs)

    @pl.when(group == GROUPS)
    def _load() -> None:
      plgpu.set_max_registers(_REGISTERS[1], action="decrease")
      load(refs)

  body.__name__ = body.__qualname__ = name
  options = {} if interpret is None else {"interpret": interpret}
  run = plgpu.kernel(
    body,
    out_type=tuple(outputs.values()),
    scratch_types=scratch,
    grid=tuple(grid.values()),
    grid_names=tuple(grid),
    num_threads=GROUPS + 1,
    thread_name="group",
    compiler_params=plgpu.CompilerParams(
      approx_math=True,  # tanh as the hardware has it, good to 2**-11.
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
    ),
    **options,
  )
  return list(run(*inputs.values()))
