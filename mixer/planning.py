"""Predicts what a run takes: memory, communication, time.

`predict` applies the formulas of docs/scaling.md to the model's shape and the
data sheets in `hardware`. `compile_step` asks XLA's compilers for TPUs (libtpu,
of `jax[tpu]`) and NVIDIA GPUs (`jax[cuda13]`), which need no device, only its
description: what they say of memory is what a run will meet.
"""

import dataclasses
import importlib.metadata
import math
import pathlib
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType, Mesh

from mixer import config as config_lib
from mixer import durations, hardware, optim, sharding, train_step
from mixer import model as model_lib
from mixer.errors import UserError, first_line

# Shares of the data sheets' numbers that a well-made program reaches.
MATMUL_SHARE = 0.7
_MEMORY_SHARE = 0.8
_LINK_SHARE = 0.8
# Images/s that one core decodes, crops and resizes to 224 px from 500 x 375
# JPEGs, with RandAugment and without (docs/recipes.md: half of two cores).
_CORE_RATE = {True: 1_000.0, False: 1_200.0}
# Of TPU memory XLA keeps a part to itself: 16 GiB leave 15.75 for a program.
_RESERVED = 2**28
# What JAX takes of a GPU's memory, by XLA_PYTHON_CLIENT_MEM_FRACTION.
_GPU_SHARE = 0.75
# How many arrays as large as a block's activations are kept for the backward
# pass, of those of width C and of those of widths T and F. Fitted to what the
# compilers reserve: that for TPUs computes GELU and LayerNorm anew, that for
# GPUs keeps what they give out too, and on several puts off the kernels'
# gradients with what these need.
_KEPT = {"tpu": (2, 1), "gpu": (4, 2), "gpus": (6, 2)}
_REMAT_KEPT = {"pre_activations": (2, 1), "block": (1, 0)}
# How often the activations of a block go through memory, counted in those of
# width C and in those of widths T and F: fitted to what the TPU's compiler
# counts for the recipes.
_NARROW, _WIDE = 24, 17
# On more chips libtpu sums arrays of a Mixer's size on all of them where it
# could scatter or gather them.
_SCATTERS = 16
# XLA's own description of an H100 SXM, as a GpuTargetConfigProto in text form.
_H100 = pathlib.Path(__file__).parent / "h100.txt"
# Without a GPU nothing can be timed, so no kernel can be chosen by its time.
_GPU_OPTIONS = {
  "xla_gpu_autotune_level": 0,
  "xla_gpu_enable_triton_gemm": False,
}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is predicted: bytes, seconds and FLOP, mostly of one update."""

  target: hardware.Slice
  steps: int  # Updates of the run.
  batch_size: int
  parameters: int
  flop: int  # Of all devices together.
  weights: int  # On one device, as all that follow.
  optimizer: int  # Its state, and the average of the weights.
  batch: int  # As it is shipped.
  activations: int  # Alive at once.
  gradients: int  # Alive at once.
  limit: int  # What of a device's memory a program can have.
  reduced: int  # Sent to sum gradients and to gather weights.
  traffic: int  # To and from memory.
  seconds: dict[str, float]  # By "matmuls", "memory", "links", "input".
  host_images: float  # Images/s that each host has to deliver.
  host_cores: float  # That this takes.

  @property
  def arguments(self) -> int:
    """Bytes of state and batch, on one device."""
    return self.weights + self.optimizer + self.batch

  @property
  def memory(self) -> int:
    """Bytes that are alive at once on one device."""
    return self.arguments + self.activations + self.gradients

  @property
  def fits(self) -> bool:
    """Whether that is less than there is."""
    return self.memory <= self.limit

  @property
  def step_seconds(self) -> float:
    """The longest, as if they overlapped perfectly."""
    return max(self.seconds.values())

  @property
  def bottleneck(self) -> str:
    """Which that is."""
    return max(self.seconds, key=lambda what: self.seconds[what])

  @property
  def chip_hours(self) -> float:
    """Of the whole slice, without start, evaluation and saving."""
    return self.steps * self.step_seconds / 3600 * self.target.num_chips

  @property
  def mfu(self) -> float:
    """FLOP over what all devices could do in the time of an update."""
    could = self.target.num_devices * self.target.chip.flops
    return self.flop / could / self.step_seconds


def predict(
  config: config_lib.Config,
  target: hardware.Slice,
  examples: int,
  num_classes: int,
  cores: float | None = None,
  core_rate: float | None = None,
) -> Plan:
  """Applies the formulas to a config that is valid for the slice.

  Args:
    config: of the run.
    target: the slice.
    examples: of the training split.
    num_classes: K.
    cores: of each host, for the input; None: as usual for the slice.
    core_rate: images/s of one; None: as measured.
  """
  c, n, chip = config, target.num_devices, target.chip
  steps = durations.plan(c, examples)
  trainer = train_step.Trainer(c, steps, num_classes, abstract_mesh(c, n))
  model, state = trainer.model, trainer.abstract
  trained = optim.split(c, state.params)[0]
  parameters = _size(state.params)
  images, size = c.batch_size // n, config_lib.image_size(c)
  pixels, width = math.prod(size), np.dtype(model.dtype).itemsize
  blocks = _blocks(model, size)
  # Bytes that an image's activations and gradients move.
  each = width * sum(_NARROW * a + _WIDE * b for a, b in blocks)
  each *= 1.0 if c.model.remat == "none" else 4 / 3
  each *= 2 if c.optimizer.sam_rho else 1
  opt_bytes = _bytes_here(state.opt_state)
  shards = 4 * _size(state.opt_state) / opt_bytes if opt_bytes else 1.0
  traffic = round(images * (each + 24 * pixels + 16 * num_classes))
  traffic += round((150 + 24 / shards) * parameters)
  kept = width * _kept(c, blocks, target)
  kept += 6 * pixels * (2 + width / 2) + 12 * num_classes
  reduced = _reduced(c, target, _size(trained), parameters)
  # A ring's bytes as those of the sum of one array.
  summed = reduced * n / (2 * (n - 1)) if n > 1 else 0.0
  flop = train_step.update_flop(model, c) * c.batch_size
  rate = core_rate or _CORE_RATE[bool(c.data.randaugment_layers)]
  seconds = {
    "matmuls": flop / (n * chip.flops * MATMUL_SHARE),
    "memory": traffic / (chip.bandwidth * _MEMORY_SHARE),
    "links": target.all_reduce_seconds(summed) / _LINK_SHARE,
    "input": c.batch_size
    / (target.num_hosts * (cores or target.host_cores) * rate),
  }
  host_images = c.batch_size / target.num_hosts / max(seconds.values())
  return Plan(
    target=target,
    steps=steps.total,
    batch_size=c.batch_size,
    parameters=parameters,
    flop=flop,
    weights=_bytes_here(state.params),
    optimizer=opt_bytes + _bytes_here(state.ema),
    batch=images * (3 * pixels + 4),
    activations=round(images / c.optimizer.accumulate * kept),
    gradients=(1 + (c.optimizer.accumulate > 1)) * _bytes_here(trained),
    limit=_limit(target),
    reduced=reduced,
    traffic=traffic,
    seconds=seconds,
    host_images=host_images,
    host_cores=host_images / rate,
  )


def _limit(target: hardware.Slice) -> int:
  """Bytes of a device's memory that a program can have."""
  memory = target.chip.memory
  return round(memory - _RESERVED if target.grid else memory * _GPU_SHARE)


def abstract_mesh(config: config_lib.Config, num_devices: int) -> Any:
  """The mesh of devices that needn't exist."""
  fsdp = config.sharding.fsdp
  shape = (num_devices // fsdp, fsdp)
  return AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 2)


def _size(tree: Any) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))


def _bytes_here(tree: Any) -> int:
  """Of what one device holds."""
  return sum(
    x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
    for x in jax.tree.leaves(tree)
  )


def _blocks(
  model: model_lib.MlpMixer, size: tuple[int, int]
) -> list[tuple[int, int]]:
  """(narrow, wide) elements of each block and image: S C, and T C + S F."""
  s = math.prod(side // model.patch_size for side in size)
  c, t, f = model.hidden_dim, model.tokens_mlp_dim, model.channels_mlp_dim
  found = []
  for i in range(model.num_blocks):
    after = model.mixing.tokens(i, s)
    found.append((max(s, after) * c, t * c + after * f))
    s = after
  return found


def _kept(
  config: config_lib.Config,
  blocks: list[tuple[int, int]],
  target: hardware.Slice,
) -> int:
  """Elements of an image's activations that are alive at once."""
  several = not target.grid and target.num_devices > 1
  n, w = _KEPT["tpu" if target.grid else "gpus" if several else "gpu"]
  kept = [n * narrow + w * wide for narrow, wide in blocks]
  if several:
    return sum(kept)
  n, w = _REMAT_KEPT.get(config.model.remat, (n, w))
  again = sum(n * narrow + w * wide for narrow, wide in blocks)
  return min(sum(kept), again + max(kept))


def _reduced(
  config: config_lib.Config,
  target: hardware.Slice,
  trained: int,
  parameters: int,
) -> int:
  """Bytes that a device sends for gradients and weights."""
  f, n = config.sharding.fsdp, target.num_devices
  d = n // f  # Devices with the same part of the weights.
  sam = 2 if config.optimizer.sam_rho else 1
  width = {"float32": 4, "bfloat16": 2}[config.sharding.reduce_dtype]
  gradients = width * trained * sam
  weights = 2 * (f - 1) / f * 4 * parameters
  if config.sharding.zero1:
    scattered = (n - 1) / n * gradients
    # SAM's perturbed weights are sharded as new ones are.
    gathered = (d - 1) / d * 4 * parameters / f * sam
    if target.grid and n > _SCATTERS:
      return round(2 * (scattered + gathered) + weights)
    if not target.grid and config.optimizer.accumulate > 1:
      scattered *= 2  # Summed whole.
    return round(scattered + gathered + weights)
  summed = (f - 1) / f * gradients + 2 * (d - 1) / d * gradients / f
  return round(summed + weights)


def compiler_of(target: hardware.Slice) -> str:
  """The name and version of the compiler for a slice; UserError for none."""
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
  """The devices of a slice that isn't there, for a compiler."""
  if target.grid:
    words: dict[str, Any] = {"platform": "tpu"}
    grid = "x".join(map(str, target.grid))
    words["topology_name"] = f"{target.chip.name}:{grid}"
    if target.num_hosts == 1 and target.num_chips != 4:  # One host has all.
      words["chips_per_host_bounds"] = (*target.grid, 1, 1)[:3]
  else:
    here = min(target.num_devices, target.chip.host_devices)
    words = {
      "platform": "cuda",
      "topology_name": "h100",
      "target_config": _H100.read_text("utf-8"),
      "topology": f"1x{target.num_hosts}x{here}",
    }
  return list(topologies.get_topology_desc(**words).devices)


def lower(
  config: config_lib.Config, steps: durations.Plan, num_classes: int, mesh: Mesh
) -> Any:
  """The training step, `jax.stages.Lowered`, for the devices of a mesh."""
  trainer = train_step.Trainer(config, steps, num_classes, mesh)
  batch = abstract_batch(config, mesh)
  return trainer.train_step.lower(trainer.abstract, batch)


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


def compile_step(
  config: config_lib.Config,
  target: hardware.Slice,
  examples: int,
  num_classes: int,
) -> dict[str, Any]:
  """Compiles the training step for a slice.

  Returns:
    `compiler`, `fits`, `reason` (why not) and `seconds` of compiling; if it
    fits a device's memory, bytes of `arguments`, `temporaries`, `peak` of all,
    and `traffic`, which is None for GPUs.
  """
  found: dict[str, Any] = {"compiler": compiler_of(target)}
  steps, start = durations.plan(config, examples), time.perf_counter()
  try:
    mesh = sharding.make_mesh(devices(target), fsdp=config.sharding.fsdp)
    options = {} if target.grid else _GPU_OPTIONS
    lowered = lower(config, steps, num_classes, mesh)
    compiled = lowered.compile(compiler_options=options)
  except (RuntimeError, ValueError) as e:
    used = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ hbm", str(e))
    if not used and "RESOURCE_EXHAUSTED" not in str(e):
      why = first_line(e)
      raise UserError(f"the compiler for {target.name} failed: {why}.") from e
    reason = used[0] if used else first_line(e)[:200]
    return found | {"fits": False, "reason": reason}
  memory = compiled.memory_analysis()
  costs = compiled.cost_analysis() if target.grid else None
  peak, most = memory.peak_memory_in_bytes, _limit(target)
  used = f"Used {peak / 2**30:.2f}G of {most / 2**30:.2f}G"
  return found | {
    "fits": peak <= most,
    "reason": used if peak > most else "",
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "peak": peak,
    "traffic": round(costs["bytes accessed"]) if costs else None,
    "seconds": time.perf_counter() - start,
  }
