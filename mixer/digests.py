"""A digest of each array, equal however the array is split over devices.

Not cryptographic: it is against disks, networks and memory, not against
people. Element i with bits b, as an unsigned integer of 32 bits, becomes

  u = mix(b ^ mix(i)),    v = u * (mix(i) | 1)

with MurmurHash3's finalizer for `mix` (Appleby, 2011), and the digest is the
sum of all u and the sum of all v, each modulo 2**32. For a given place b -> u
and b -> v are one to one, so a change of one element always shows, and any
other change but for a chance of about 2**-58. Integers add up to the same sum
in any order: each device sums up its own part, and only the sums travel.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import weights

_MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)
_BITS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32}
# Elements that the host sums up in one go: what fits a cache.
_CHUNK = 1 << 15
# Arrays of at most so many elements are summed on the host: a copy takes less
# time than compiling the sum for one more shape.
_SMALL = 1 << 14


def of(tree: Any) -> dict[str, str]:
  """The digest of every leaf, 16 hexadecimal digits by '/'-joined name.

  Large arrays of JAX are summed up where they are; where several hosts have
  parts of them, all have to call this. ValueError for more than 2**32
  elements, or elements that don't have 1, 2 or 4 bytes.
  """
  leaves = weights.flatten(tree)
  for name, leaf in leaves.items():
    size = np.dtype(leaf.dtype).itemsize
    if leaf.size > 2**32 or size not in _BITS:
      raise ValueError(f"no digest of {name}, {leaf.dtype} {leaf.shape}")
  # All is under way on the devices before the first result is waited for.
  on_device = {k: _sums(v) for k, v in leaves.items() if _is_large(v)}
  small = {k: v for k, v in leaves.items() if k not in on_device}
  sums = {k: _host_sums(v) for k, v in jax.device_get(small).items()}
  sums |= jax.device_get(on_device)
  return {k: "".join(f"{int(x):08x}" for x in sums[k]) for k in leaves}


def different(now: Mapping[str, str], then: Mapping[str, str]) -> list[str]:
  """The names, in order, under which two results of `of` differ."""
  return sorted(k for k in {*now, *then} if now.get(k) != then.get(k))


def _is_large(leaf: Any) -> bool:
  """Whether to sum it up on its devices."""
  if not isinstance(leaf, jax.Array):
    return False
  here = leaf.is_fully_addressable or leaf.is_fully_replicated
  return leaf.size > _SMALL or not here


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
  """The two sums, [2] uint32, of an array of any shape."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize])
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(x.ndim):
    stride = np.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
    place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
  u, v = _terms(bits.astype(jnp.uint32), place)
  return jnp.stack([jnp.sum(u), jnp.sum(v)])


def _host_sums(x: np.ndarray) -> np.ndarray:
  """As `_sums`; beside a contiguous array it takes memory for some chunks."""
  bits = np.ascontiguousarray(x).reshape(-1).view(_BITS[x.dtype.itemsize])
  totals = np.zeros(2, np.uint32)
  for start in range(0, x.size, _CHUNK):
    part = bits[start : start + _CHUNK].astype(np.uint32)
    place = np.arange(start, start + len(part), dtype=np.uint32)
    totals += np.sum(_terms(part, place), axis=1, dtype=np.uint32)
  return totals


def _terms(bits: Any, place: Any) -> tuple[Any, Any]:
  """u and v of elements, of JAX or numpy, at these places."""
  place = _mix(place)
  u = _mix(bits ^ place)
  return u, u * (place | np.uint32(1))


def _mix(x: Any) -> Any:
  """[...] uint32 -> [...] uint32, one to one."""
  for shift, factor in zip((16, 13), _MULTIPLIERS, strict=True):
    x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
  return x ^ (x >> np.uint32(16))
