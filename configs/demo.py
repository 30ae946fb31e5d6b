"""The two recipes of `make demo`: glyphs, and from there handwritten digits.

  python train.py --config=configs/demo.py --workdir=runs/glyphs
  python train.py --config=configs/demo.py:digits --workdir=runs/digits \
    --config.init_from=runs/glyphs

The second fine-tunes the first's small Mixer (0.56 M parameters) or, without
`init_from`, trains it from scratch. Lengths and learning rates were chosen on
`train[80%:]`. Hardware: two CPU cores. Time and accuracy: README.md.
"""

import configs
from mixer import config as config_lib


def get_config(which: str = "glyphs") -> config_lib.Config:
  configs.choose(which, "configs/demo.py", ("glyphs", "digits"))
  c = config_lib.default()
  c.batch_size = 128
  c.total = "700 steps"
  c.image_size = 16
  configs.small_model(c, "S/4", 4, 128, 64, 512)

  c.data.name = "glyphs"
  c.data.eval_split = "test"
  c.data.crop_area_min = 0.75
  c.data.flip = False
  c.data.eval_short_side = 0  # As in training, digits are enlarged smoothly.
  c.data.threads = 2

  c.optimizer.learning_rate = 3e-3
  c.optimizer.weight_decay = 0.05
  c.schedule.warmup = "5%"
  c.schedule.decay = "cosine"

  c.log_every = "25 steps"
  c.eval_every = "25%"
  c.checkpoint_every = "50%"
  c.fewshot.name = "digits"

  if which == "digits":
    c.batch_size = 32
    c.total = "300 steps"
    c.data.name = "digits"
    c.data.crop = "resize"
    c.data.update(affine_degrees=10.0, affine_scale=0.1, affine_translate=0.1)
    c.optimizer.learning_rate = 1e-3
    c.log_every = "10 steps"
    c.eval_every = c.checkpoint_every = "100%"
    c.fewshot.name = ""
    c.report = False  # Of one run; the demo makes many, and a picture of all.
  return c
