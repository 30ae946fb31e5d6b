"""Accelerators by name: what a chip can do, how a slice of them is wired.

Names of slices are those of Google's accelerator types, where v5e and v6e
count chips, and v3, v4 and v5p count TensorCores, two a chip: v5p-64 has 32
chips. For GPUs they count GPUs, as in h100-8.
"""

import dataclasses
import math
import re
from typing import NamedTuple

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
  ("H100 PCIe", 756e12),
  ("H100 NVL", 835e12),
  (r"\bL4\b", 121e12),
  (r"V100", 125e12),
)
# Slices that Google lets, as grids of chips.
_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_3D = (
  *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8)),
  *((4, 8, 8), (8, 8, 8), (8, 8, 16)),
)
_V3 = (_2D[1], *_2D[3:], (16, 32), (32, 32))
_GRIDS = {"v3": _V3, "v4": _3D, "v5e": _2D, "v5p": _3D, "v6e": _2D}
_SLICES = {k: {math.prod(g): g for g in grids} for k, grids in _GRIDS.items()}
_COUNTS_CORES = ("v3", "v4", "v5p")
# As others write it: gcloud, SkyPilot, Slurm and people.
_SPELLINGS = (
  (r"[\s_]+", "-"),
  (r"^(nvidia|tpu)-", ""),
  (r"^v(\d)-?lite(pod)?", r"v\1e"),
  (r"^(\d+)-?x-?(\w+)$", r"\2-\1"),
  (r"^(\w+?)-?[x:]-?(\d+)$", r"\1-\2"),
)


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
    if self.name in ("v5e-8", "v6e-8"):
      return 1
    return math.ceil(self.num_devices / self.chip.host_devices)

  @property
  def host_cores(self) -> float:
    """Physical cores of one host, or of the share of it that is rented."""
    here = self.num_devices / self.num_hosts
    return self.chip.host_cores * here / self.chip.host_devices

  def all_reduce_seconds(self, size: float) -> float:
    """Time to sum `size` bytes of every device over all devices.

    In rings: on TPUs over two links for each axis of the grid that is a ring,
    one for each that is a line; two TensorCores of a chip share them. On GPUs
    inside each host, then of an eighth between hosts.
    """
    if self.num_devices == 1:
      return 0.0
    if self.grid:
      links = sum(2 if self._is_ring(n) else 1 for n in self.grid if n > 1)
      n = self.num_chips
      return 2 * size * (n - 1) / n / (links * self.chip.link)
    here = min(self.num_devices, self.chip.host_devices)
    seconds = 2 * size * (here - 1) / here / self.chip.link
    hosts = self.num_hosts
    if hosts > 1:
      seconds += 2 * size / here * (hosts - 1) / hosts / self.chip.network
    return seconds

  def _is_ring(self, length: int) -> bool:
    """Whether an axis of the grid is wired from its end to its start."""
    if self.chip.name in ("v4", "v5p"):
      return all(n % 4 == 0 for n in self.grid)  # Whole cubes of 4 x 4 x 4.
    return length == {"v3": 32}.get(self.chip.name, 16)


def peak(device_kind: str) -> float | None:
  """FLOP/s of a device in bfloat16, None where it isn't known."""
  for pattern, flops in (*((c.kind, c.flops) for c in CHIPS), *_OTHER_PEAKS):
    if re.search(pattern, device_kind):
      return flops
  return None


def names() -> dict[str, list[str]]:
  """The slices there are, by chip; GPUs may be any multiple of 8 as well."""
  return {
    chip.name: [
      f"{chip.name}-{n * (2 if chip.name in _COUNTS_CORES else 1)}"
      for n in _SLICES.get(chip.name, (1, 2, 4, 8, 16))
    ]
    for chip in CHIPS
  }


def parse(name: str) -> Slice:
  """The slice of a name such as "v5e-64"; also as others write it, "8xH100".

  Raises:
    UserError: no such name; lists those that there are.
  """
  text = name.strip().lower()
  for pattern, by in _SPELLINGS:
    text = re.sub(pattern, by, text)
  kind, _, count = text.partition("-")
  chip = next((c for c in CHIPS if c.name == kind), None)
  known = names().get(kind, [])
  is_gpu = kind not in _SLICES
  more = re.fullmatch("[1-9][0-9]{0,5}", count) and int(count) % 8 == 0
  if not chip or not (text in known or (is_gpu and more)):
    listed = known or [f"{g[0]} to {g[-1]}" for g in names().values()]
    raise UserError(
      f"--hardware={name} is no slice; there are {', '.join(listed)} (v3, v4 "
      "and v5p count TensorCores, two a chip; GPUs come in any multiple of 8)."
    )
  chips = int(count) // (2 if kind in _COUNTS_CORES else 1)
  return Slice(text, chip, chips, () if is_gpu else _SLICES[kind][chips])
