"""Predicts what a run takes: memory, communication, time, money.

Everything comes from stated formulas (`FORMULAS`) over the model's shape and
the data sheets in `hardware`. docs/scaling.md holds them against what XLA's
compilers say and against published runs.
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from mixer import config as config_lib
from mixer import durations, optim, sharding, train_step
from mixer.planning import footprint, hardware

# Shares of the data sheets' numbers that a well-made program reaches.
MATMUL_SHARE = 0.7
MEMORY_SHARE = 0.8
LINK_SHARE = 0.8
# Images/s that one core decodes, crops and resizes to 224 px from 500 x 375
# JPEGs, with RandAugment and without (docs/recipes.md: half of two cores).
CORE_RATE = {True: 1_000.0, False: 1_200.0}
# Of TPU memory XLA keeps a part to itself: 16 GiB leave 15.75 for a program.
RESERVED = 2**28
# JAX takes so much of a GPU's memory unless it is told otherwise, by
# XLA_PYTHON_CLIENT_MEM_FRACTION.
GPU_SHARE = 0.75
FORMULAS = {
  "parameters": "P = all weights, from the model's shapes",
  "flop": "FLOP of an update = B x 3 x 2 x MAC of an image, less the stem's "
  "input gradient (mixer/model.py); twice that with SAM",
  "state": "what lies on one device of float32 weights, optimizer and average, "
  "by the sharding rules of mixer/sharding.py",
  "batch": "b (3 H W + 4), b = B / N images of a device",
  "activations": "(b / accumulate) (d sum over blocks (k S C + l (T C + S F)) "
  "+ 6 H W (2 + d / 2) + 12 K), d = 2 bytes in bfloat16, k = "
  f"{footprint.KEPT['tpu'][0]} and l = {footprint.KEPT['tpu'][1]} on TPUs, "
  f"{footprint.KEPT['gpu'][0]} and {footprint.KEPT['gpu'][1]} on a GPU, "
  f"{footprint.KEPT['gpus'][0]} and {footprint.KEPT['gpus'][1]} on several, "
  "which keep more; with remat k = 2, l = 1 (pre_activations) or k = 1, l = 0 "
  "(block), and all of the widest, but not on several GPUs, whose compiler "
  "keeps nearly all of it all the same",
  "gradients": "4 P of a device; twice that with accumulate > 1",
  "memory": "state + batch + activations + gradients",
  "reduced": "in rings of N devices each sends (N - 1) / N of what is "
  "scattered or gathered, twice that of what is summed. With ZeRO-1 r P of "
  "gradients is scattered, r = bytes of reduce_dtype, and 4 P of new weights "
  f"gathered; on more than {footprint.SCATTERS} TPU chips libtpu sums both, "
  "and with accumulate the GPU's compiler the gradients. Without it r P is "
  "summed. SAM doubles all that. FSDP over f devices gathers the weights for "
  "the forward and the backward pass, 2 (f - 1) / f 4 P, and all else is of "
  "P / f in rings of N / f",
  "permuted": "one image and label to the next device, for mixup",
  "traffic": f"b d sum over blocks ({footprint.TRAFFIC_NARROW:g} S C + "
  f"{footprint.TRAFFIC_WIDE:g} (T C + S F)) + 24 b H W + 16 b K + 150 P + "
  "24 P / shards of the optimizer; the first term 4 / 3 times with remat and "
  "twice with SAM",
  "matmuls": f"FLOP / (N x peak x {MATMUL_SHARE:g})",
  "memory_time": f"traffic / (bandwidth x {MEMORY_SHARE:g})",
  "links": "bytes sent / bandwidth of the links out of a device that rings "
  f"can use x {LINK_SHARE:g}",
  "input": "B / (hosts x cores x images/s of a core)",
  "step": "the longest of the four, as if they overlapped perfectly",
}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is predicted; bytes, seconds and FLOP, of one update where not said.

  Attributes:
    target: the slice.
    steps: updates of the run.
    batch_size: B.
    examples: of the training split.
    num_classes: K.
    parameters: P.
    flop: of all devices together.
    weights: of one device, as the next four.
    optimizer: its state, and the average of the weights.
    batch: as it is shipped.
    activations: alive at once.
    gradients: alive at once.
    limit: what of a device's memory a program can have.
    reduced: that a device sends to sum gradients and to gather weights.
    permuted: that it sends for mixup.
    traffic: to and from the memory of a device.
    seconds: of an update, by what takes them: "matmuls", "memory", "links",
      "input".
    host_images: images/s that each host has to deliver at `step_seconds`.
    host_bytes: bytes/s that each host ships to its devices then.
    host_cores: that this takes.
  """

  target: hardware.Slice
  steps: int
  batch_size: int
  examples: int
  num_classes: int
  parameters: int
  flop: int
  weights: int
  optimizer: int
  batch: int
  activations: int
  gradients: int
  limit: int
  reduced: int
  permuted: int
  traffic: int
  seconds: dict[str, float]
  host_images: float
  host_bytes: float
  host_cores: float

  @property
  def arguments(self) -> int:
    """Of state and batch, on one device."""
    return self.weights + self.optimizer + self.batch

  @property
  def memory(self) -> int:
    """All that is alive at once on one device."""
    return self.arguments + self.activations + self.gradients

  @property
  def fits(self) -> bool:
    """Whether that is less than there is."""
    return self.memory <= self.limit

  @property
  def bottleneck(self) -> str:
    """The key of `seconds` with the most."""
    return max(self.seconds, key=lambda k: self.seconds[k])

  @property
  def step_seconds(self) -> float:
    """Of an update."""
    return self.seconds[self.bottleneck]

  @property
  def run_seconds(self) -> float:
    """Of all updates, without start, evaluation and saving."""
    return self.steps * self.step_seconds

  @property
  def chip_hours(self) -> float:
    """Of the whole slice, as it is rented."""
    return self.run_seconds / 3600 * self.target.num_chips

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
  *,
  cores: float | None = None,
  core_rate: float | None = None,
) -> Plan:
  """Applies the formulas.

  Args:
    config: valid for so many devices.
    target: the slice.
    examples: of the training split.
    num_classes: K.
    cores: of each host, for the input; None: as usual for the slice.
    core_rate: images/s of one; None: `CORE_RATE`.

  Raises:
    UserError: durations that don't fit together.
  """
  c, n = config, target.num_devices
  plan = durations.plan(config, examples)
  trainer = train_step.Trainer(config, plan, num_classes, abstract_mesh(c, n))
  model, state = trainer.model, trainer.abstract
  parameters = sum(x.size for x in jax.tree.leaves(state.params))
  trained = optim.split(config, state.params)[0]
  trained_size = sum(x.size for x in jax.tree.leaves(trained))
  height, width = config_lib.image_size(config)
  images = c.batch_size // n
  batch = images * (3 * height * width + 4)
  copies = 2 if c.optimizer.accumulate > 1 else 1
  permuted = 3 * height * width + 4 if c.loss.mixup and n > 1 else 0
  reduced = footprint.reduced(
    config, n, trained_size, parameters, target.platform
  )
  flop = train_step.update_flop(model, config) * c.batch_size
  sizes = [x.size for x in jax.tree.leaves(state.opt_state)]
  here = footprint.bytes_here(state.opt_state)
  shards = 4 * sum(sizes) / here if here else 1.0
  traffic = footprint.traffic(model, config, images, num_classes) + round(
    (150 + 24 / shards) * parameters
  )
  # A ring's bytes as those of the sum of one array.
  summed = reduced * n / (2 * (n - 1)) if n > 1 else 0.0
  cores = cores or target.host_cores
  rate = core_rate or CORE_RATE[bool(c.data.randaugment_layers)]
  chip = target.chip
  seconds = {
    "matmuls": flop / (n * chip.flops * MATMUL_SHARE),
    "memory": traffic / (chip.bandwidth * MEMORY_SHARE),
    "links": target.all_reduce_seconds(summed) / LINK_SHARE,
    "input": c.batch_size / (target.num_hosts * cores * rate),
  }
  host_images = c.batch_size / target.num_hosts / max(seconds.values())
  return Plan(
    target=target,
    steps=plan.total,
    batch_size=c.batch_size,
    examples=examples,
    num_classes=num_classes,
    parameters=parameters,
    flop=flop,
    weights=footprint.bytes_here(state.params),
    optimizer=here + footprint.bytes_here(state.ema),
    batch=batch,
    activations=footprint.activations(
      model, config, images, num_classes, target
    ),
    gradients=copies * footprint.bytes_here(trained),
    limit=limit(target),
    reduced=reduced,
    permuted=permuted,
    traffic=traffic,
    seconds=seconds,
    host_images=host_images,
    host_bytes=host_images * (3 * height * width + 4),
    host_cores=host_images / rate,
  )


def limit(target: hardware.Slice) -> int:
  """Bytes of a device's memory that a program can have."""
  if target.grid:
    return target.chip.memory - RESERVED
  return round(target.chip.memory * GPU_SHARE)


def abstract_mesh(config: config_lib.Config, num_devices: int) -> Any:
  """The mesh of so many devices that needn't exist."""
  fsdp = config.sharding.fsdp
  shape = (num_devices // fsdp, fsdp)
  return AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 2)
