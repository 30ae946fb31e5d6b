"""Digests: the same wherever an array lies, others after any change."""

import json
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from mixer import sharding
from mixer.storage import digests

_SHAPES = [(), (1,), (7,), (3, 4), (2, 3, 5)]
_DTYPES = ["float32", "int32", "uint32", "bfloat16", "float16", "int8", "bool"]


def by_the_docstring(x: np.ndarray) -> str:
  """With Python's integers, element by element."""

  def mix(h: int) -> int:
    h = (h ^ h >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 16

  size = x.dtype.itemsize
  raw = x.tobytes()
  sum_u = sum_v = 0
  for i in range(x.size):
    b = int.from_bytes(raw[i * size : (i + 1) * size], "little")
    u = mix(b ^ mix(i))
    sum_u += u
    sum_v += u * (mix(i) | 1)
  return f"{sum_u % 2**32:08x}{sum_v % 2**32:08x}"


@st.composite
def arrays(draw):
  shape, name = draw(st.sampled_from(_SHAPES)), draw(st.sampled_from(_DTYPES))
  dtype = jnp.dtype(name)
  count = int(np.prod(shape))
  if name == "bool":
    raw = bytes(
      draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    )
  else:
    size = count * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
  return np.frombuffer(raw, dtype).reshape(shape)


def on_devices():
  """Lets small arrays be summed up on their devices, too."""
  return unittest.mock.patch.object(digests, "_SMALL", -1)


@given(arrays())
@settings(max_examples=60, deadline=None)
def test_what_the_docstring_says(x):
  expected = {"x": by_the_docstring(x)}
  assert digests.of({"x": x}) == expected
  assert digests.of({"x": jnp.asarray(x)}) == expected
  with on_devices():
    assert digests.of({"x": jnp.asarray(x)}) == expected


@given(arrays(), st.data())
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_changes_both_halves(x, data):
  size = 1 if x.dtype == bool else 8 * x.dtype.itemsize
  bit = data.draw(st.integers(0, size - 1))
  place = data.draw(st.integers(0, x.size - 1))
  raw = bytearray(x.tobytes())
  raw[place * x.dtype.itemsize + bit // 8] ^= 1 << bit % 8
  other = np.frombuffer(bytes(raw), x.dtype).reshape(x.shape)
  a, b = digests.of({"x": x})["x"], digests.of({"x": other})["x"]
  assert a[:8] != b[:8] and a[8:] != b[8:]


LARGE = np.random.default_rng(0).standard_normal((64, 1100), np.float32)


@given(st.permutations(range(8)))
@settings(max_examples=30, deadline=None)
def test_rows_in_another_order_show(order):
  changed = LARGE[:8][list(order)]
  same = digests.of([changed]) == digests.of([LARGE[:8]])
  assert same == (order == sorted(order))


def test_common_damage_shows():
  variants = [LARGE, -LARGE, np.roll(LARGE, 1), np.roll(LARGE, 1, axis=0)]
  variants += [np.zeros_like(LARGE), LARGE.T.reshape(LARGE.shape)]
  for rows in (slice(0, 1), slice(5, 9), slice(63, 64)):
    variants.append(LARGE.copy())
    variants[-1][rows] = 0
    variants.append(LARGE.copy())
    variants[-1][rows, :2] *= -1  # Two flips of the same bit.
  found = [digests.of({"x": x})["x"] for x in variants]
  assert len({*found}) == len(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_on_any_devices(dtype):
  x = LARGE.astype(jnp.dtype(dtype))
  expected = digests.of({"x": x})
  for count in (1, 2, 4, 8):
    mesh = sharding.make_mesh(jax.devices()[:count])
    for spec in [(), ("data",), (None, "data")]:
      if spec == (None, "data") and count == 8:
        continue  # 1100 columns.
      where = NamedSharding(mesh, PartitionSpec(*spec))
      assert digests.of({"x": jax.device_put(x, where)}) == expected
  assert digests.of({"x": np.asfortranarray(x)}) == expected
  assert digests.of({"x": np.stack([x, x], -1)[..., 1]}) == expected


def test_nothing_but_sums_travels():
  mesh = sharding.make_mesh()
  x = jax.device_put(LARGE, sharding.batch(mesh))
  text = str(digests._sums.lower(x).compile().as_text())
  assert "all-reduce" in text
  for moving in ("all-gather", "all-to-all", "collective-permute"):
    assert moving not in text
  assert "f32[8,1100]" in text and "f32[64," not in text


def test_names_are_those_of_the_leaves():
  tree = {"a": {"b": np.zeros(2, np.float32)}, "c": (np.ones(3, np.int32),)}
  assert digests.of(tree).keys() == {"a/b", "c/0"}
  other = {"a": {"b": np.zeros(2, np.float32)}, "c": (np.zeros(3, np.int32),)}
  assert digests.different(digests.of(tree), digests.of(other)) == ["c/0"]
  assert digests.different({"a": "1", "b": "2"}, {"b": "2", "c": "3"}) == [
    "a",
    "c",
  ]


def test_what_has_none():
  with pytest.raises(ValueError, match="no digest of float64"):
    digests.of({"x": np.zeros(3)})
  huge = jax.ShapeDtypeStruct((2**17, 2**16), jnp.float32)
  with pytest.raises(ValueError, match="too large for a digest"):
    digests.of({"x": huge})


METADATA = {"config": {"a": (1, 2.5), "b": None}, "names": ["é", "x"], "3": 1}
TREE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


def test_a_seal_comes_apart():
  sealed = json.loads(json.dumps(digests.seal(METADATA, TREE)))
  metadata, found = digests.unseal(sealed)
  assert metadata == json.loads(json.dumps(METADATA))
  assert found == {"w": ("float32", (2, 3), by_the_docstring(TREE["w"]))}
  assert digests.unseal({"x": 1}) == ({"x": 1}, None)


def test_a_seal_shows_every_change():
  text = json.dumps(digests.seal(METADATA, TREE), ensure_ascii=False).encode()
  told = 0
  for place in range(len(text)):
    for bit in (0, 1, 4, 5):
      changed = bytearray(text)
      changed[place] ^= 1 << bit
      try:
        content = json.loads(changed)
      except ValueError:
        continue
      if content == json.loads(text):
        continue
      with pytest.raises(ValueError, match="not as they were saved"):
        digests.unseal(content)
      told += 1
  assert told > 300
