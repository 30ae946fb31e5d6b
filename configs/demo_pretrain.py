"""The demo's pre-training: a small Mixer on the shipped glyphs.

  python train.py --config=configs/demo_pretrain.py --workdir=runs/glyphs

Hardware: two CPU cores. Time and accuracy: see the README, which has them as
measured; `make demo` runs this as its first part.
"""

from mixer import config as config_lib


def get_config() -> config_lib.Config:
  """The recipe."""
  c = config_lib.default()
  c.batch_size = 128
  c.total = "900 steps"
  c.image_size = 16

  c.model.variant = "S/4"
  c.model.num_blocks = 4
  c.model.hidden_dim = 128
  c.model.tokens_mlp_dim = 64
  c.model.channels_mlp_dim = 512
  c.model.dtype = "float32"

  c.data.name = "glyphs"
  c.data.eval_split = "test"
  c.data.crop_area_min = 0.75
  c.data.flip = False
  c.data.eval_short_side = 0  # As in training, digits are enlarged smoothly.
  c.data.threads = 2

  c.loss.name = "softmax"

  c.optimizer.name = "adamw"
  c.optimizer.learning_rate = 3e-3
  c.optimizer.weight_decay = 0.05
  c.optimizer.clip_norm = 1.0
  c.schedule.warmup = "5%"
  c.schedule.decay = "cosine"

  c.log_every = "25 steps"
  c.eval_every = "150 steps"
  c.checkpoint_every = "450 steps"

  c.fewshot.name = "digits"
  return c
