"""The kernels for Hopper GPUs: interpreted on a CPU, and compiled for an H100.

Nothing here ran on a GPU. What a CPU can't check is named in the kernels'
docstrings.
"""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# JAX's own name for it; nothing public stands for it yet.
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, params

from mixer.errors import UserError
from mixer.pallas import hopper_gpu, token_mlp_gpu
from mixer.planning import compiling, hardware
from tests.conftest import ROOT

NAMES = ("out", "dy", "dkernel1", "dbias1", "dkernel2", "dbias2")


def arrays(images, tokens, channels, hidden, seed=0):
  """Y, its output's gradient, and parameters, of order one."""
  rng = np.random.default_rng(seed)
  y, dout = (
    rng.normal(size=(images, tokens, channels)).astype(jnp.bfloat16)
    for _ in range(2)
  )
  kernels = (
    (rng.normal(size=shape) / shape[0] ** 0.5).astype(np.float32)
    for shape in ((tokens, hidden), (hidden, tokens))
  )
  biases = (rng.normal(size=n).astype(np.float32) for n in (hidden, tokens))
  (kernel1, kernel2), (bias1, bias2) = kernels, biases
  return y, dout, (kernel1, bias1, kernel2, bias2)


def slope_and_gelu(x):
  """Of the tanh form, from its definition."""
  root, cube = np.sqrt(2 / np.pi), 0.044715
  tanh = np.tanh(root * (x + cube * x**3))
  inner = root * (1 + 3 * cube * x**2)
  return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * inner, 0.5 * x * (
    1 + tanh
  )


def reference(y, dout, kernel1, bias1, kernel2, bias2):
  """The output and all gradients in float64, from bfloat16 kernels.

  Each with the sum of the magnitudes of what is summed last.
  """
  y, dout = np.float64(y), np.float64(dout)
  w1, w2 = (np.float64(k.astype(jnp.bfloat16)) for k in (kernel1, kernel2))
  before = np.einsum("st,bsc->btc", w1, y) + bias1[:, None]
  derivative, hidden = slope_and_gelu(before)
  dbefore = np.einsum("ts,bsc->btc", w2, dout) * derivative
  (out, size), *gradients = [
    (np.einsum(how, *terms), np.einsum(how, *map(np.abs, terms)))
    for how, *terms in (
      ("ts,btc->bsc", w2, hidden),
      ("st,btc->bsc", w1, dbefore),
      ("bsc,btc->st", y, dbefore),
      ("btc->t", dbefore),
      ("btc,bsc->ts", hidden, dout),
      ("bsc->s", dout),
    )
  ]
  bias2 = bias2[:, None]
  return (out + bias2, size + np.abs(bias2)), *gradients


def interpreted(y, dout, parameters, **options):
  gpu_callbacks.reset_gpu_interpret_mode_state()
  function = functools.partial(
    token_mlp_gpu.token_mlp, interpret=params.InterpretGPUParams(**options)
  )

  @jax.jit
  def both(y, dout, *parameters):
    out, vjp = jax.vjp(function, y, *parameters)
    return out, *vjp(dout)

  return both(y, dout, *parameters)


def compare(found, expected):
  for name, a, (b, size) in zip(NAMES, found, expected, strict=True):
    kind = jnp.bfloat16 if name in ("out", "dy") else np.float32
    assert (a.shape, a.dtype) == (b.shape, kind), name
    # Rounding to bfloat16 costs 2**-8 at most: once of the hidden layer or its
    # gradient, once of what comes out.
    assert np.all(np.abs(np.float64(a) - b) <= 2**-7 * size), name


def test_output_and_gradients_agree_with_float64():
  y, dout, parameters = arrays(1, 49, 128, 64)
  found = interpreted(y, dout, parameters)
  compare(found, reference(y, dout, *parameters))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("images", "tokens", "channels", "hidden"),
  [(2, 196, 128, 192), (1, 256, 128, 64), (3, 49, 256, 128)],
)
def test_larger_sizes_agree_with_float64(images, tokens, channels, hidden):
  y, dout, parameters = arrays(images, tokens, channels, hidden)
  found = interpreted(y, dout, parameters)
  compare(found, reference(y, dout, *parameters))


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
  images=st.integers(1, 2),
  tokens=st.integers(1, 130),
  tiles=st.integers(1, 3),
  seed=st.integers(0, 2**16),
)
def test_any_shape_agrees_with_float64(images, tokens, tiles, seed):
  y, dout, parameters = arrays(images, tokens, 128, 64 * tiles, seed)
  found = interpreted(y, dout, parameters)
  compare(found, reference(y, dout, *parameters))


@pytest.mark.slow
@pytest.mark.xfail(
  jax.__version_info__ >= (0, 11),
  reason="jax 0.12's interpreter tells of a race between the loader and what "
  "only the interpreter has, a turned copy; whose fault it is isn't known",
  raises=jax.errors.JaxRuntimeError,
  strict=True,  # So that it is noticed when that ends.
)
def test_warpgroups_dont_race():
  y, dout, parameters = arrays(1, 49, 128, 192)
  jax.block_until_ready(interpreted(y, dout, parameters, detect_races=True))
  assert not gpu_callbacks.get_races().races_found


def test_slope_is_that_of_gelu():
  x = np.linspace(-8, 8, 2001)
  derivative, value = slope_and_gelu(x)
  wide = jnp.asarray(x, jnp.float32)
  np.testing.assert_allclose(hopper_gpu.gelu(wide), value, atol=2e-6)
  np.testing.assert_allclose(hopper_gpu.gelu_slope(wide), derivative, atol=5e-6)


@pytest.mark.parametrize(
  ("tokens", "channels", "hidden", "dtype", "words"),
  [
    (784, 512, 256, jnp.bfloat16, "tokens 784 on a GPU.*at most 256"),
    (196, 192, 256, jnp.bfloat16, "channels 192.*a multiple of 128"),
    (196, 512, 100, jnp.bfloat16, "width 100.*a multiple of 64"),
    (196, 512, 256, jnp.float32, "dtype float32.*bfloat16"),
  ],
)
def test_what_the_kernels_dont_do_is_said(
  tokens, channels, hidden, dtype, words
):
  assert re.search(
    words, token_mlp_gpu.refusal(tokens, channels, hidden, dtype)
  )
  shapes = (
    jax.ShapeDtypeStruct((2, tokens, channels), dtype),
    *(
      jax.ShapeDtypeStruct(shape, jnp.float32)
      for shape in ((tokens, hidden), (hidden,), (hidden, tokens), (tokens,))
    ),
  )
  with pytest.raises(UserError, match="token_mlp=xla"):
    jax.eval_shape(token_mlp_gpu.token_mlp, *shapes)


def test_every_published_model_with_at_most_256_tokens_is_done():
  for channels, hidden in ((512, 256), (768, 384), (1024, 512), (1280, 640)):
    for tokens in (49, 196, 256):
      assert not token_mlp_gpu.refusal(tokens, channels, hidden, jnp.bfloat16)


COMPILE = """
import sys
from mixer.planning import compiling, hardware
compiling.prepare()
import jax, jax.numpy as jnp
from mixer.pallas import token_mlp_gpu

device = compiling.devices(hardware.parse("h100-1"))[0]
sharding = jax.sharding.SingleDeviceSharding(device)
b, s, c, t = map(int, sys.argv[1:])

def shape(*size, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(size, dtype, sharding=sharding)

def both(y, dout, *parameters):
  out, vjp = jax.vjp(token_mlp_gpu.token_mlp, y, *parameters)
  return out, vjp(dout)

y = shape(b, s, c, dtype=jnp.bfloat16)
lowered = jax.jit(both).lower(
  y, y, shape(s, t), shape(t), shape(t, s), shape(s)
)
options = {"xla_gpu_autotune_level": 0}
print(lowered.compile(compiler_options=options).as_text())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ("tokens", "channels", "hidden"),
  [(49, 512, 256), (196, 768, 384), (256, 1280, 640)],
)
def test_compiles_for_an_h100(tmp_path, tokens, channels, hidden):
  """To machine code, in shared memory, with next to nothing spilled."""
  if sentence := compiling.missing(hardware.parse("h100-1")):
    pytest.skip(sentence)
  environment = dict(os.environ) | {
    "XLA_FLAGS": "",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "MOSAIC_GPU_DUMP_PTXAS": "1",
    "MOSAIC_GPU_DUMP_TO": str(tmp_path),
  }
  sizes = (str(n) for n in (256, tokens, channels, hidden))
  done = subprocess.run(
    [sys.executable, "-c", COMPILE, *sizes],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.count('custom_call_target="mosaic_gpu_v2"') == 3
  reports = [p.read_text() for p in tmp_path.glob("*.ptxas")]
  assert len(reports) == 3
  for report in reports:
    assert "'sm_90a'" in report
    assert "serialized" not in report  # WGMMAs that wait for each other.
    spilled = re.findall(r"(\d+) bytes spill stores", report)
    assert max(map(int, spilled)) <= 256, report
