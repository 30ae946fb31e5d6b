"""The public face: differentiated, over devices, for each platform."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mixer import sharding
from mixer.pallas import token_mixing
from mixer.planning import compiling, hardware
from tests.conftest import ROOT
from tests.pallas import formulas


def value_and_gradients(function, x, dout, *args):
  out, transpose = jax.vjp(function, x, *args)
  return out, *transpose(dout)


@pytest.mark.parametrize(
  "devices", [4, pytest.param(1, marks=pytest.mark.slow)]
)
def test_values_and_gradients_on_any_number_of_devices(devices):
  x, dout, keep, norm, *mlp = formulas.arrays(16, 6, 8, 4)
  mesh = sharding.make_mesh(jax.devices()[:devices], fsdp=min(devices, 2))
  split = sharding.batch(mesh)
  args = (*norm, *mlp)

  @jax.jit
  def run(x, dout, keep, *args):
    def function(x, *args):
      where = mesh if devices > 1 else None
      return token_mixing.token_mixing(x, *args, keep_B=keep, mesh=where)

    return value_and_gradients(function, x, dout, *args)

  put = [jax.device_put(a, split) for a in (x, dout, keep)]
  # Weights that are split over fsdp are gathered.
  weights = NamedSharding(mesh, P("fsdp"))
  args = [jax.device_put(a, weights) for a in args]
  compiled = run.lower(*put, *args).compile()
  got = compiled(*put, *args)

  args = (keep, *args)
  expected = formulas.token_mixing_gradients(x, dout, *args)
  expected = formulas.token_mixing(x, *args), *expected
  for g, e in zip(got, expected, strict=True):
    np.testing.assert_allclose(g, e, rtol=0, atol=3e-5 * np.abs(e).max())
  if devices == 1:
    return
  for g in got[:2]:
    assert g.sharding.is_equivalent_to(split, 3)
  # Each gradient of a parameter is summed once, nothing else is, and no image
  # leaves its device.
  text = compiled.as_text() or ""
  sums = re.findall(r" = (.*) all-reduce(?:-start)?\(", text)
  shapes = re.findall(r"\w+\[[\d,]*\]", " ".join(sums))
  assert sum(np.prod(sides(s)) for s in shapes) == sum(
    a.size for a in args[-6:]
  )
  assert {s.partition("[")[0] for s in shapes} == {"f32"}
  assert not re.findall(r"\[16,6,8\]", text)


def sides(shape):
  """Of "f32[2,3]"."""
  return [int(n) for n in re.findall(r"\d+", shape.partition("[")[2])]


def test_what_is_kept_for_the_backward_pass_is_the_inputs():
  x, _, keep, norm, *mlp = formulas.arrays(2, 6, 8, 4)
  args = (x, keep, *norm, *mlp)
  _, transpose = jax.vjp(token_mixing._token_mixing, *args)
  kept = jax.tree.leaves(transpose)
  assert {a.shape for a in kept} == {a.shape for a in args}
  assert len(kept) == len(args)


def lowered(platform, s, dtype):
  """Text of value and gradients for a platform, whatever is at hand."""
  x, dout, keep, norm, *mlp = formulas.arrays(2, s, 128, 64)
  x, dout = jnp.asarray(x, dtype), jnp.asarray(dout, dtype)

  @jax.jit
  def run(x, dout, keep, norm, *mlp):
    def function(x, *mlp):
      return token_mixing.token_mixing(x, *norm, *mlp, keep_B=keep)

    return value_and_gradients(function, x, dout, *mlp)

  traced = run.trace(x, dout, keep, norm, *mlp)
  return traced.lower(lowering_platforms=(platform,)).as_text()


def kernels(text):
  return set(re.findall(r"custom_call @(\w+)", text))


def test_each_platform_has_its_kernels():
  assert "tpu_custom_call" in kernels(lowered("tpu", 49, "bfloat16"))
  gpu = kernels(lowered("cuda", 49, "bfloat16"))
  assert "tpu_custom_call" not in gpu
  assert any("mosaic_gpu" in name for name in gpu)
  assert not kernels(lowered("cpu", 4, "float32"))


def test_what_gpus_lack_doesn_t_keep_tpus_from_it():
  assert "tpu_custom_call" in kernels(lowered("tpu", 49, "float32"))
  with pytest.raises(NotImplementedError, match="cuda"):
    lowered("cuda", 49, "float32")


COMPILE = """
import sys
from mixer.planning import compiling, hardware
compiling.prepare()
import jax
import jax.numpy as jnp
jax.config.update('jax_platforms', 'cpu')
from mixer import sharding
from mixer.pallas import token_mixing
mesh = sharding.make_mesh(compiling.devices(hardware.parse(sys.argv[1])))
split, whole = sharding.batch(mesh), sharding.replicated(mesh)
def array(*shape, dtype=jnp.float32, where=whole):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=where)
def run(x, *args):
  def loss(x, *args):
    y = token_mixing.token_mixing(x, *args, mesh=mesh)
    return jnp.sum(y.astype(jnp.float32))
  return jax.value_and_grad(loss, argnums=range(7))(x, *args)
for s, c, t in ((49, 768, 384), (196, 768, 384), (256, 1280, 640),
                (784, 512, 256), (50, 24, 10)):
  for dtype in (jnp.bfloat16, jnp.float32):
    args = array(c), array(c), array(s, t), array(t), array(t, s), array(s)
    x = array(3 * mesh.size, s, c, dtype=dtype, where=split)
    text = jax.jit(run).lower(x, *args).compile().as_text()
    print(s, dtype.__name__, text.count('"tpu_custom_call"'))
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["v5e-4", "v6e-8"])
def test_the_compiler_for_tpus_takes_them(where):
  if sentence := compiling.missing(hardware.parse(where)):
    pytest.skip(sentence)
  done = subprocess.run(
    [sys.executable, "-c", COMPILE, where],
    cwd=ROOT,
    env=dict(os.environ) | {"XLA_FLAGS": ""},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  counts = [line.split()[-1] for line in done.stdout.splitlines()]
  # Two kernels, forward and backward.
  assert counts == ["2"] * 10
