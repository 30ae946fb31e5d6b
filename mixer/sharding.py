"""The mesh, and where arrays lie on it.

One axis, `data`: the batch is split along it and the state is replicated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
  """These devices, or all of all hosts, on the axis `data`."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh(
    (len(devices),),
    ("data",),
    axis_types=(AxisType.Auto,),
    devices=devices,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
  """The leading axis split over `data`."""
  return NamedSharding(mesh, PartitionSpec("data"))


def state(mesh: Mesh, abstract: Any) -> Any:
  """A sharding for every leaf of an abstract state."""
  return jax.tree.map(lambda _: replicated(mesh), abstract)


def put_batch(
  mesh: Mesh, local: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """Makes global arrays of what each host has loaded.

  Args:
    mesh: of `make_mesh`.
    local: arrays `[B / hosts, ...]`; host p holds the p-th part.

  Returns:
    Arrays `[B, ...]`, split over all devices.
  """
  where = batch(mesh)
  return {
    k: jax.make_array_from_process_local_data(where, v)
    for k, v in local.items()
  }
