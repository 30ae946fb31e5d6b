"""Compiles the training step for accelerators that aren't there.

XLA's compilers for TPUs (libtpu, of `jax[tpu]`) and NVIDIA GPUs (`jax[cuda13]`)
need no device, only its description. What they say of memory is what a run will
meet; of time they say nothing.
"""

import dataclasses
import importlib.metadata
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
from mixer import durations, hardware, planning, sharding, train_step
from mixer.errors import UserError, first_line

# XLA's own description of an H100 SXM, as a GpuTargetConfigProto in text form.
_H100 = pathlib.Path(__file__).parent / "h100.txt"
# Without a GPU nothing can be timed, so no kernel can be chosen by its time.
_GPU_OPTIONS = {
  "xla_gpu_autotune_level": 0,
  "xla_gpu_enable_triton_gemm": False,
}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What a compiler says of one update, for each device, in bytes."""

  compiler: str  # Its name and version.
  fits: bool
  reason: str = ""  # The compiler's, where it doesn't.
  arguments: int = 0  # Of state and batch.
  temporaries: int = 0  # Beside them, while the step runs.
  peak: int = 0  # The highest sum of all that is alive.
  traffic: int | None = None  # As the TPU's compiler counts it; None for GPUs.
  seconds: float = 0.0  # Of compiling.


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


def compiler_of(target: hardware.Slice) -> str:
  """The name and version of the compiler for a slice.

  Raises:
    UserError: there is none, or it isn't installed.
  """
  if target.chip.name in ("v4", "a100", "h200"):
    raise UserError(
      f"there is no compiling for {target.chip.name}: libtpu describes a v4 as "
      "two devices, and of GPUs only the H100's description is at hand. Use "
      "--hardware=h100-8 or a v5e, v5p or v6e slice, or leave --compile out."
    )
  name, extra = (
    ("libtpu", "tpu") if target.grid else ("jax-cuda13-plugin", "gpu")
  )
  try:
    version = importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError as e:
    raise UserError(
      f"the compiler for {target.name} isn't installed here: `pip install -e "
      f'".[{extra}]"`, or make setup-{extra}, brings it; it needs no '
      "accelerator."
    ) from e
  return f"{name} {version}, jax {importlib.metadata.version('jax')}"


def devices(target: hardware.Slice) -> list[Any]:
  """The devices of a slice that isn't there."""
  compiler_of(target)
  try:
    if target.grid:
      bounds = {}
      if target.num_hosts == 1 and target.num_chips != 4:  # One host has all.
        bounds = {"chips_per_host_bounds": (*target.grid, 1, 1)[:3]}
      found = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{target.chip.name}:{'x'.join(map(str, target.grid))}",
        **bounds,
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
      f"the compiler for {target.name} can't be started: {first_line(e)}."
    ) from e
  return list(found.devices)


def abstract_batch(
  config: config_lib.Config, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """A batch as `train_step` takes it, without its values."""
  size, split = config_lib.image_size(config), sharding.batch(mesh)
  b = config.batch_size
  return {
    "image": jax.ShapeDtypeStruct((b, *size, 3), jnp.uint8, sharding=split),
    "label": jax.ShapeDtypeStruct((b,), jnp.int32, sharding=split),
  }


def lower(
  config: config_lib.Config, steps: durations.Plan, num_classes: int, mesh: Mesh
) -> Any:
  """The training step, `jax.stages.Lowered`, for the devices of a mesh."""
  trainer = train_step.Trainer(config, steps, num_classes, mesh)
  return trainer.train_step.lower(
    trainer.abstract, abstract_batch(config, mesh)
  )


def compile_step(
  config: config_lib.Config,
  target: hardware.Slice,
  examples: int,
  num_classes: int,
) -> Compiled:
  """Compiles the training step for a slice; says what the compiler says.

  Raises:
    UserError: the compiler isn't installed, or doesn't know the slice.
  """
  compiler = compiler_of(target)
  mesh = sharding.make_mesh(devices(target), fsdp=config.sharding.fsdp)
  steps = durations.plan(config, examples)
  lowered = lower(config, steps, num_classes, mesh)
  start = time.perf_counter()
  try:
    compiled = lowered.compile(
      compiler_options={} if target.grid else _GPU_OPTIONS
    )
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    seconds = time.perf_counter() - start
    match = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ hbm", str(e))
    reason = match[0] if match else first_line(e)[:200]
    return Compiled(compiler, False, reason, seconds=seconds)
  memory = compiled.memory_analysis()
  costs = compiled.cost_analysis() if target.grid else None
  peak, most = memory.peak_memory_in_bytes, planning.limit(target)
  used = f"Used {peak / 2**30:.2f}G of {most / 2**30:.2f}G"
  return Compiled(
    compiler=compiler,
    fits=peak <= most,
    reason=used if peak > most else "",
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    peak=peak,
    traffic=round(costs["bytes accessed"]) if costs else None,
    seconds=time.perf_counter() - start,
  )
