"""Mixer-L/16 pre-trained on ImageNet-21k, as in the paper (tables 3 and 4).

  python -m mixer prepare imagenet21k --source=winter21_whole.tar.gz
  python train.py --config=configs/mixer_l16_i21k.py --workdir=DIR

Hardware: one host with 8 H100 GPUs, batch 4096 divided among them, with
--config.optimizer.accumulate=4: without it doesn't fit (docs/scaling.md).
Time: 1.0e21 FLOP. At 40 % of the peak that is 737 H100 hours ($2,200) or 3701
hours of TPU v5e chips ($4,400): 92 hours on the host above, 58 on 64 v5e.
Predicted, not run: docs/recipes.md has the formula and what it assumes.
Expected: 82.89 % on ImageNet after fine-tuning at 224 px, 83.91 to 84.15 % at
448 px (the paper's numbers).

Against B/16, RandAugment and mixup are stronger. Data, loss and head are as in
configs/mixer_b16_i21k.py.
"""

from configs import mixer_b16_i21k
from mixer import config as config_lib


def get_config() -> config_lib.Config:
  c = mixer_b16_i21k.get_config()
  c.model.variant = "L/16"
  c.data.randaugment_magnitude = 20
  c.loss.mixup = 0.5
  return c
