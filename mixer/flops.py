"""Operations per image, and what a device can do a second at most."""

import math

from mixer import config as config_lib
from mixer import model as model_lib
from mixer.planning import hardware

# The table of what devices can do is there.
peak = hardware.peak


def forward_macs(
  model: model_lib.MlpMixer, image_size: int | tuple[int, int]
) -> tuple[int, int]:
  """Multiply-accumulates of one image: (all, those of the stem).

  Sharing MLPs, or not, and grouping channels change nothing in them: the G
  times as long inputs are 1 / G as many.
  """
  sides = (image_size,) * 2 if isinstance(image_size, int) else image_size
  s = math.prod(side // model.patch_size for side in sides)
  c, t, f = model.hidden_dim, model.tokens_mlp_dim, model.channels_mlp_dim
  total = stem = s * 3 * model.patch_size**2 * c
  for block in range(model.num_blocks):
    after = model.mixing.tokens(block, s)
    if model.mixing.projection:
      total += s * c * c
    if after != s:
      total += s * after * c  # The shortcut.
    total += (s + after) * c * t + 2 * after * c * f
    s = after
  return total + c * model.num_classes, stem


def training(
  model: model_lib.MlpMixer, image_size: int | tuple[int, int]
) -> int:
  """FLOP to train on one image: forward, and twice that backward.

  The stem needs no gradient for its input. Recomputation is not counted, nor
  is anything elementwise.
  """
  macs, stem = forward_macs(model, image_size)
  return 6 * macs - 2 * stem


def update(model: model_lib.MlpMixer, config: config_lib.Config) -> int:
  """FLOP of an update, per image, with what the config asks for.

  SAM trains twice; a linear probe goes forward, and through the head alone
  backward.
  """
  size = config_lib.image_size(config)
  if config.optimizer.train == "head":
    head = model.hidden_dim * model.num_classes
    # The head's input needs no gradient.
    flop = 2 * forward_macs(model, size)[0] + 2 * head
  else:
    flop = training(model, size)
  return 2 * flop if config.optimizer.sam_rho else flop
