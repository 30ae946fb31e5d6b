"""How long kernels would take: a prediction, nothing is measured.

Each runs alone, and either its matmuls or its bytes take all of its time, at
the shares of the data sheet's numbers that `formulas` gives well-made programs;
elementwise arithmetic costs nothing, and no cache spares a byte. What a TPU
fetches beside other work costs nothing either, as long as the memory can
deliver all bytes in that time.
"""

import dataclasses
from collections.abc import Callable, Sequence

from mixer.planning import formulas, hardware
from mixer.planning.kernels import Kernel

# Seconds from the end of a kernel to the start of the next, and of what else a
# kernel without work takes. An assumption: usual values, of no device at hand.
LAUNCH = {"gpu": 2.5e-6, "tpu": 0.5e-6}
# Matmuls relative to bfloat16's, by type of the operands: GPUs multiply float32
# as TF32 unless told otherwise, TPUs as bfloat16.
_RATES = {
  "gpu": {"f32": 0.5, "f64": 0.0677, "f8": 2.0, "s8": 2.0},
  "tpu": {"f64": 0.1},
}


@dataclasses.dataclass(frozen=True)
class Sum:
  """Kernels together.

  Attributes:
    count: that run.
    seconds: predicted.
    flop: of matmuls.
    size: bytes read and written.
  """

  count: int
  seconds: float
  flop: int
  size: int


def seconds(kernel: Kernel, target: hardware.Slice) -> float:
  """Predicted time of one execution; 0 of what runs beside others."""
  if kernel.beside:
    return 0.0
  chip, platform = target.chip, target.platform
  rates = _RATES[platform]
  rate = rates.get(kernel.dtype, rates.get(kernel.dtype[:2], 1.0))
  matmul = kernel.flop / (chip.flops * rate * formulas.MATMUL_SHARE)
  memory = kernel.size / (chip.bandwidth * formulas.MEMORY_SHARE)
  return max(matmul, memory) + LAUNCH[platform]


def total(kernels: Sequence[Kernel], target: hardware.Slice) -> Sum:
  """All executions of kernels, one after the other."""
  size = sum(k.times * k.size for k in kernels)
  memory = size / (target.chip.bandwidth * formulas.MEMORY_SHARE)
  return Sum(
    sum(k.times for k in kernels),
    max(sum(k.times * seconds(k, target) for k in kernels), memory),
    sum(k.times * k.flop for k in kernels),
    size,
  )


def grouped(
  kernels: Sequence[Kernel],
  target: hardware.Slice,
  key: Callable[[Kernel], str],
) -> dict[str, Sum]:
  """`total` of the kernels of each key, the longest first."""
  groups: dict[str, list[Kernel]] = {}
  for k in kernels:
    groups.setdefault(key(k), []).append(k)
  found = {name: total(group, target) for name, group in groups.items()}
  return dict(sorted(found.items(), key=lambda x: -x[1].seconds))
