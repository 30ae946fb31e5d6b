"""The other sizes on ImageNet-21k: L/16 as in the paper, S/32, S/16 and B/32.

  python -m mixer prepare imagenet21k --source=winter21_whole.tar.gz
  python train.py --config=configs/mixer_i21k.py:L/16 --workdir=DIR

Behind the colon is the model. Hardware: one host with the number of H100 GPUs
below; batch 4096 is divided among them. L/16 needs
--config.optimizer.accumulate=4 there (docs/scaling.md). Time, from FLOP at a
share of the peak, is predicted and not run (docs/recipes.md). Expected accuracy
on ImageNet after fine-tuning at 224 px: the paper's for L/16 (at 448 px 83.91
to 84.15 %), for the others predicted from the paper's with JFT-300M.

            FLOP  share  H100 hours  TPU v5e hours  H100  ImageNet
    S/32  2.3e19   20 %          33            164     1  about 69 %
    S/16  8.9e19   20 %         125            625     4  about 74 %
    B/32  7.6e19   20 %         106            534     4  about 76 %
    L/16  1.0e21   40 %         737           3701     8  82.89 %
"""

import configs
from configs import mixer_b16_i21k
from mixer import config as config_lib

VARIANTS = ("S/32", "S/16", "B/32", "L/16")


def get_config(variant: str = "B/32") -> config_lib.Config:
  configs.choose(variant, "configs/mixer_i21k.py", VARIANTS)
  c = mixer_b16_i21k.get_config()
  c.model.variant = variant
  if variant == "L/16":
    c.data.randaugment_magnitude = 20
    c.loss.mixup = 0.5
  return c
