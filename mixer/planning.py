"""Predicts what a run takes: memory, communication, time, money.

Everything comes from stated formulas (`FORMULAS`) over the model's shape and
the data sheets in `hardware`. docs/scaling.md compares them with what XLA's
compilers say (`compiling`) and with published runs.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from mixer import config as config_lib
from mixer import durations, hardware, optim, sharding, train_step
from mixer import model as model_lib

# Shares of the data sheets' numbers that a well-made program reaches.
MATMUL_SHARE = 0.7
MEMORY_SHARE = 0.8
LINK_SHARE = 0.8
# Images/s that one core decodes, crops and resizes to 224 px from 500 x 375
# JPEGs, with RandAugment and without (docs/recipes.md: half of two cores).
CORE_RATE = {True: 1_000.0, False: 1_200.0}
# Of TPU memory XLA keeps a part to itself: 16 GiB leave 15.75 for a program.
_RESERVED = 2**28
# What JAX takes of a GPU's memory, by XLA_PYTHON_CLIENT_MEM_FRACTION.
_GPU_SHARE = 0.75
# How many arrays as large as a block's activations are kept for the backward
# pass, of those of width C and of those of widths T and F. Fitted to what the
# compilers reserve (docs/scaling.md): that for TPUs computes GELU and LayerNorm
# anew, that for GPUs keeps what they give out too, and on several puts off the
# kernels' gradients with what these need.
_KEPT = {"tpu": (2, 1), "gpu": (4, 2), "gpus": (6, 2)}
_REMAT_KEPT = {"pre_activations": (2, 1), "block": (1, 0)}
# How often the activations of a block go through memory, counted in those of
# width C and in those of widths T and F: fitted to what the TPU's compiler
# counts for the recipes.
_NARROW, _WIDE = 24, 17
# On more chips libtpu sums arrays of a Mixer's size on all of them where it
# could scatter or gather them.
_SCATTERS = 16
FORMULAS = {
  "parameters": "P = all weights, from the model's shapes",
  "flop": "FLOP of an update = B x 3 x 2 x MAC of an image, less the stem's "
  "input gradient (mixer/model.py); twice that with SAM",
  "state": "float32 weights, optimizer and average on one device, by the "
  "sharding rules of mixer/sharding.py",
  "batch": "b (3 H W + 4), b = B / N images of a device",
  "activations": "(b / accumulate) (d sum over blocks (k S C + l (T C + S F)) "
  "+ 6 H W (2 + d / 2) + 12 K), d = 2 bytes in bfloat16, k = 2 and l = 1 on "
  "TPUs, 4 and 2 on a GPU, 6 and 2 on several, which keep more; with remat "
  "k = 2, l = 1 (pre_activations) or k = 1, l = 0 (block), and all of the "
  "widest, but not on several GPUs, whose compiler keeps nearly all of it",
  "gradients": "4 P of a device; twice that with accumulate > 1",
  "memory": "state + batch + activations + gradients",
  "reduced": "in rings of N devices each sends (N - 1) / N of what is "
  "scattered or gathered, twice that of what is summed. With ZeRO-1 r P of "
  "gradients is scattered, r = bytes of reduce_dtype, and 4 P of new weights "
  f"gathered; on more than {_SCATTERS} TPU chips libtpu sums both, and with "
  "accumulate the GPU's compiler the gradients. Without it r P is summed. SAM "
  "doubles all that. FSDP over f devices gathers the weights for the forward "
  "and the backward pass, 2 (f - 1) / f 4 P, and all else is of P / f in "
  "rings of N / f",
  "permuted": "one image and label to the next device, for mixup",
  "traffic": f"b d sum over blocks ({_NARROW} S C + {_WIDE} (T C + S F)) + "
  "24 b H W + 16 b K + 150 P + 24 P / shards of the optimizer; the first term "
  "4 / 3 times with remat and twice with SAM",
  "matmuls": f"FLOP / (N x peak x {MATMUL_SHARE:g})",
  "memory_time": f"traffic / (bandwidth x {MEMORY_SHARE:g})",
  "links": "bytes sent / bandwidth of the links out of a device that rings "
  f"can use x {LINK_SHARE:g}",
  "input": "B / (hosts x cores x images/s of a core)",
  "step": "the longest of the four, as if they overlapped perfectly",
}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is predicted: bytes, seconds and FLOP, mostly of one update."""

  target: hardware.Slice
  steps: int  # Updates of the run.
  batch_size: int
  examples: int  # Of the training split.
  num_classes: int
  parameters: int
  flop: int  # Of all devices together.
  weights: int  # On one device, as all that follow.
  optimizer: int  # Its state, and the average of the weights.
  batch: int  # As it is shipped.
  activations: int  # Alive at once.
  gradients: int  # Alive at once.
  limit: int  # What of a device's memory a program can have.
  reduced: int  # Sent to sum gradients and to gather weights.
  permuted: int  # Sent for mixup.
  traffic: int  # To and from memory.
  seconds: dict[str, float]  # By "matmuls", "memory", "links", "input".
  bottleneck: str  # Which of them is the longest.
  step_seconds: float  # That one.
  host_images: float  # Images/s that each host has to deliver.
  host_bytes: float  # Bytes/s that each host ships to its devices then.
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
  """Applies the formulas.

  Args:
    config: valid for this number of devices.
    target: the slice.
    examples: of the training split.
    num_classes: K.
    cores: of each host, for the input; None: as usual for the slice.
    core_rate: images/s of one; None: `CORE_RATE`.

  Raises:
    UserError: durations that don't fit together.
  """
  c, n, chip = config, target.num_devices, target.chip
  steps = durations.plan(c, examples)
  trainer = train_step.Trainer(c, steps, num_classes, abstract_mesh(c, n))
  model, state = trainer.model, trainer.abstract
  parameters = sum(x.size for x in jax.tree.leaves(state.params))
  trained = optim.split(c, state.params)[0]
  trained_size = sum(x.size for x in jax.tree.leaves(trained))
  height, width = config_lib.image_size(c)
  image_bytes = 3 * height * width + 4
  images = c.batch_size // n
  reduced = _reduced(c, target, trained_size, parameters)
  flop = train_step.update_flop(model, c) * c.batch_size
  opt_state = sum(x.size for x in jax.tree.leaves(state.opt_state))
  here = _bytes_here(state.opt_state)
  shards = 4 * opt_state / here if here else 1.0
  traffic = _traffic(model, c, images, num_classes)
  traffic += round((150 + 24 / shards) * parameters)
  # A ring's bytes as those of the sum of one array.
  summed = reduced * n / (2 * (n - 1)) if n > 1 else 0.0
  cores = cores or target.host_cores
  rate = core_rate or CORE_RATE[bool(c.data.randaugment_layers)]
  seconds = {
    "matmuls": flop / (n * chip.flops * MATMUL_SHARE),
    "memory": traffic / (chip.bandwidth * MEMORY_SHARE),
    "links": target.all_reduce_seconds(summed) / LINK_SHARE,
    "input": c.batch_size / (target.num_hosts * cores * rate),
  }
  bottleneck = max(seconds, key=lambda what: seconds[what])
  host_images = c.batch_size / target.num_hosts / seconds[bottleneck]
  return Plan(
    target=target,
    steps=steps.total,
    batch_size=c.batch_size,
    examples=examples,
    num_classes=num_classes,
    parameters=parameters,
    flop=flop,
    weights=_bytes_here(state.params),
    optimizer=here + _bytes_here(state.ema),
    batch=images * image_bytes,
    activations=_activations(model, c, images, num_classes, target),
    gradients=(1 + (c.optimizer.accumulate > 1)) * _bytes_here(trained),
    limit=limit(target),
    reduced=reduced,
    permuted=image_bytes if c.loss.mixup and n > 1 else 0,
    traffic=traffic,
    seconds=seconds,
    bottleneck=bottleneck,
    step_seconds=seconds[bottleneck],
    host_images=host_images,
    host_bytes=host_images * image_bytes,
    host_cores=host_images / rate,
  )


def limit(target: hardware.Slice) -> int:
  """Bytes of a device's memory that a program can have."""
  memory = target.chip.memory
  return round(memory - _RESERVED if target.grid else memory * _GPU_SHARE)


def abstract_mesh(config: config_lib.Config, num_devices: int) -> Any:
  """The mesh of devices that needn't exist."""
  fsdp = config.sharding.fsdp
  shape = (num_devices // fsdp, fsdp)
  return AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 2)


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


def _activations(
  model: model_lib.MlpMixer,
  config: config_lib.Config,
  images: int,
  num_classes: int,
  target: hardware.Slice,
) -> int:
  size = config_lib.image_size(config)
  width = np.dtype(model.dtype).itemsize
  several = not target.grid and target.num_devices > 1
  n, w = _KEPT["tpu" if target.grid else "gpus" if several else "gpu"]
  blocks = _blocks(model, size)
  kept = [n * narrow + w * wide for narrow, wide in blocks]
  total = sum(kept)
  if not several:
    n, w = _REMAT_KEPT.get(config.model.remat, (n, w))
    again = sum(n * narrow + w * wide for narrow, wide in blocks)
    total = min(total, again + max(kept))
  pixels = 6 * math.prod(size) * (2 + width / 2)
  each = width * total + pixels + 12 * num_classes
  return round(images / config.optimizer.accumulate * each)


def _traffic(
  model: model_lib.MlpMixer,
  config: config_lib.Config,
  images: int,
  num_classes: int,
) -> int:
  size = config_lib.image_size(config)
  each = np.dtype(model.dtype).itemsize * sum(
    _NARROW * narrow + _WIDE * wide for narrow, wide in _blocks(model, size)
  )
  each *= 1.0 if config.model.remat == "none" else 4 / 3
  each *= 2 if config.optimizer.sam_rho else 1
  return round(images * (each + 24 * math.prod(size) + 16 * num_classes))


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
