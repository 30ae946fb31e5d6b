"""Mixer-B/16 pre-trained on ImageNet-21k, as in the paper (tables 3 and 4).

  python -m mixer prepare imagenet21k --source=winter21_whole.tar.gz
  python train.py --config=configs/mixer_b16_i21k.py --workdir=DIR

Hardware: one host with 8 H100 GPUs; batch 4096 is divided among them.
Time: 3.0e20 FLOP. At 40 % of the peak that is 208 H100 hours ($620) or 1046
hours of TPU v5e chips ($1,300): 26 hours on the host above, 16 on 64 v5e.
Predicted, not run: docs/recipes.md has the formula and what it assumes.
Expected: 80.64 % on ImageNet after fine-tuning at 224 px (the paper's number).

ImageNet-21K-P works as well, by `--config.data.name=imagenet21k_p`. The loss is
the authors' sigmoid cross-entropy.
"""

from mixer import config as config_lib


def get_config() -> config_lib.Config:
  c = config_lib.default()
  c.batch_size = 4096
  c.total = "300 epochs"
  c.image_size = 224

  c.model.variant = "B/16"
  c.model.stochastic_depth = 0.1
  c.model.head_bias = -10.0

  c.data.name = "imagenet21k"
  c.data.crop_area_min = 0.05
  c.data.randaugment_layers = 2
  c.data.randaugment_magnitude = 10

  c.loss.name = "sigmoid"
  c.loss.mixup = 0.2

  c.optimizer.name = "adamw"
  c.optimizer.learning_rate = 1e-3
  c.optimizer.weight_decay = 0.1
  c.optimizer.clip_norm = 1.0
  c.schedule.warmup = "10000 steps"
  c.schedule.decay = "linear"

  c.eval_every = "5 epochs"
  c.checkpoint_every = "1000 steps"
  return c
