"""Any of the paper's models as pre-trained on JFT-300M (tables 3 and 4).

  python train.py --config=configs/mixer_jft.py:H/14 --workdir=DIR \
    --config.data.name=NAME

JFT-300M (300 M images, 18,291 classes) isn't public: name a large set of your
own, prepared with the splits `train` and `validation`. Behind the colon is the
model, B/16 without. `total` has the epochs of JFT-300M as examples, so that a
run is as long on any set. Time, from FLOP at a share of the peak, is predicted
and not run (docs/recipes.md). Expected accuracy on ImageNet after fine-tuning
at 224 px: the paper's.

          epochs      FLOP  share  H100 hours  TPU v5e hours  ImageNet
    S/32       5    8.9e18   20 %          12             63   68.70 %
    S/16       5    3.4e19   20 %          48            239   73.83 %
    B/32       7    4.0e19   20 %          57            285   75.53 %
    B/16       7    1.6e20   40 %         111            559   80.00 %
    L/32       7    1.4e20   20 %         199            997   80.67 %
    L/16      14    1.1e21   40 %         788           3954   84.82 %
    H/14      14    3.0e21   40 %        2140          10744   86.32 %

Hardware: one host with 8 H100 GPUs, batch 4096 divided among them; one H100 for
S/32, 4 for S/16 and B/32; on GPUs L/16 and H/14 need
--config.optimizer.accumulate=4 (docs/scaling.md). The paper doesn't name the
loss on JFT: it is taken to be that on ImageNet-21k.
"""

import configs
from configs import mixer_b16_i21k
from mixer import config as config_lib

_JFT_SIZE = 300_000_000
# Table 4, and table 3 for L: model -> (epochs, learning rate).
_TABLE = {
  "S/32": (5, 3e-3),
  "S/16": (5, 3e-3),
  "B/32": (7, 3e-3),
  "B/16": (7, 3e-3),
  "L/32": (7, 1e-3),
  "L/16": (14, 1e-3),
  "H/14": (14, 1e-3),
}


def get_config(variant: str = "B/16") -> config_lib.Config:
  configs.choose(variant, "configs/mixer_jft.py", tuple(_TABLE))
  epochs, learning_rate = _TABLE[variant]
  c = mixer_b16_i21k.get_config()
  c.total = f"{epochs * _JFT_SIZE:_} examples"
  c.model.variant = variant
  c.model.stochastic_depth = 0.0
  c.data.name = "jft_300m"
  c.data.randaugment_layers = 0
  c.loss.mixup = 0.0
  c.optimizer.learning_rate = learning_rate
  c.optimizer.weight_decay = 0.03
  c.eval_every = "5%"
  return c
