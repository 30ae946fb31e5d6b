"""Where arrays lie, and what devices send each other, read in compiled code."""

import collections
import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mixer import planning, sharding, train_step
from tests import updates

# The mesh.


@dataclasses.dataclass(frozen=True)
class Device:
  """As much of a device as a mesh asks for."""

  id: int
  process_index: int
  platform: str = "gpu"
  device_kind: str = "H100"


@pytest.mark.parametrize("fsdp", [1, 4])
def test_the_mesh_goes_host_by_host(fsdp):
  # As on a 4 x 4 TPU slice, where a host has 2 x 2 of the chips.
  hosts = (0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3)
  devices = [Device(i, p) for i, p in enumerate(hosts)]
  mesh = sharding.make_mesh(devices, fsdp)
  assert mesh.axis_names == ("data", "fsdp")
  assert mesh.devices.shape == (16 // fsdp, fsdp)
  order = [d.process_index for d in mesh.devices.flat]
  assert order == sorted(hosts)
  assert {d.id for d in mesh.devices.flat} == set(range(16))


@pytest.mark.parametrize("fsdp", [1, 2])
def test_a_batch_is_split_in_order_over_all_devices(fsdp):
  mesh = sharding.make_mesh(fsdp=fsdp)
  images = np.arange(16 * 3, dtype=np.uint8).reshape(16, 3)
  put = sharding.put_batch(mesh, {"image": images})["image"]
  np.testing.assert_array_equal(put, images)
  held = {s.device: s.data for s in put.addressable_shards}
  for i, device in enumerate(mesh.devices.flat):
    np.testing.assert_array_equal(held[device], images[2 * i : 2 * i + 2])


# The rule.


@pytest.mark.parametrize(
  ("shape", "axes", "expected"),
  [  # Those of B/16.
    ((768, 3072), {"data": 256}, P("data")),
    ((16, 16, 3, 768), {"data": 256}, P(None, None, None, "data")),
    ((16, 16, 3, 768), {"data": 8}, P("data")),
    ((196, 384), {"data": 64}, P(None, "data")),
    ((196, 384), {"data": 256}, P()),
    ((21_843,), {"data": 3}, P()),  # Too small.
    ((768, 3072), {"fsdp": 8, "data": 32}, P(("fsdp", "data"))),
    ((768, 3072), {"fsdp": 1, "data": 1}, P()),
    ((256, 392), {"fsdp": 256, "data": 8}, P("fsdp", "data")),
    ((), {"data": 8}, P()),
  ],
)
def test_how_arrays_are_split(shape, axes, expected):
  assert sharding.split_shape(shape, axes, 65_536) == expected


@given(
  st.lists(st.integers(1, 64), max_size=4),
  st.integers(1, 9),
  st.integers(1, 9),
  st.integers(1, 2000),
)
def test_splits_divide_and_refine(shape, data, fsdp, min_size):
  sizes = {"fsdp": fsdp, "data": data}
  spec = sharding.split_shape(shape, sizes, min_size)
  weights = sharding.split_shape(shape, {"fsdp": fsdp}, min_size)
  used = [a for names in spec if names for a in np.ravel(names)]
  assert len(used) == len(set(used))
  mesh = AbstractMesh((data, fsdp), sharding.AXES)
  # JAX refuses a dimension that is not divided.
  local = NamedSharding(mesh, spec).shard_shape(tuple(shape))
  whole = NamedSharding(mesh, weights).shard_shape(tuple(shape))
  assert all(big % small == 0 for big, small in zip(whole, local, strict=True))
  pieces = math.prod(shape) // math.prod(local)
  assert pieces == math.prod(sizes[a] for a in used)
  if math.prod(shape) < min_size:
    assert not used


# The state.


@pytest.fixture
def small(smoke_config):
  """A model of one block, of which all matrices and one bias are split."""
  smoke_config.model.update(
    num_blocks=1, hidden_dim=16, dropout=0.0, stochastic_depth=0.0
  )
  smoke_config.loss.mixup = 0.0
  smoke_config.sharding.min_size = 64
  return smoke_config


def build(config, devices=8):
  mesh = sharding.make_mesh(jax.devices()[:devices], config.sharding.fsdp)
  return train_step.Trainer(config, updates.PLAN, 10, mesh), mesh


def held(tree) -> int:
  """Bytes that the first device has."""
  shards = [x.addressable_shards[0].data for x in jax.tree.leaves(tree)]
  return sum(x.nbytes for x in shards)


def size(tree, least: int = 0) -> int:
  leaves = [x for x in jax.tree.leaves(tree) if x.size >= least]
  return sum(4 * x.size for x in leaves)


@pytest.mark.parametrize(
  ("devices", "zero1", "fsdp", "weights_parts", "optimizer_parts"),
  [
    (8, True, 1, 1, 8),
    (8, True, 2, 2, 8),
    updates.slow(1, True, 1, 1, 1),
    updates.slow(8, False, 1, 1, 1),
    updates.slow(8, False, 4, 4, 4),
  ],
)
def test_a_device_holds_its_share(
  small, devices, zero1, fsdp, weights_parts, optimizer_parts
):
  small.sharding.update(zero1=zero1, fsdp=fsdp)
  state = build(small, devices)[0].init()
  for name, parts in (
    ("params", weights_parts),
    ("ema", optimizer_parts),
    ("opt_state", optimizer_parts),
  ):
    tree = getattr(state, name)
    large = size(tree, 64)
    assert large > 0.9 * size(tree)
    assert held(tree) == size(tree) - large + large // parts, name
  assert held(state.step) == 4


# What is sent.

_ITEM = {"f32": 4, "bf16": 2, "s32": 4, "u8": 1, "pred": 1}


def sent(text: str | None) -> dict[tuple[str, str], int]:
  """(kind, element type) -> bytes that come out of such instructions."""
  assert text
  found: collections.Counter = collections.Counter()
  kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
  for type_, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
    for name, dims in re.findall(r"(\w+)\[([\d,]*)\]", type_):
      sides = [int(d) for d in dims.split(",") if d]
      found[kind, name] += _ITEM[name] * math.prod(sides)
  return dict(found)


def compile_step(config, **options):
  trainer, mesh = build(config)
  lowered = trainer.train_step.lower(
    trainer.abstract, planning.abstract_batch(config, mesh)
  )
  return trainer, lowered.compile(compiler_options=options or None)


@pytest.mark.parametrize(
  ("zero1", "sam", "accumulate"),
  [
    (True, 0.1, 1),
    updates.slow(False, 0.0, 1),
    updates.slow(True, 0.0, 4),
  ],
)
def test_gradients_are_reduced_once_and_weights_gathered_once(
  small, zero1, sam, accumulate
):
  small.sharding.zero1 = zero1
  small.optimizer.update(sam_rho=sam, accumulate=accumulate)
  trainer, compiled = compile_step(small)
  params = trainer.abstract.params
  got, gradients = sent(compiled.as_text()), 2 if sam else 1
  reduced = got.pop(("all-reduce", "f32"))
  # Beside the gradients there are sums for the loss and norms, a float each;
  # norms of split gradients and weights are sums of sums.
  assert 0 < reduced - gradients * size(params) <= 4 * 64
  # Of what is split, and so never of the optimizer's state, which is twice as
  # large; with SAM the perturbed weights once more.
  gathered = got.pop(("all-gather", "f32"), 0)
  assert gathered == (gradients * size(params, 64) if zero1 else 0)
  # No example moves.
  assert not got


def test_fsdp_gathers_weights_and_never_the_optimizer_s_state(small):
  small.sharding.fsdp = 8
  trainer, compiled = compile_step(small)
  params = trainer.abstract.params
  got = sent(compiled.as_text())
  reduced = got.pop(("all-reduce", "f32"))
  assert 0 < reduced - size(params) <= 4 * 64
  # The large ones forward, and for the gradients of what comes before them,
  # which the stem's are not needed for, nor a bias.
  stem, bias = 4 * 4 * 4 * 3 * 16, 4 * 64
  large = size(params, 64)
  assert got.pop(("all-gather", "f32")) == 2 * large - stem - bias
  assert not got


@pytest.fixture
def compiled_anew():
  """Nothing comes from the compilation cache."""
  for enabled in (False, True):
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()
    if not enabled:
      yield


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("dtype", [updates.slow("float32"), "bfloat16"])
def test_gradients_are_reduced_in_the_stated_precision(small, tmp_path, dtype):
  # XLA's CPU compiler sums bfloat16 in float32, so this reads what it is told
  # to: the code after it has been split for the devices.
  small.model.dtype = "bfloat16"
  small.sharding.reduce_dtype = dtype
  trainer, _ = compile_step(
    small, xla_dump_to=str(tmp_path), xla_dump_hlo_pass_re="spmd-partitioning"
  )
  (path,) = tmp_path.glob("*.after_spmd-partitioning.*.txt")
  got = sent(path.read_text())
  params = jax.tree.leaves(trainer.abstract.params)
  vectors = [x for x in params if x.ndim == 1]
  kernels = size([x for x in params if x.ndim > 1])
  narrow = got.get(("all-reduce", "bf16"), 0)
  wide = got["all-reduce", "f32"]
  if dtype == "bfloat16":
    # Stem, blocks and head, all of it.
    assert narrow == kernels // 2
    assert 0 < wide - size(vectors) <= 4 * 64
  else:
    assert not narrow
    assert 0 < wide - size(vectors) - kernels <= 4 * 64
  assert not [k for k in got if k[0] == "all-gather" and k[1] != "f32"]
