"""Mixer-L/16 on ImageNet-1k from scratch, as in the paper (tables 3 and 4).

  python -m mixer prepare imagenet2012 --source=DIR_WITH_THE_TARS
  python train.py --config=configs/mixer_l16_i1k.py --workdir=DIR

Hardware: one host with 8 H100 GPUs, batch 4096 divided among them, with
--config.optimizer.accumulate=4: without it doesn't fit (docs/scaling.md).
Time: 1.0e20 FLOP. At 40 % of the peak that is 72 H100 hours ($220) or 362
hours of TPU v5e chips ($430): 9.0 hours on the host above, 5.7 on 64 v5e.
Predicted, not run: docs/recipes.md has the formula and what it assumes.
Expected: 71.76 % top-1 on the validation set (the paper's number). That is
less than B/16 reaches: so large a Mixer overfits ImageNet-1k.

All but the size is as in configs/mixer_b16_i1k.py.
"""

from configs import mixer_b16_i1k
from mixer import config as config_lib


def get_config() -> config_lib.Config:
  c = mixer_b16_i1k.get_config()
  c.model.variant = "L/16"
  return c
