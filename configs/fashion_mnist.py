"""A small Mixer on Fashion-MNIST, 70,000 real images of 28 x 28 pixels.

  python -m mixer prepare fashion_mnist --source=DIR_WITH_THE_FOUR_FILES
  python train.py --config=configs/fashion_mnist.py --workdir=runs/fashion

From the same model, pre-trained on rendered characters, which are shipped:

  python train.py --config=configs/fashion_mnist.py:glyphs --workdir=runs/glyphs
  python train.py --config=configs/fashion_mnist.py --workdir=runs/tuned \
    --config.init_from=runs/glyphs

Hardware: two CPU cores; `fashion_mnist.py:gpu` is a larger model, trained
longer. Time and accuracy: docs/results.md.
"""

import configs
from mixer import config as config_lib


def get_config(which: str = "") -> config_lib.Config:
  if which:
    configs.choose(which, "configs/fashion_mnist.py", ("glyphs", "gpu"))
  c = config_lib.default()
  c.batch_size = 128
  c.total = "8 epochs"
  c.image_size = 28
  configs.small_model(c, "S/4", 6, 96, 96, 192)

  c.data.name = "fashion_mnist"
  c.data.eval_split = "test"
  c.data.crop = "resize"
  c.data.eval_short_side = 28

  c.loss.label_smoothing = 0.1
  c.optimizer.learning_rate = 3e-3
  c.optimizer.weight_decay = 0.1
  c.schedule.warmup = "5%"
  c.schedule.decay = "cosine"

  c.log_every = "100 steps"
  c.eval_every = c.checkpoint_every = "2 epochs"

  if which == "glyphs":
    c.total = "4 epochs"
    c.data.name = "glyphs"
    c.data.flip = False
    c.data.update(affine_degrees=10.0, affine_scale=0.1, affine_translate=0.1)
  if which == "gpu":
    c.batch_size = 512
    c.total = "200 epochs"
    configs.small_model(c, "S/2", 8, 256, 256, 1024)
    c.model.dtype = "bfloat16"
    c.model.dropout = 0.1
    c.model.stochastic_depth = 0.1
    c.data.randaugment_layers = 1
    c.data.randaugment_magnitude = 5
    c.loss.mixup = 0.2
    c.optimizer.ema_decay = 0.999
    c.eval_every = c.checkpoint_every = "20 epochs"
  return c
