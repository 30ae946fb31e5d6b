"""Accelerators by name: data sheets, and how slices are wired.

Slices have the names of Google's accelerator types: v5e and v6e count chips;
v3, v4 and v5p count TensorCores, two a chip: v5p-64 has 32 chips. Names of GPUs
count GPUs, as in h100-8.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from mixer.errors import UserError

_GIB = 2**30


class Chip(NamedTuple):
  """What the vendor's data sheet says of a device, as JAX counts devices."""

  name: str  # As in the names of slices.
  kind: str  # A regular expression that `device_kind` contains.
  flops: float  # Matmul peak in bfloat16 without sparsity, FLOP/s.
  memory: float  # Bytes.
  bandwidth: float  # Of the memory, bytes/s.
  # Bytes/s out of a chip over one of its links to neighbours (TPU), or over
  # all of them through the switch of its host (GPU).
  link: float
  network: float  # Bytes/s to other hosts, where links don't lead there.
  host_devices: int
  host_cores: int  # Physical cores of a host with so many devices.
  devices_per_chip: int = 1  # What is rented is chips.


# TPU: docs.cloud.google.com/tpu/docs/v3, v4, v5e, v5p, v6e (read 2026-11-23).
# A chip's bidirectional bandwidth there, over twice its links (4, in v4 and v5p
# 6), is that of one link; for v3 and v4 a pod's all-reduce bandwidth over its
# chips and their links. vCPUs of a host are two a core.
# GPU: NVIDIA's data sheets of the SXM modules (NVLink in both directions, so
# half of it goes out) and of DGX A100 and DGX H100/H200 (cores, and one network
# card a GPU: 200 and 400 Gbit/s).
_H100 = "H100(?! PCIe| NVL)"
CHIPS = (
  # A TensorCore is a device: half a chip of 123 TFLOP/s, 32 GiB, 900 GB/s.
  Chip("v3", "TPU v3", 61.5e12, 16 * _GIB, 450e9, 83e9, 0, 8, 48, 2),
  Chip("v4", "TPU v4", 275e12, 32 * _GIB, 1200e9, 45e9, 0, 4, 120),
  Chip("v5e", "TPU v5 ?(lite|e)", 197e12, 16 * _GIB, 819e9, 50e9, 0, 4, 56),
  Chip("v5p", "TPU v5p?$", 459e12, 95 * _GIB, 2765e9, 100e9, 0, 4, 104),
  Chip("v6e", "TPU v6 ?(lite|e)", 918e12, 32 * _GIB, 1638e9, 100e9, 0, 4, 90),
  Chip("a100", "A100", 312e12, 80e9, 2039e9, 300e9, 25e9, 8, 128),
  Chip("h100", _H100, 989e12, 80e9, 3350e9, 450e9, 50e9, 8, 112),
  Chip("h200", "H200", 989e12, 141e9, 4800e9, 450e9, 50e9, 8, 112),
)
# Peaks of devices that nothing more is known of here.
_OTHER_PEAKS = (
  *(("H100 PCIe", 756e12), ("H100 NVL", 835e12)),
  *((r"\bL4\b", 121e12), (r"V100", 125e12)),
)
# Slices that Google rents, as grids of chips.
_2D = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16".split()
_3D = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16".split()
_V3 = "2x2 4x4 4x8 8x8 8x16 16x16 16x32 32x32".split()
_GRIDS = {"v3": _V3, "v4": _3D, "v5e": _2D, "v5p": _3D, "v6e": _2D}
_COUNTS_CORES = ("v3", "v4", "v5p")


@dataclasses.dataclass(frozen=True)
class Slice:
  """Devices that train together."""

  name: str  # Such as "v5e-64".
  chip: Chip
  num_chips: int  # As they are rented.
  grid: tuple[int, ...] = ()  # Chips along each axis; () for GPUs.

  @property
  def num_devices(self) -> int:
    """As JAX counts them."""
    return self.num_chips * self.chip.devices_per_chip

  @property
  def num_hosts(self) -> int:
    """Processes; a v5e or v6e slice of up to 8 chips has one."""
    whole = self.name in ("v5e-8", "v6e-8")
    return 1 if whole else -(-self.num_devices // self.chip.host_devices)

  @property
  def host_cores(self) -> float:
    """Physical cores of one host, or of the share of it that is rented."""
    here = self.num_devices / self.num_hosts
    return self.chip.host_cores * here / self.chip.host_devices

  @property
  def program_memory(self) -> int:
    """Bytes of a device's memory that a program can have."""
    # Of a TPU's, XLA keeps a part to itself: 16 GiB leave 15.75. Of a GPU's,
    # JAX takes 75 % (XLA_PYTHON_CLIENT_MEM_FRACTION).
    memory = self.chip.memory
    return round(memory - 2**28 if self.grid else memory * 0.75)

  def all_reduce_seconds(self, size: float) -> float:
    """Time to sum `size` bytes of every device over all devices, in rings.

    On TPUs over two links for each axis of the grid that is a ring, one for
    each that is a line; on GPUs in each host, then of an eighth between hosts.
    """

    def ring(length: int, size: float, bandwidth: float) -> float:
      return 2 * size * (length - 1) / length / bandwidth if length > 1 else 0.0

    if self.grid:
      # Rings are whole cubes of 4 x 4 x 4, or the longest axis of a pod.
      rings = {32 if self.chip.name == "v3" else 16}
      if len(self.grid) == 3:
        rings = {*self.grid} if all(n % 4 == 0 for n in self.grid) else {}
      links = sum(2 if n in rings else 1 for n in self.grid if n > 1)
      return ring(self.num_chips, size, links * self.chip.link)
    here = min(self.num_devices, self.chip.host_devices)
    inside = ring(here, size, self.chip.link)
    return inside + ring(self.num_hosts, size / here, self.chip.network)

  def describe_devices(self) -> list[Any]:
    """Its devices, which needn't exist, for the compiler."""
    from jax.experimental import topologies

    if self.chip.name in ("v4", "a100", "h200"):
      raise ValueError(
        "a v4 is two devices to it, and of GPUs it knows the H100"
      )
    grid = "x".join(map(str, self.grid))
    words: Any = {
      "platform": "tpu",
      "topology_name": f"{self.chip.name}:{grid}",
    }
    if self.num_hosts == 1 and self.num_chips != 4:  # One host has all.
      words["chips_per_host_bounds"] = (*self.grid, 1, 1)[:3]
    if not self.grid:
      here = min(self.num_devices, self.chip.host_devices)
      # XLA's own description of an H100 SXM, a GpuTargetConfigProto as text.
      target = pathlib.Path(__file__).parent / "h100.txt"
      words = {"platform": "cuda", "topology_name": "h100"}
      words["target_config"] = target.read_text("utf-8")
      words["topology"] = f"1x{self.num_hosts}x{here}"
    return list(topologies.get_topology_desc(**words).devices)


def peak(device_kind: str) -> float | None:
  """FLOP/s of a device in bfloat16, None where it isn't known."""
  for pattern, flops in (*((c.kind, c.flops) for c in CHIPS), *_OTHER_PEAKS):
    if re.search(pattern, device_kind):
      return flops
  return None


def _slices(chip: Chip) -> Iterator[Slice]:
  for text in _GRIDS.get(chip.name, ()):
    grid = tuple(map(int, text.split("x")))
    chips = math.prod(grid)
    count = chips * (2 if chip.name in _COUNTS_CORES else 1)
    yield Slice(f"{chip.name}-{count}", chip, chips, grid)
  for n in () if chip.name in _GRIDS else (1, 2, 4, *range(8, 1025, 8)):
    yield Slice(f"{chip.name}-{n}", chip, n)


SLICES = {found.name: found for chip in CHIPS for found in _slices(chip)}


def parse(name: str) -> Slice:
  """The slice of a name such as "v5e-64", "v5litepod-64" or "8xH100"."""
  text = name.lower().replace("v5litepod", "v5e")
  text = re.sub(r"^(\d+)x(\w+)$", r"\2-\1", text)
  if text not in SLICES:
    kind = text.partition("-")[0]
    known = [n for n in SLICES if n.startswith(f"{kind}-")][:12]
    known = known or [f"{chip.name}-8" for chip in CHIPS]
    raise UserError(
      f"--hardware={name} is no slice; take {', '.join(known)} ... (v3, v4 and "
      "v5p count TensorCores, two a chip; GPUs come in multiples of 8)."
    )
  return SLICES[text]
