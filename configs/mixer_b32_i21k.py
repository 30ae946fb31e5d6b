"""Mixer-B/32 pre-trained on ImageNet-21k; the paper has this size on JFT alone.

  python -m mixer prepare imagenet21k --source=winter21_whole.tar.gz
  python train.py --config=configs/mixer_b32_i21k.py --workdir=DIR

Hardware: one host with 4 H100 GPUs; batch 4096 is divided among them.
Time: 7.6e19 FLOP. At 20 % of the peak that is 106 H100 hours ($320) or 534
hours of TPU v5e chips ($640): 27 hours on the host above, 8.3 on 64 v5e.
Predicted, not run: docs/recipes.md has the formula and what it assumes.
Expected: about 76 % on ImageNet after fine-tuning at 224 px. Predicted: the
paper's 75.53 % from JFT-300M, as B/16 has nearly the same from either set.

The paper's table 4 has one row for B on ImageNet-21k, which is taken here; its
table 3 reports B/16 alone.
Data, loss and head are as in configs/mixer_b16_i21k.py.
"""

from configs import mixer_b16_i21k
from mixer import config as config_lib


def get_config() -> config_lib.Config:
  """The recipe."""
  c = mixer_b16_i21k.get_config()
  c.model.variant = "B/32"
  return c
