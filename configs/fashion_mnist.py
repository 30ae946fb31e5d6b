"""A small Mixer on Fashion-MNIST, 70,000 real images of 28 x 28 pixels.

  python -m mixer prepare fashion_mnist --source=DIR_WITH_THE_FOUR_FILES
  python train.py --config=configs/fashion_mnist.py --workdir=runs/fashion

From glyphs, which are shipped: the same model is pre-trained on rendered
characters first, and its weights are the start.

  python train.py --config=configs/fashion_mnist.py:glyphs \
    --workdir=runs/fashion_glyphs
  python train.py --config=configs/fashion_mnist.py \
    --config.init_from=runs/fashion_glyphs --workdir=runs/fashion_tuned

Hardware: two CPU cores. `fashion_mnist.py:gpu` is a larger model for longer:
see docs/results.md, which has accuracies and minutes.
"""

from mixer import config as config_lib


def get_config(which: str = "") -> config_lib.Config:
  if which:
    config_lib.choose(which, "configs/fashion_mnist.py", ("glyphs", "gpu"))
  c = config_lib.default()
  c.batch_size = 128
  c.total = "8 epochs"
  c.image_size = 28

  c.model.variant = "S/4"
  c.model.num_blocks = 6
  c.model.hidden_dim = 96
  c.model.tokens_mlp_dim = 96
  c.model.channels_mlp_dim = 192
  c.model.dtype = "float32"

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
  c.eval_every = "2 epochs"
  c.checkpoint_every = "2 epochs"

  if which == "glyphs":
    c.total = "4 epochs"
    c.data.name = "glyphs"
    c.data.flip = False
    c.data.affine_degrees = 10.0
    c.data.affine_scale = 0.1
    c.data.affine_translate = 0.1
  if which == "gpu":
    c.batch_size = 512
    c.total = "200 epochs"
    c.model.variant = "S/2"
    c.model.num_blocks = 8
    c.model.hidden_dim = 256
    c.model.tokens_mlp_dim = 256
    c.model.channels_mlp_dim = 1024
    c.model.dtype = "bfloat16"
    c.model.dropout = 0.1
    c.model.stochastic_depth = 0.1
    c.data.randaugment_layers = 1
    c.data.randaugment_magnitude = 5
    c.loss.mixup = 0.2
    c.optimizer.ema_decay = 0.999
    c.eval_every = "20 epochs"
    c.checkpoint_every = "20 epochs"
  return c
