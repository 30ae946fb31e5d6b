"""Mixer-S/32, S/16 and B/32 on ImageNet-21k; the paper has them on JFT alone.

  python -m mixer prepare imagenet21k --source=winter21_whole.tar.gz
  python train.py --config=configs/mixer_i21k.py:B/32 --workdir=DIR

Behind the colon is the model. Hardware: one host with the number of H100 GPUs
below; batch 4096 is divided among them. (S/32 wants 33,400 images/s decoded:
some 34 cores.) Time, from FLOP at 20 % of the peak, predicted and not run
(docs/recipes.md has the formula and what it assumes), and expected accuracy on
ImageNet after fine-tuning at 224 px: predicted, the paper's from JFT-300M, as
B/16 has nearly the same from either set.

            FLOP  share  H100 hours  TPU v5e hours  H100  ImageNet
    S/32  2.3e19   20 %          33            164     1  about 69 %
    S/16  8.9e19   20 %         125            625     4  about 74 %
    B/32  7.6e19   20 %         106            534     4  about 76 %

All but the size is as in configs/mixer_b16_i21k.py: the row of the paper's
table 4 for B on ImageNet-21k. It has none for S, which may want less
augmentation.
"""

from configs import mixer_b16_i21k
from mixer import config as config_lib

VARIANTS = ("S/32", "S/16", "B/32")


def get_config(variant: str = "B/32") -> config_lib.Config:
  config_lib.choose(variant, "configs/mixer_i21k.py", VARIANTS)
  c = mixer_b16_i21k.get_config()
  c.model.variant = variant
  return c
