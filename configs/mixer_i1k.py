"""Mixer-B/16 and L/16 on ImageNet-1k from scratch (the paper's tables 3 and 4).

  python -m mixer prepare imagenet2012 --source=DIR_WITH_THE_TARS
  python train.py --config=configs/mixer_i1k.py --workdir=DIR1
  python train.py --config=configs/mixer_i1k.py:B/16,sam --workdir=DIR2

Behind the colon is the model, B/16 without, and `sam` for Sharpness-Aware
Minimization (arXiv 2106.01548). Hardware: one host with 8 H100 GPUs; batch 4096
is divided among them. L/16 needs --config.optimizer.accumulate=4 there
(docs/scaling.md). Time, from FLOP at a share of the peak, is predicted and not
run (docs/recipes.md; the authors' own code took 2 h 11 min for B/16 on a TPU
v3-128). Expected: top-1 on the validation set, the papers' numbers.

                FLOP  share  H100 hours  TPU v5e hours  ImageNet
    B/16      2.9e19   40 %          20            102  76.44 %
    L/16      1.0e20   40 %          72            362  71.76 % (overfits)
    B/16,sam  5.8e19   40 %          41            204  77.4 %

To choose anything, hold a part of `train` out:

    --config.data.train_split="train[:99%]"
    --config.data.eval_split="train[99%:]"

With SAM crop and flip are the only augmentation. Its 77.4 % may not be reached:
the authors perturb the weights on each of 64 chips by the gradient of that
chip's images (github.com/google-research/vision_transformer/issues/153), here
it is one perturbation for the whole batch; rho and stochastic depth are ours.
"""

import configs
from configs import mixer_b16_i21k
from mixer import config as config_lib


def get_config(words: str = "B/16") -> config_lib.Config:
  configs.choose(words, "configs/mixer_i1k.py", ("B/16", "L/16", "B/16,sam"))
  c = mixer_b16_i21k.get_config()
  c.model.variant, _, sam = words.partition(",")
  c.model.head_bias = -6.9  # The logit of one class in a thousand.
  c.data.name = "imagenet2012"
  c.data.randaugment_magnitude = 15
  c.loss.mixup = 0.5
  if sam:
    c.data.randaugment_layers = 0
    c.loss.mixup = 0.0
    c.optimizer.learning_rate = 3e-3
    c.optimizer.weight_decay = 0.3
    c.optimizer.sam_rho = 0.6
  return c
