"""Kernels read from compiled code: CPU programs, and lines of GPUs and TPUs."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.planning import formulas, hardware, instructions, kernels, roofline

H100, V5E = hardware.parse("h100-1"), hardware.parse("v5e-1")


def module(*lines, before=""):
  inside = "\n".join(f"  {line}" for line in lines)
  main = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{inside}\n}}\n"
  return f"HloModule m, is_scheduled=true\n{before}\n{main}"


def one(*lines, before=""):
  (found,) = kernels.read(module(*lines, before=before))
  return found


def compiled(function, *shapes):
  arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return jax.jit(function).lower(*arguments).compile()


def flop(function, *shapes):
  """What is read in the text, and what XLA itself counts."""
  made = compiled(function, *shapes)
  found = kernels.read(made.as_text() or "")
  costs = made.cost_analysis() or {}
  return sum(k.times * k.flop for k in found), costs["flops"]


def test_arrays_of_a_type():
  (a, b, c) = instructions.arrays(
    "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[], s4[7]{0})"
  )
  assert (a.dtype, a.sides, a.space, a.size, a.traffic) == (
    *("bf16", (2, 3), 1, 2 * 8 * 128),
    0,
  )
  assert (b.sides, b.size, b.traffic) == ((), 4, 4)
  assert c.size == 4  # Half a byte each, whole bytes together.


def test_tiles_pad_what_lies_innermost():
  """196 to 256 where it is the innermost axis, to 200 where it is the next."""
  text = "f32[5,196,768]{%s:T(8,128)}"
  (inner,) = instructions.arrays(text % "1,2,0")
  (second,) = instructions.arrays(text % "2,1,0")
  (outer,) = instructions.arrays(text % "2,0,1")
  assert inner.size == 4 * 5 * 768 * 256
  assert second.size == 4 * 5 * 200 * 768
  assert outer.size == 4 * 196 * 8 * 768
  (vector,) = instructions.arrays("f32[1000]{0:T(1024)}")
  assert vector.size == 4 * 1024
  assert inner.sides == (5, 196, 768)


@settings(deadline=None, max_examples=8)
@given(*(st.integers(33, 70) for _ in range(4)))
def test_flop_of_a_batched_matmul(b, i, j, k):
  read, said = flop(jnp.matmul, (b, i, k), (b, k, j))
  assert read == 2 * b * i * j * k == said


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
  ("stride", "padding", "spread"),
  [(1, 1, 1), (2, 0, 1), (3, 1, 1), (1, 1, 2)],
)
def test_flop_of_a_convolution(stride, padding, spread, groups):
  """The number of products with a pixel, not with padding or holes."""
  size, p, i, o = 9, 3, 4, 6

  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride,) * 2,
      ((padding,) * 2,) * 2,
      lhs_dilation=(spread,) * 2,
      feature_group_count=groups,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

  shapes = (2, size, size, i), (p, p, i // groups, o)
  # Of ones, each product with a pixel is a 1 in the sum.
  ones = convolve(*(jnp.ones(shape) for shape in shapes))
  text = compiled(convolve, *shapes).as_text() or ""
  found = sum(k.times * k.flop for k in kernels.read(text))
  assert found == 2 * float(ones.sum())


def test_a_loop_counts_as_often_as_it_runs():
  def loop(x, y):
    return jax.lax.fori_loop(0, 7, lambda _, z: jnp.tanh(z @ y), x)

  found = kernels.read(compiled(loop, (40, 40), (40, 40)).as_text() or "")
  matmuls = [k for k in found if k.flop]
  assert [k.times for k in matmuls] == [7]
  assert matmuls[0].flop == 2 * 40**3


def test_bytes_of_an_elementwise_kernel():
  made = compiled(lambda x, y: x * y + 1, (30,), (30,))
  found = kernels.read(made.as_text() or "")
  assert [(k.kind, k.read, k.written) for k in found] == [("loop", 240, 120)]


def test_a_slice_reads_no_more_than_itself():
  found = one(
    "%p = f32[8,100]{1,0} parameter(0)",
    "ROOT %f = f32[100]{0} fusion(%p), kind=kLoop, calls=%c",
    before="%c (q: f32[8,100]) -> f32[100] {\n"
    "  %q = f32[8,100]{1,0} parameter(0)\n"
    "  %s = f32[1,100]{1,0} slice(%q), slice={[2:3], [0:100]}\n"
    "  %b = f32[100]{0} bitcast(%s)\n"
    "  ROOT %n = f32[100]{0} negate(%b)\n}\n",
  )
  assert (found.read, found.written) == (400, 400)


def test_a_part_written_in_place():
  found = one(
    "%p = f32[8,100]{1,0} parameter(0)",
    "%u = f32[1,100]{1,0} parameter(1)",
    "%i = s32[] parameter(2)",
    "ROOT %f = f32[8,100]{1,0} fusion(%p, %u, %i), kind=kLoop, calls=%c",
    before="%c (q: f32[8,100], v: f32[1,100], j: s32[]) -> f32[8,100] {\n"
    "  %q = f32[8,100]{1,0} parameter(0)\n"
    "  %v = f32[1,100]{1,0} parameter(1)\n"
    "  %j = s32[] parameter(2)\n"
    "  %z = s32[] constant(0)\n"
    "  ROOT %d = f32[8,100]{1,0} dynamic-update-slice(%q, %v, %j, %z)\n}\n",
  )
  assert (found.read, found.written) == (404, 400)


def test_a_kernel_with_several_results():
  found = one(
    "%p = bf16[100]{0} parameter(0)",
    "%f = (f32[100]{0}, bf16[100]{0}) fusion(%p), kind=kLoop, calls=%c",
    "%g = f32[100]{0} get-tuple-element(%f), index=0",
    "ROOT %t = (f32[100]{0}) tuple(%g)",
    before="%c (q: bf16[100]) -> (f32[100], bf16[100]) {\n"
    "  %q = bf16[100]{0} parameter(0)\n"
    "  %a = f32[100]{0} convert(%q)\n"
    "  %n = bf16[100]{0} negate(%q)\n"
    "  ROOT %t = (f32[100]{0}, bf16[100]{0}) tuple(%a, %n)\n}\n",
  )
  assert (found.read, found.written) == (200, 600)


CUBLAS = (
  "%m = (bf16[64,30]{1,0}, s8[4096]{0}) custom-call(%x, %k, %r, %b), "
  'custom_call_target="__cublas$lt$matmul", metadata={op_name='
  '"jit(f)/jvp(MlpMixer)/MixerBlock_3/channel_mixing/Dense_1/dot_general"}, '
  'backend_config={"gemm_backend_config":{"beta":1,"dot_dimension_numbers":{'
  '"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]},'
  '"epilogue":"BIAS"}}'
)


def test_a_matmul_of_cublas():
  found = one(
    "%x = bf16[64,20]{1,0} parameter(0)",
    "%k = bf16[20,30]{1,0} parameter(1)",
    "%r = bf16[64,30]{1,0} parameter(2)",
    "%b = bf16[30]{0} parameter(3)",
    CUBLAS,
    "ROOT %g = bf16[64,30]{1,0} get-tuple-element(%m), index=0",
  )
  assert (found.kind, found.epilogue, found.dtype) == (
    *("matmul", "BIAS+C"),
    "bf16",
  )
  assert found.flop == 2 * 64 * 20 * 30
  # Without the workspace.
  assert found.read == 2 * (64 * 20 + 20 * 30 + 64 * 30 + 30)
  assert found.written == 2 * 64 * 30
  assert (found.part, found.when) == ("channel mixing", "forward")
  assert found.shapes.endswith("bf16[30] -> bf16[64,30]")


@pytest.mark.parametrize(
  ("target", "operands"),
  [
    ("convForward", "%x, %k"),
    ("convBackwardInput", "%y, %k"),
    ("convBackwardFilter", "%x, %y"),
  ],
)
def test_a_convolution_of_cudnn(target, operands):
  """All three do the products of the forward one."""
  result = {"F": "[2,4,4,5]", "I": "[2,16,16,3]", "r": "[5,4,4,3]"}
  shape = result["F" if "Forward" in target else target[12]]
  shape = result["r"] if "Filter" in target else shape
  found = one(
    "%x = bf16[2,16,16,3]{3,2,1,0} parameter(0)",
    "%k = bf16[5,4,4,3]{3,2,1,0} parameter(1)",
    "%y = bf16[2,4,4,5]{3,2,1,0} parameter(2)",
    f"%c = (bf16{shape}{{3,2,1,0}}, u8[0]{{0}}) custom-call({operands}), "
    "window={size=4x4 stride=4x4}, dim_labels=b01f_o01i->b01f, "
    f'custom_call_target="__cudnn${target}"',
  )
  assert found.kind == "convolution"
  assert found.flop == 2 * (2 * 4 * 4 * 5) * (4 * 4 * 3)


@pytest.mark.parametrize(
  ("line", "kind", "moves"),
  [
    ("%a = f32[9]{0} copy(%p)", "copy", ("copy",)),
    ("%a = f32[9]{0} transpose(%p), dimensions={0}", "transpose", None),
    ("%a = f32[12]{0} pad(%p, %z), padding=0_3", "pad", None),
    ("%a = f32[9]{0} sort(%p), dimensions={0}, to_apply=%less", "sort", ()),
    (
      "%a = f32[9]{0} all-reduce-start(%p), replica_groups={}, to_apply=%add",
      "collective",
      (),
    ),
    (
      '%a = f32[9]{0} custom-call(%p), custom_call_target="tpu_custom_call"',
      "pallas",
      (),
    ),
    (
      '%a = f32[9]{0} custom-call(%p), custom_call_target="mosaic_gpu_v2"',
      "pallas",
      (),
    ),
    (
      '%a = f32[9]{0} custom-call(%p), custom_call_target="topk"',
      "custom call",
      (),
    ),
    ("%a = f32[9]{0} negate(%p)", "loop", ()),
  ],
)
def test_kinds(line, kind, moves):
  found = one(
    "%p = f32[9]{0} parameter(0)", "%z = f32[] constant(0)", f"{line}"
  )
  assert found.kind == kind
  assert found.moves == ((kind,) if moves is None else moves)


def test_what_has_no_name_is_named_after_what_it_works_on():
  found = kernels.read(
    module(
      "%p = f32[9]{0} parameter(0)",
      '%a = f32[9]{0} negate(%p), metadata={op_name="jit(f)/jvp(MlpMixer)/'
      'stem/neg"}',
      "%b = f32[9]{0} bitcast(%a)",
      "ROOT %c = f32[9]{0} copy(%b)",
    )
  )
  assert [(k.part, k.when) for k in found] == [("stem", "forward")] * 2


@pytest.mark.parametrize(
  ("op_name", "part", "when"),
  [
    ("transpose(jvp(MlpMixer))/stem/dot_general", "stem", "backward"),
    ("jvp(MlpMixer)/MixerBlock_1/LayerNorm_0/mul", "LayerNorm", "forward"),
    (
      "transpose(jvp(MlpMixer))/MixerBlock_1/rematted_computation/"
      "token_mixing/Dense_0/mul",
      "token mixing",
      "recomputed",
    ),
    ("jvp(MlpMixer)/MixerBlock_1/add", "block", "forward"),
    ("jvp(MlpMixer)/reduce_sum", "head", "forward"),
    ("transpose(jvp(jit(log_softmax)))/neg", "loss", "backward"),
    ("add", "optimizer", "update"),
  ],
)
def test_parts(op_name, part, when):
  found = one(
    "%p = f32[9]{0} parameter(0)",
    f'%a = f32[9]{{0}} negate(%p), metadata={{op_name="jit(f)/{op_name}"}}',
  )
  assert (found.part, found.when) == (part, when)


def test_what_a_tpu_fetches_beside():
  """Bytes count, of the slice alone; time passes only where they are many."""
  found = kernels.read(
    module(
      "%p = f32[768,3072]{1,0:T(8,128)} parameter(0)",
      "%s = ((f32[768,3072]{1,0:T(8,128)}), f32[192,3072]{1,0:T(8,128)S(1)}, "
      "s32[]{:S(2)}) slice-start(%p), slice={[0:192], [0:3072]}",
      "%d = f32[192,3072]{1,0:T(8,128)S(1)} slice-done(%s)",
      "ROOT %n = f32[192,3072]{1,0:T(8,128)} negate(%d)",
    )
  )
  size = 4 * 192 * 3072
  assert [(k.kind, k.beside) for k in found] == [
    ("copy", True),
    ("loop", False),
  ]
  assert [(k.read, k.written) for k in found] == [(size, 0), (0, size)]
  assert roofline.seconds(found[0], V5E) == 0.0
  bandwidth = V5E.chip.bandwidth * formulas.MEMORY_SHARE
  total = roofline.total(found, V5E)
  assert total.seconds == pytest.approx(2 * size / bandwidth)
  assert total.size == 2 * size and total.count == 2


def kernel(flop=0, size=0, dtype="bf16", times=1, part=""):
  return kernels.Kernel(
    "k", "fusion", "loop", "", dtype, part, times, flop, size, 0
  )


def test_a_roofline():
  chip = H100.chip
  compute = kernel(flop=10**12)
  seconds = 10**12 / (chip.flops * formulas.MATMUL_SHARE)
  launch = roofline.LAUNCH["gpu"]
  assert roofline.seconds(compute, H100) == pytest.approx(seconds + launch)
  # TF32 is half as fast; a TPU multiplies float32 as bfloat16.
  slow = kernel(flop=10**12, dtype="f32")
  assert roofline.seconds(slow, H100) == pytest.approx(2 * seconds + launch)
  assert roofline.seconds(slow, V5E) == roofline.seconds(compute, V5E)
  memory = kernel(size=10**9, flop=1)
  seconds = 10**9 / (chip.bandwidth * formulas.MEMORY_SHARE)
  assert roofline.seconds(memory, H100) == pytest.approx(seconds + launch)


@given(
  st.lists(
    st.tuples(*(st.integers(0, 10**12) for _ in range(2)), st.integers(1, 5)),
    min_size=1,
  )
)
def test_parts_of_a_sum_are_the_whole(found):
  made = [
    kernel(flop, size, times=times, part=f"{i % 3}")
    for i, (flop, size, times) in enumerate(found)
  ]
  total = roofline.total(made, H100)
  parts = roofline.grouped(made, H100, lambda k: k.op_name)
  for name in ("seconds", "flop", "size", "count"):
    whole = sum(getattr(x, name) for x in parts.values())
    assert whole == pytest.approx(getattr(total, name))
  seconds = [x.seconds for x in parts.values()]
  assert seconds == sorted(seconds, reverse=True)
