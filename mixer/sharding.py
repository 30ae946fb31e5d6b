"""The mesh, and where arrays are on it.

Two axes, `data` and `fsdp`, and the batch is split over both. Weights are
split over `fsdp`, whose devices share one copy (of size 1 unless
`sharding.fsdp` asks for more). What only the update touches, the optimizer's
state and the average of the weights, is split over all devices (ZeRO-1, arXiv
1910.02054). Small arrays are whole on every device.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mixer import config as config_lib

AXES = ("data", "fsdp")


def make_mesh(devices: Sequence[Any] | None = None, fsdp: int = 1) -> Mesh:
  """The mesh `(devices / fsdp, fsdp)` of `AXES`; by default all devices'."""
  devices = jax.devices() if devices is None else devices
  shape, types = (len(devices) // fsdp, fsdp), (AxisType.Auto,) * 2
  order = jax.make_mesh(shape, AXES, axis_types=types, devices=devices).devices
  # Host by host, so that host p holds the p-th part of a batch, and a batch is
  # the same on any number of hosts. JAX's order, which follows the wires, need
  # not be so on a slice; within a host it is kept.
  ordered = sorted(order.flat, key=lambda d: d.process_index)
  return Mesh(np.array(ordered).reshape(shape), AXES, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
  """The leading axis split over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def batches(mesh: Mesh) -> NamedSharding:
  """As `batch`, behind an axis of several batches."""
  return NamedSharding(mesh, PartitionSpec(None, AXES))


def weights(mesh: Mesh, tree: Any, config: config_lib.Config) -> Any:
  """A sharding for every parameter, or gradient that goes with one."""
  return _split(mesh, tree, ("fsdp",), config.sharding.min_size)


def optimizer(mesh: Mesh, tree: Any, config: config_lib.Config) -> Any:
  """A sharding for every array that only the update touches.

  It cuts the shards of `weights` further, so that gathering these from new
  weights that are split so is all that has to be communicated.
  """
  axes = ("fsdp", "data") if config.sharding.zero1 else ("fsdp",)
  return _split(mesh, tree, axes, config.sharding.min_size)


def _split(mesh: Mesh, tree: Any, axes: Sequence[str], min_size: int) -> Any:
  sizes = {axis: mesh.shape[axis] for axis in axes}
  return jax.tree.map(
    lambda x: NamedSharding(mesh, split_shape(x.shape, sizes, min_size)), tree
  )


def split_shape(
  shape: Sequence[int], axes: Mapping[str, int], min_size: int
) -> PartitionSpec:
  """How an array is split, by its shape alone.

  One axis of the mesh after the other splits the first dimension of what is
  left on a device that its size divides; where it divides none, the array is
  not split over it. The first, as what a device has is then one piece of
  memory: on 8 chips libtpu makes a true reduce-scatter of such gradients only.
  """
  left = list(shape)
  names: list[tuple[str, ...]] = [() for _ in shape]
  for axis, size in axes.items() if math.prod(shape) >= min_size else ():
    divisible = [i for i, n in enumerate(left) if n % size == 0]
    if size > 1 and divisible:
      left[divisible[0]] //= size
      names[divisible[0]] += (axis,)
  while names and not names[-1]:
    names.pop()
  return PartitionSpec(*(n or None for n in names))


def put_batch(mesh: Mesh, local: Mapping[str, np.ndarray], where: Any = None):
  """`[B / hosts, ...]` of each host -> `[B, ...]`, split over all devices."""
  put = jax.make_array_from_process_local_data
  return {k: put(where or batch(mesh), v) for k, v in local.items()}


def put_batches(mesh: Mesh, local: Sequence[Mapping[str, np.ndarray]]):
  """As `put_batch`, of several: arrays `[n, B, ...]`."""
  stacked = {k: np.stack([b[k] for b in local]) for k in local[0]}
  return put_batch(mesh, stacked, batches(mesh))
