"""Token mixing by fused kernels, on whatever it is compiled for.

TPUs have `token_mixing_tpu`, NVIDIA GPUs `token_mlp_gpu` with XLA around it;
CPUs run those for TPUs in Pallas' interpreter, slowly, which is good for tests
alone. Which of them is decided when a function is lowered, not when it is
traced, as the compilers for TPUs and GPUs work without the device.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mixer import norm, sharding
from mixer.pallas import token_mixing_tpu, token_mlp_gpu


def token_mixing(
  x_BSC: jax.Array,
  scale_C: jax.Array,
  offset_C: jax.Array,
  kernel1_ST: jax.Array,
  bias1_T: jax.Array,
  kernel2_TS: jax.Array,
  bias2_S: jax.Array,
  *,
  keep_B: jax.Array | None = None,
  mesh: Mesh | None = None,
) -> jax.Array:
  """X + keep * token_mlp(LayerNorm(x)): the first half of a block.

  Args:
    x_BSC: bfloat16 or float32 `[B, S, C]`, whose dtype matmul operands have;
      LayerNorm and the sum are float32.
    scale_C: of LayerNorm, float32 `[C]`.
    offset_C: its bias, float32 `[C]`.
    kernel1_ST: float32 `[S, T]`.
    bias1_T: float32 `[T]`.
    kernel2_TS: float32 `[T, S]`.
    bias2_S: float32 `[S]`.
    keep_B: float32 `[B]`, for stochastic depth: 0 or 1 / (1 - rate); None
      for 1. It has no gradient.
    mesh: of `sharding.make_mesh`, if B is split over it; each device then
      has its images, all the parameters, and gradients are summed over devices.

  Returns:
    `[B, S, C]` in the dtype of `x_BSC`. Gradients of the parameters are
    float32.
  """
  if keep_B is None:
    keep_B = jnp.ones(x_BSC.shape[0], jnp.float32)
  function = _over_devices(_token_mixing, mesh, 2, 6)
  return function(
    x_BSC,
    jax.lax.stop_gradient(keep_B),
    scale_C,
    offset_C,
    kernel1_ST,
    bias1_T,
    kernel2_TS,
    bias2_S,
  )


def _over_devices(
  function: Callable[..., jax.Array], mesh: Mesh | None, split: int, whole: int
) -> Callable[..., jax.Array]:
  """The function on each device's images, as no kernel can be partitioned.

  Args:
    function: of `[B, ...]` arrays, then of parameters.
    mesh: None for one device.
    split: number of arrays of the first kind.
    whole: number of parameters.
  """
  if mesh is None:
    return function
  batch = P(sharding.AXES)
  # Without vma a parameter's gradient is summed where the function is
  # transposed, in the parameter's dtype.
  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=(batch,) * split + (P(),) * whole,
    out_specs=batch,
    check_vma=False,
  )


def _pick(tpu: Any, cuda: Any, *args: Any, width: int) -> Any:
  """Runs what goes with the platform that it is lowered for.

  Args:
    tpu: takes `args` and whether to interpret it.
    cuda: takes `args`.
    *args: the activations `[B, S, C]` first.
    width: T.

  Raises:
    NotImplementedError: when it is lowered for a GPU whose kernels don't do
      such a block.
  """
  platforms = dict(tpu=tpu, cpu=functools.partial(tpu, interpret=True))
  _, s, c = args[0].shape
  # All of these are traced, one is lowered.
  if not token_mlp_gpu.refusal(s, c, width, args[0].dtype):
    platforms["cuda"] = cuda
  return jax.lax.platform_dependent(*args, **platforms)


def _token_mixing_cuda(
  x_BSC: Any, keep_B: Any, scale_C: Any, offset_C: Any, *mlp: Any
) -> jax.Array:
  y_BSC = norm.layer_norm(x_BSC, scale_C, offset_C)
  branch_BSC = token_mlp_gpu.token_mlp(y_BSC, *mlp).astype(jnp.float32)
  out_BSC = x_BSC.astype(jnp.float32) + keep_B[:, None, None] * branch_BSC
  return out_BSC.astype(x_BSC.dtype)


def _token_mixing_cuda_backward(
  x_BSC: Any, dout_BSC: Any, keep_B: Any, *parameters: Any
) -> Any:
  def function(x_BSC: Any, *parameters: Any) -> jax.Array:
    return _token_mixing_cuda(x_BSC, keep_B, *parameters)

  return jax.vjp(function, x_BSC, *parameters)[1](dout_BSC)


# The choice is made inside, so that what is kept for the backward pass is the
# inputs and nothing of the platforms that were not chosen.


@jax.custom_vjp
def _token_mixing(*args: jax.Array) -> jax.Array:
  forward, cuda = token_mixing_tpu.forward, _token_mixing_cuda
  return _pick(forward, cuda, *args, width=args[5].size)


def _token_mixing_forward(*args: jax.Array) -> Any:
  return _token_mixing(*args), args


def _token_mixing_backward(saved: Any, dout_BSC: jax.Array) -> Any:
  x_BSC, keep_B, *parameters = saved
  dx_BSC, *gradients = _pick(
    token_mixing_tpu.backward,
    _token_mixing_cuda_backward,
    x_BSC,
    dout_BSC,
    keep_B,
    *parameters,
    width=parameters[3].size,
  )
  return dx_BSC, jnp.zeros_like(keep_B), *gradients


_token_mixing.defvjp(_token_mixing_forward, _token_mixing_backward)
