"""Predicts what a run takes: memory, communication, time.

`predict` applies the formulas of docs/scaling.md to the model's shape and the
data sheets in `hardware`; `compile_step` asks XLA's compiler for the slice,
which needs no device.
"""

import importlib.metadata
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from mixer import config as config_lib
from mixer import durations, hardware, optim, sharding, train_step
from mixer import model as model_lib
from mixer.errors import UserError, first_line, is_memory

# Shares of the data sheets' numbers that a well-made program reaches.
MATMUL_SHARE = 0.7
_MEMORY_SHARE = 0.8
_LINK_SHARE = 0.8
# Images/s that one core decodes, crops and resizes to 224 px from 500 x 375
# JPEGs, with RandAugment and without (docs/recipes.md: half of two cores).
_CORE_RATE = {True: 1_000.0, False: 1_200.0}
# How many arrays as large as a block's activations are kept for the backward
# pass, of those of width C and of those of widths T and F; fitted to what the
# compilers reserve.
_KEPT = {"tpu": (2, 1), "gpu": (4, 2), "gpus": (6, 2)}
_REMAT_KEPT = {"pre_activations": (2, 1), "block": (1, 0)}
# How often the activations of a block go through memory, likewise.
_NARROW, _WIDE = 24, 17
# On more chips libtpu sums arrays of a Mixer's size on all of them where it
# could scatter or gather them.
_SCATTERS = 16
# Without a GPU nothing can be timed, so no kernel can be chosen by its time.
_NO_TIMING = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
# The parts of a step; it takes as long as the longest, if they overlap.
TIMES = ("matmuls", "memory", "links", "input")


def predict(
  config: config_lib.Config,
  target: hardware.Slice,
  examples: int,
  num_classes: int,
  cores: float | None = None,
  core_rate: float | None = None,
) -> dict[str, float]:
  """The numbers of a plan by name; bytes are of one device.

  `examples` are of the training split; `cores` of each host and the images/s of
  one are, by default, as usual for the slice and as measured.
  """
  c, n, chip = config, target.num_devices, target.chip
  steps, f = durations.plan(c, examples), c.sharding.fsdp
  mesh: Any = AbstractMesh((n // f, f), sharding.AXES, (AxisType.Auto,) * 2)
  trainer = train_step.Trainer(c, steps, num_classes, mesh)
  model, state = trainer.model, trainer.abstract
  trained = optim.split(c, state.params)[0]
  parameters, accumulate = _size(state.params), c.optimizer.accumulate
  images, size = c.batch_size // n, config_lib.image_size(c)
  pixels, width = math.prod(size), np.dtype(model.dtype).itemsize
  blocks = _blocks(model, size)
  optimizer = _bytes_here(state.opt_state)
  found = {
    "devices": n,
    "hosts": target.num_hosts,
    "batch": c.batch_size,
    "training examples": examples,
    "classes": num_classes,
    "updates": steps.total,
    "parameters": parameters,
    "operations an update": model_lib.update_flop(model, c) * c.batch_size,
  }

  kept = width * _kept(c.model.remat, blocks, target)
  kept += 6 * pixels * (2 + width / 2) + 12 * num_classes
  memory = {
    "weights": _bytes_here(state.params),
    "optimizer, average": optimizer + _bytes_here(state.ema),
    "images": images * (3 * pixels + 4),
    "activations": round(images / accumulate * kept),
    "gradients": (1 + (accumulate > 1)) * _bytes_here(trained),
  }
  found |= memory | {"memory": sum(memory.values())}

  # Bytes that an image's activations and gradients move.
  each = width * sum(_NARROW * a + _WIDE * b for a, b in blocks)
  each *= 1.0 if c.model.remat == "none" else 4 / 3
  each *= 2 if c.optimizer.sam_rho else 1
  shards = 4 * _size(state.opt_state) / optimizer if optimizer else 1.0
  traffic = round(images * (each + 24 * pixels + 16 * num_classes))
  traffic += round((150 + 24 / shards) * parameters)
  sent = _sent(c, target, _size(trained), parameters)
  # A ring's bytes as those of the sum of one array.
  summed = sent * n / (2 * (n - 1)) if n > 1 else 0.0
  rate = core_rate or _CORE_RATE[bool(c.data.randaugment_layers)]
  decoded = target.num_hosts * (cores or target.host_cores) * rate
  seconds = (
    found["operations an update"] / (n * chip.flops * MATMUL_SHARE),
    traffic / (chip.bandwidth * _MEMORY_SHARE),
    target.all_reduce_seconds(summed) / _LINK_SHARE,
    c.batch_size / decoded,
  )
  host_images = c.batch_size / target.num_hosts / max(seconds)
  hours = steps.total * max(seconds) / 3600
  return found | {
    "communication": sent,
    "memory traffic": traffic,
    "images to decode": host_images,
    "cores": host_images / rate,
    **{f"time of {k}": s for k, s in zip(TIMES, seconds, strict=True)},
    "time of an update": max(seconds),
    "images a second": c.batch_size / max(seconds),
    "time of the run": hours,
    "chip-hours": hours * target.num_chips,
  }


def bottleneck(plan: dict[str, float]) -> str:
  """The part of a step that takes longest."""
  return max(TIMES, key=lambda name: plan[f"time of {name}"])


def _size(tree: Any) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))


def _bytes_here(tree: Any) -> int:
  """Of the part that one device holds."""
  return sum(
    x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
    for x in jax.tree.leaves(tree)
  )


def _blocks(model: Any, size: tuple[int, int]) -> list[tuple[int, int]]:
  """(narrow, wide) elements of each block and image: S C, and T C + S F."""
  s = math.prod(side // model.patch_size for side in size)
  c, t, f = model.hidden_dim, model.tokens_mlp_dim, model.channels_mlp_dim
  found = []
  for i in range(model.num_blocks):
    after = model.mixing.tokens(i, s)
    found.append((max(s, after) * c, t * c + after * f))
    s = after
  return found


def _kept(remat: str, blocks: list[Any], target: hardware.Slice) -> int:
  """Elements of an image's activations that are alive at once."""
  several = not target.grid and target.num_devices > 1
  n, w = _KEPT["tpu" if target.grid else "gpus" if several else "gpu"]
  kept = [n * narrow + w * wide for narrow, wide in blocks]
  if several:
    return sum(kept)
  n, w = _REMAT_KEPT.get(remat, (n, w))
  again = sum(n * narrow + w * wide for narrow, wide in blocks)
  return min(sum(kept), again + max(kept))


def _sent(
  config: config_lib.Config,
  target: hardware.Slice,
  trained: int,
  parameters: int,
) -> int:
  """Bytes that a device sends to sum gradients and to gather weights."""
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


def lower(
  config: config_lib.Config, steps: durations.Plan, num_classes: int, mesh: Mesh
) -> Any:
  """The training step, `jax.stages.Lowered`, for the devices of a mesh."""
  trainer = train_step.Trainer(config, steps, num_classes, mesh)
  batch = abstract_batch(config, mesh)
  return trainer.train_step.lower(trainer.abstract, batch)


def abstract_batch(config: config_lib.Config, mesh: Mesh) -> dict[str, Any]:
  """A batch as `train_step` takes it, without its values."""
  b, size = config.batch_size, config_lib.image_size(config)
  kinds = {"image": ((b, *size, 3), jnp.uint8), "label": ((b,), jnp.int32)}
  split = sharding.batch(mesh)
  return {
    name: jax.ShapeDtypeStruct(*kind, sharding=split)
    for name, kind in kinds.items()
  }


def compile_step(
  config: config_lib.Config, target: hardware.Slice, steps: Any, classes: int
) -> dict[str, Any]:
  """What the compiler for a slice says of the training step.

  Whether it `fits` a device's memory, and the `reason` if not; bytes of its
  `arguments`, `temporaries`, `peak` of all, and `traffic` (TPUs only).
  """
  start, limit = time.perf_counter(), target.program_memory
  package = "libtpu" if target.grid else "jax-cuda13-plugin"
  compiler = ""
  try:
    compiler = f"{package} {importlib.metadata.version(package)}"
    devices = target.describe_devices()
    mesh = sharding.make_mesh(devices, fsdp=config.sharding.fsdp)
    options = {} if target.grid else _NO_TIMING
    lowered = lower(config, steps, classes, mesh)
    compiled = lowered.compile(compiler_options=options)
  except (ImportError, RuntimeError, ValueError) as e:
    why, extra = first_line(e)[:200], "tpu" if target.grid else "gpu"
    if not is_memory(e):
      raise UserError(
        f"the compiler for {target.name} failed: {why}. `pip install -e "
        f'".[{extra}]"`, or make setup-{extra}, brings it; it needs no device.'
      ) from e
    return {"compiler": compiler, "fits": False, "reason": why}
  memory = compiled.memory_analysis()
  costs = compiled.cost_analysis() if target.grid else None
  fits = (peak := memory.peak_memory_in_bytes) <= limit
  return {
    "compiler": compiler,
    "fits": fits,
    "reason": "" if fits else f"{peak:,} of {limit:,} bytes",
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "peak": peak,
    "traffic": round(costs["bytes accessed"]) if costs else None,
    "seconds": time.perf_counter() - start,
  }
