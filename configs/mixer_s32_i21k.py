"""Mixer-S/32 pre-trained on ImageNet-21k; the paper has this size on JFT alone.

  python -m mixer prepare imagenet21k --source=winter21_whole.tar.gz
  python train.py --config=configs/mixer_s32_i21k.py --workdir=DIR

Hardware: one host with 1 H100 GPU, which wants 33,400 images/s decoded: some 34
cores.
Time: 2.3e19 FLOP. At 20 % of the peak that is 33 H100 hours ($98) or 164
hours of TPU v5e chips ($200): 33 hours on the host above, 2.6 on 64 v5e.
Predicted, not run: docs/recipes.md has the formula and what it assumes.
Expected: about 69 % on ImageNet after fine-tuning at 224 px. Predicted: the
paper's 68.70 % from JFT-300M, as B/16 has nearly the same from either set.

The paper's table 4 has no row for S on ImageNet-21k; this is its row for B. So
small a model may well want less augmentation: nobody has tried here.
Data, loss and head are as in configs/mixer_b16_i21k.py.
"""

from configs import mixer_b16_i21k
from mixer import config as config_lib


def get_config() -> config_lib.Config:
  """The recipe."""
  c = mixer_b16_i21k.get_config()
  c.model.variant = "S/32"
  return c
