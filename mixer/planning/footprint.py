"""Bytes that an update keeps, moves and sends, by the model's shape.

The formulas are written out in `formulas.FORMULAS`.
"""

import math
from typing import Any

import jax
import numpy as np

from mixer import config as config_lib
from mixer import model as model_lib
from mixer.planning import hardware

# How many arrays as large as a block's activations are kept for the backward
# pass, of those of width C and of those of widths T and F. Fitted to what the
# compilers reserve (docs/scaling.md): that for TPUs computes GELU and LayerNorm
# anew, that for GPUs keeps what they give out too, and on several puts off the
# kernels' gradients with what these need.
KEPT = {"tpu": (2, 1), "gpu": (4, 2), "gpus": (6, 2)}
# The same by policies of rematerialisation.
REMAT_KEPT = {"pre_activations": (2, 1), "block": (1, 0)}
# How often the activations of a block go through memory, counted in those of
# width C and in those of widths T and F: fitted to what the TPU's compiler
# counts for the recipes (docs/scaling.md).
TRAFFIC_NARROW = 24.0
TRAFFIC_WIDE = 17.0

# On more chips libtpu sums arrays of a Mixer's size on all of them where it
# could scatter or gather them (docs/scaling.md).
SCATTERS = 16


def bytes_here(tree: Any) -> int:
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


def activations(
  model: model_lib.MlpMixer,
  config: config_lib.Config,
  images: int,
  num_classes: int,
  target: hardware.Slice,
) -> int:
  """What is kept for the backward pass, on one device of a slice."""
  size = config_lib.image_size(config)
  width = np.dtype(model.dtype).itemsize
  several = target.platform == "gpu" and target.num_devices > 1
  n, w = KEPT["gpus" if several else target.platform]
  blocks = _blocks(model, size)
  kept = [n * narrow + w * wide for narrow, wide in blocks]
  total = sum(kept)
  # On several GPUs nearly all of it is kept all the same.
  if not several:
    n, w = REMAT_KEPT.get(config.model.remat, (n, w))
    again = sum(n * narrow + w * wide for narrow, wide in blocks)
    total = min(total, again + max(kept))
  pixels = 6 * math.prod(size) * (2 + width / 2)
  each = width * total + pixels + 12 * num_classes
  return round(images / config.optimizer.accumulate * each)


def traffic(
  model: model_lib.MlpMixer,
  config: config_lib.Config,
  images: int,
  num_classes: int,
) -> int:
  """Bytes through memory for the activations, on one device."""
  size = config_lib.image_size(config)
  width = np.dtype(model.dtype).itemsize
  each = width * sum(
    TRAFFIC_NARROW * narrow + TRAFFIC_WIDE * wide
    for narrow, wide in _blocks(model, size)
  )
  factor = 1.0 if config.model.remat == "none" else 4 / 3
  factor *= 2 if config.optimizer.sam_rho else 1
  each = each * factor + 24 * math.prod(size) + 16 * num_classes
  return round(images * each)


def reduced(
  config: config_lib.Config,
  n: int,
  trained: int,
  parameters: int,
  platform: str = "gpu",
) -> int:
  """Bytes that a device sends for gradients and weights.

  Args:
    config: of the run.
    n: devices.
    trained: number of weights with a gradient.
    parameters: number of all weights.
    platform: "tpu", "gpu" or "cpu".
  """
  h, f = config.sharding, config.sharding.fsdp
  d = n // f  # Devices with the same part of the weights.
  width = {"float32": 4, "bfloat16": 2}[h.reduce_dtype]
  gradients = width * trained * (2 if config.optimizer.sam_rho else 1)
  weights = 2 * (f - 1) / f * 4 * parameters
  parts = config.optimizer.accumulate
  if platform == "cpu":
    gradients *= parts  # Summed in every iteration.
  if h.zero1:
    scattered = (n - 1) / n * gradients
    gathered = (d - 1) / d * 4 * parameters / f
    # SAM's perturbed weights lie as new ones do.
    gathered *= 2 if config.optimizer.sam_rho else 1
    if platform == "tpu" and n > SCATTERS:
      return round(2 * (scattered + gathered) + weights)
    if platform == "cpu" or (platform == "gpu" and parts > 1):
      scattered *= 2  # Summed whole.
    return round(scattered + gathered + weights)
  summed = (f - 1) / f * gradients + 2 * (d - 1) / d * gradients / f
  return round(summed + weights)
