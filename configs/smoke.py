"""A tiny Mixer on the shipped digits: seconds on a CPU.

  python train.py --config=configs/smoke.py --workdir=runs/smoke

Shows that an installation works, end to end; says nothing about accuracy.
"""

import configs
from mixer import config as config_lib


def get_config() -> config_lib.Config:
  c = config_lib.default()
  c.batch_size = 32
  c.total = "60 steps"
  c.image_size = 16
  configs.small_model(c, "S/4", 2, 32, 16, 64)
  c.model.dropout = 0.1
  c.model.stochastic_depth = 0.1
  c.data.name = "digits"
  c.data.eval_split = "test"
  c.data.crop_area_min = 0.5
  c.data.flip = False
  c.data.eval_short_side = 16
  c.data.threads = 2
  c.loss.mixup = 0.2
  c.optimizer.learning_rate = 1e-2
  c.optimizer.weight_decay = 0.05
  c.optimizer.ema_decay = 0.9
  c.schedule.warmup = "5 steps"
  c.schedule.decay = "cosine"
  c.log_every = "10 steps"
  c.eval_every = "30 steps"
  c.checkpoint_every = "20 steps"
  return c
