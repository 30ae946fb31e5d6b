"""A set of images of one's own, from random weights, at any size.

  python train.py --config=configs/scratch.py:dataset=DIR --workdir=runs/birds

Behind the colon may be, in any order:

  dataset  a folder of images (DIR/CLASS/*) or a table of labels (.csv), which
           is prepared on first use; or a prepared set
  size     of the images, in pixels (224), or height x width as in size=224x320
  model    a variant, as in model=B/16; without it a small one that fits the
           size: S with 16-pixel patches at 224 px, of half its widths and with
           4-pixel patches at 32 px (CIFAR and the like)

If left and right differ in yours (letters, digits): --config.data.flip=False.
Hardware: one GPU; a small set at a small size trains on CPUs too, with
--config.model.dtype=float32. Time: 300 epochs of 50,000 images take 3e16 FLOP
at 32 px, 3e17 at 224 px. Expected: less than fine-tuning reaches
(configs/finetune.py), by far for some hundred or thousand images.
"""

import configs
from mixer import config as config_lib
from mixer.errors import UserError

_MOST_TOKENS = 1024  # More make the token MLPs large and slow.


def get_config(words: str = "") -> config_lib.Config:
  example = "dataset=birds,size=96"
  given = configs.parse(words, "configs/scratch.py", example)
  c = config_lib.default()
  c.batch_size = 128
  c.total = "300 epochs"
  configs.set_size(c, given.get("size", "224"))
  height, width = config_lib.image_size(c)
  side = max(height, width)
  small = side <= 64

  c.model.variant = given.get("model") or f"S/{_patch(height, width)}"
  if small and "model" not in given:
    c.model.hidden_dim = 256
    c.model.tokens_mlp_dim = 128
    c.model.channels_mlp_dim = 1024
  c.model.stochastic_depth = 0.1

  c.data.name = given.get("dataset", "cifar10")
  c.data.eval_split = "auto"
  c.data.crop_area_min = 0.4 if small else 0.1
  c.data.randaugment_layers = 2
  c.data.randaugment_magnitude = 5 if small else 10
  # Small images are seen whole.
  c.data.eval_short_side = side if small else round(side * 256 / 224)

  c.loss.label_smoothing = 0.1
  c.loss.mixup = 0.2
  c.optimizer.learning_rate = 1e-3
  c.optimizer.weight_decay = 0.1
  c.schedule.warmup = "5%"
  c.schedule.decay = "cosine"
  c.sweep.learning_rates = (0.0003, 0.001, 0.003)
  c.sweep.train_split = "train[:90%]"
  c.sweep.eval_split = "train[90%:]"

  c.eval_every = c.checkpoint_every = "5%"
  return c


def _patch(height: int, width: int) -> int:
  """The largest patch up to 16 pixels with at least 7 to each side."""
  sizes = range(min(16, height // 7, width // 7), 0, -1)
  patch = next((p for p in sizes if not height % p and not width % p), 1)
  if height * width > _MOST_TOKENS * patch**2:
    raise UserError(
      f"size={height}x{width} behind configs/scratch.py: no patch of up to 16 "
      "pixels divides it into a fit number of tokens; take multiples of 16 as "
      "in size=224x320, or name a model as in model=S/32."
    )
  return patch
