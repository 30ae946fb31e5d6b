"""The paper's permutation study (section 3.4, figure 4) at its size: B/16.

  python train.py --config=configs/experiment_permutation_b16.py --workdir=DIR1
  python train.py --config=configs/experiment_permutation_b16.py:patches \
    --workdir=DIR2
  python train.py --config=configs/experiment_permutation_b16.py:pixels \
    --workdir=DIR3

As configs/mixer_b16_i21k.py, with hardware and time as told there, three times:
on images as they are, on images whose 16 x 16 patches are shuffled, and the
pixels inside each, and on images whose pixels are. The paper did it on
JFT-300M, as configs/mixer_jft.py; --config.data.name takes a large set of your
own. Its measure is the accuracy of 5-shot regression on ImageNet, which is
evaluated along the way: prepare imagenet2012 as well (docs/data.md).

Expected, as in the paper: the curves of the first two are the same; shuffling
all pixels costs Mixer about 45 % of its accuracy (ResNet-50: about 75 %, and it
loses much from shuffled patches already). Not run here.
"""

from configs import experiment_permutation, mixer_b16_i21k
from mixer import config as config_lib


def get_config(kind: str = "none") -> config_lib.Config:
  """The recipe.

  Args:
    kind: what stands behind the colon: none, patches or pixels.

  Raises:
    UserError: there is no such permutation.
  """
  c = mixer_b16_i21k.get_config()
  c.fewshot.name = "imagenet2012"
  c.fewshot.train_split = "train"
  c.fewshot.eval_split = "validation"
  c.fewshot.shots = (5,)
  return experiment_permutation.permuted(c, kind)
