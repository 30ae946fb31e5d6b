"""Reading compiled code: programs whose messages are known, and text."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mixer import sharding
from mixer.planning import hlo


def compiled(function, size, out=None):
  """Text of a function of each device's part of float32 `[8, size]`."""
  mesh = sharding.make_mesh()
  split = P(sharding.AXES)
  mapped = jax.shard_map(
    function, mesh=mesh, in_specs=split, out_specs=split if out is None else out
  )
  x = jax.ShapeDtypeStruct(
    (8, size), jnp.float32, sharding=sharding.batch(mesh)
  )
  return jax.jit(mapped).lower(x).compile().as_text() or ""


psum = functools.partial(jax.lax.psum, axis_name=sharding.AXES)


def test_a_sum():
  (found,) = hlo.collectives(compiled(psum, 1000, P()), 8)
  assert found == hlo.Collective("all-reduce", 1, 4000, 7000)


def test_a_gathering():
  def gather(x):
    return jax.lax.all_gather(x, sharding.AXES, axis=0, tiled=True)

  text = compiled(lambda x: gather(x).sum(0, keepdims=True), 1000)
  (found,) = hlo.collectives(text, 8)
  assert found == hlo.Collective("all-gather", 1, 32_000, 28_000)


def test_a_scattered_sum():
  def scatter(x):
    return jax.lax.psum_scatter(
      x, sharding.AXES, scatter_dimension=1, tiled=True
    )

  (found,) = hlo.collectives(compiled(scatter, 800), 8)
  assert found == hlo.Collective("reduce-scatter", 1, 3200, 2800)


def test_neighbours():
  def shift(x):
    pairs = [(i, (i + 1) % 8) for i in range(8)]
    return jax.lax.ppermute(x, sharding.AXES, pairs)

  (found,) = hlo.collectives(compiled(shift, 100), 8)
  assert found == hlo.Collective("collective-permute", 1, 400, 400)


def test_loops_count_as_often_as_they_run():
  def loop(x):
    return jax.lax.fori_loop(0, 5, lambda _, y: psum(y) / 8 + x, x)

  (found,) = hlo.collectives(compiled(loop, 100), 8)
  assert found == hlo.Collective("all-reduce", 5, 2000, 3500)

  def nested(x):
    return jax.lax.fori_loop(0, 3, lambda _, y: loop(y), x)

  (found,) = hlo.collectives(compiled(nested, 100), 8)
  assert found.count == 15


def test_groups_of_devices():
  """Sums within groups of two send less: 2 (2 - 1) / 2 of it."""
  mesh = sharding.make_mesh(fsdp=2)
  mapped = jax.shard_map(
    lambda x: jax.lax.psum(x, "fsdp"),
    mesh=mesh,
    in_specs=P(sharding.AXES),
    out_specs=P("data"),
  )
  where = sharding.batch(mesh)
  x = jax.ShapeDtypeStruct((8, 100), jnp.float32, sharding=where)
  text = jax.jit(mapped).lower(x).compile().as_text()
  (found,) = hlo.collectives(text or "", 8)
  assert found == hlo.Collective("all-reduce", 1, 400, 400)


def test_one_device_sends_nothing():
  text = jax.jit(lambda x: x + 1).lower(jnp.zeros(3)).compile().as_text()
  assert hlo.collectives(text or "", 1) == []


# What libtpu and the GPU's compiler write, which CPUs don't.


def module(*lines: str, before: str = "") -> str:
  inside = "\n".join(f"  {line}" for line in lines)
  main = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{inside}\n}}\n"
  return f"HloModule m\n{before}\n{main}"


@pytest.mark.parametrize(
  ("line", "kind", "size", "sent"),
  [
    (
      "%a = (f32[10]{0:T(128)S(1)}, /*index=1*/bf16[4,5]{1,0}) "
      "all-reduce(%x, %y), replica_groups={{0,1,2,3}}, to_apply=%add",
      "all-reduce",
      80,
      120,
    ),
    (
      "%a = f32[16]{0} all-reduce-start(%x), "
      "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add",
      "all-reduce",
      64,
      96,
    ),
    (
      "%a = f32[16]{0} all-reduce-start(%x), "
      "replica_groups=mesh['a'=8] {'a':(1)2}, to_apply=%add",
      "all-reduce",
      64,
      64,
    ),
    (
      "%a = (f32[4]{0}, f32[16]{0}) all-gather-start(%x), "
      "replica_groups=[2,4]<=[8], dimensions={0}",
      "all-gather",
      64,
      48,
    ),
    (
      "%a = f32[4]{0} reduce-scatter(%x), replica_groups=[2,4]<=[8], "
      "dimensions={0}, to_apply=%add",
      "reduce-scatter",
      64,
      48,
    ),
    (
      "%a = (u8[9]{0}, u8[9]{0}, u32[]{:S(2)}, u32[]{:S(2)}) "
      "collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}",
      "collective-permute",
      9,
      9,
    ),
  ],
)
def test_lines(line, kind, size, sent):
  (found,) = hlo.collectives(module(line), 8)
  assert found == hlo.Collective(kind, 1, size, sent)


def test_ends_of_what_was_started_count_nothing():
  text = module(
    "%b = f32[16]{0} all-reduce-done(%a)",
    "%c = f32[16]{0} copy(%b)",
    "%d = f32[16]{0} get-tuple-element(%all-reduce.1), index=0",
  )
  assert hlo.collectives(text, 8) == []
  assert hlo.count(text, "copy") == (1, 64)


def test_a_fused_sum_and_slice_is_a_scattered_sum():
  before = (
    "%all-reduce-scatter.3 (input: f32[16]) -> f32[2] {\n"
    "  %a = f32[16]{0} all-reduce(%input), replica_groups={}, to_apply=%add\n"
    "  ROOT %s = f32[2]{0} dynamic-slice(%a, %i), dynamic_slice_sizes={2}\n"
    "}\n"
  )
  text = module(
    "%f = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3",
    before=before,
  )
  assert hlo.collectives(text, 8) == [
    hlo.Collective("reduce-scatter", 1, 64, 56)
  ]


def test_a_counter_that_rises_by_two():
  before = """%condition (p: (f32[4], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(7)
  %p = (f32[4]{0}, u32[]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=1
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
%body (p: (f32[4], u32[])) -> (f32[4], u32[]) {
  %two = u32[] constant(2)
  %p = (f32[4]{0}, u32[]) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=0
  %i = u32[] get-tuple-element(%p), index=1
  %y = f32[4]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  %next = u32[] add(%i, %two)
  ROOT %t = (f32[4]{0}, u32[]) tuple(%y, /*index=1*/%next)
}
"""
  text = module(
    "%w = (f32[4]{0}, u32[]) while(%t), condition=%condition, body=%body",
    before=before,
  )
  (found,) = hlo.collectives(text, 2)
  assert found.count == 4 and found.size == 64


def test_an_unknown_type_is_told():
  with pytest.raises(ValueError, match="unknown element type q9"):
    hlo.array_bytes("q9[3]")
