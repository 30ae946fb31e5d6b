"""Compiles the training step for accelerators that aren't there.

XLA's compilers for TPUs (libtpu, of `jax[tpu]`) and NVIDIA GPUs (`jax[cuda13]`)
need no device, only its description. What they say of memory is what a run will
meet; of time they say nothing.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from mixer import config as config_lib
from mixer import durations, sharding, train_step
from mixer.errors import UserError
from mixer.planning import formulas, hardware

# XLA's own description of an H100 SXM, as a GpuTargetConfigProto in text form.
_H100 = pathlib.Path(__file__).parent / "h100.txt"
# Without a GPU nothing can be timed, so no kernel can be chosen by its time.
_GPU_OPTIONS = {
  "xla_gpu_autotune_level": 0,
  "xla_gpu_enable_triton_gemm": False,
}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What a compiler says of one update, for each device, in bytes.

  Attributes:
    compiler: its name and version.
    fits: whether memory suffices.
    reason: the compiler's, where it doesn't.
    arguments: of state and batch.
    temporaries: beside them, while the step runs.
    peak: the highest sum of all that is alive.
    traffic: to and from memory, as the TPU's compiler counts it; None for
      GPUs.
    seconds: of compiling.
  """

  compiler: str
  fits: bool
  reason: str = ""
  arguments: int = 0
  temporaries: int = 0
  peak: int = 0
  traffic: int | None = None
  seconds: float = 0.0


def prepare() -> None:
  """Sets what the compilers read from the environment; call before JAX starts.

  Only for a process that computes nothing.
  """
  for name, value in (
    ("JAX_PLATFORMS", "cpu"),
    ("TPU_SKIP_MDS_QUERY", "1"),  # There is no such server to ask.
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),  # Nobody's devices are taken.
    ("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1"),  # Of a driver that isn't there.
    ("TF_CPP_MIN_LOG_LEVEL", "3"),
  ):
    os.environ.setdefault(name, value)


def missing(target: hardware.Slice) -> str:
  """A sentence if the compiler for a slice isn't here, else ""."""
  if target.chip.name in ("v4", "a100", "h200"):
    return (
      f"there is no compiling for {target.chip.name}: libtpu describes a v4 as "
      "two devices, and of GPUs only the H100's description is at hand. Use "
      "--hardware=h100-8 or a v5e, v5p or v6e slice, or leave --compile out."
    )
  module, extra = ("libtpu", "tpu") if target.grid else ("jax_plugins", "gpu")
  found = importlib.util.find_spec(module)
  if found and not target.grid:
    found = importlib.util.find_spec("jax_plugins.xla_cuda13")
  if found:
    return ""
  return (
    f"the compiler for {target.name} isn't installed here: "
    f'pip install -e ".[{extra}]" (or make setup-{extra}) brings it; it needs '
    "no accelerator."
  )


def devices(target: hardware.Slice) -> list[Any]:
  """The devices of a slice that isn't there.

  Raises:
    UserError: its compiler isn't installed, or doesn't know it.
  """
  if sentence := missing(target):
    raise UserError(sentence)
  try:
    if target.grid:
      bounds = {}
      if target.num_hosts == 1 and target.num_chips != 4:  # One host has all.
        grid = (*target.grid, 1, 1)[:3]
        bounds = {"chips_per_host_bounds": grid}
      found = topologies.get_topology_desc(
        platform="tpu", topology_name=target.topology, **bounds
      )
    else:
      here = min(target.num_devices, target.chip.host_devices)
      found = topologies.get_topology_desc(
        platform="cuda",
        topology_name="h100",
        target_config=_H100.read_text("utf-8"),
        topology=f"1x{target.num_hosts}x{here}",
      )
  except (RuntimeError, ValueError) as e:
    raise UserError(
      f"the compiler for {target.name} can't be started: "
      f"{str(e).splitlines()[0]}."
    ) from e
  return list(found.devices)


def mesh(target: hardware.Slice, config: config_lib.Config) -> Mesh:
  """The mesh that a run on this slice would have."""
  return sharding.make_mesh(devices(target), fsdp=config.sharding.fsdp)


def abstract_batch(
  config: config_lib.Config, where: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """A batch as `train_step` takes it, without its values."""
  size, split = config_lib.image_size(config), sharding.batch(where)
  b = config.batch_size
  return {
    "image": jax.ShapeDtypeStruct((b, *size, 3), jnp.uint8, sharding=split),
    "label": jax.ShapeDtypeStruct((b,), jnp.int32, sharding=split),
  }


def lower(
  config: config_lib.Config,
  plan: durations.Plan,
  num_classes: int,
  where: Mesh,
) -> Any:
  """The training step, `jax.stages.Lowered`, for the devices of a mesh."""
  trainer = train_step.Trainer(config, plan, num_classes, where)
  return trainer.train_step.lower(
    trainer.abstract, abstract_batch(config, where)
  )


def compile_step(
  config: config_lib.Config,
  plan: durations.Plan,
  num_classes: int,
  target: hardware.Slice,
) -> Compiled:
  """Compiles the training step for a slice.

  Args:
    config: valid for so many devices.
    plan: of the run.
    num_classes: K.
    target: the slice.

  Returns:
    What the compiler says.

  Raises:
    UserError: as `devices`.
  """
  where = mesh(target, config)
  lowered = lower(config, plan, num_classes, where)
  compiler = _compiler(target)
  start = time.perf_counter()
  options = {} if target.grid else _GPU_OPTIONS
  try:
    compiled = lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    seconds = time.perf_counter() - start
    return Compiled(compiler, False, out_of_memory(str(e)), seconds=seconds)
  seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  costs = compiled.cost_analysis() if target.grid else None
  peak = memory.peak_memory_in_bytes
  limit = formulas.limit(target)
  return Compiled(
    compiler=compiler,
    fits=peak <= limit,
    reason=""
    if peak <= limit
    else f"Used {peak / 2**30:.2f}G of {limit / 2**30:.2f}G",
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    peak=peak,
    traffic=round(costs["bytes accessed"]) if costs else None,
    seconds=seconds,
  )


def out_of_memory(message: str) -> str:
  """The part of a compiler's error that says how much is missing."""
  match = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ hbm", message)
  if match:
    return match.group(0)
  lines = [line for line in message.splitlines() if line.strip()]
  return lines[0][:200] if lines else "out of memory"


def _compiler(target: hardware.Slice) -> str:
  name = "libtpu" if target.grid else "jax-cuda13-plugin"
  return (
    f"{name} {importlib.metadata.version(name)}, jax "
    f"{importlib.metadata.version('jax')}"
  )
