"""A set of images of one's own, from random weights, at any size.

  python train.py --config=configs/scratch.py:dataset=DIR --workdir=runs/birds

Behind the colon may be, in any order:

  dataset  a folder of images (DIR/CLASS/*) or a table of labels (.csv), which
           is prepared on first use; or a prepared set
  size     of the images, in pixels (224), or height x width as in size=224x320
  model    a variant, as in model=B/16; without it S with patches that fit the
           size, 16 pixels at 224 px; up to 64 px the recipe is then that of
           configs/cifar10.py

If left and right differ in yours (letters, digits): --config.data.flip=False.
Hardware: one GPU. Time: 300 epochs of 50,000 images take 3e17 FLOP at 224 px.
Expected: less than fine-tuning reaches (configs/finetune.py), by far for some
hundred or thousand images.
"""

import configs
from configs import cifar10
from mixer import config as config_lib

_RECIPE = "configs/scratch.py"


def get_config(words: str = "") -> config_lib.Config:
  given = configs.parse(words, _RECIPE, "dataset=birds,size=96")
  c = config_lib.default()
  c.batch_size = 128
  c.total = "300 epochs"
  configs.set_size(c, given.get("size", "224"))
  side = max(config_lib.image_size(c))
  if side <= 64 and "model" not in given:
    return cifar10.get_config(words)

  c.model.variant = given.get("model") or f"S/{configs.patch(c, _RECIPE)}"
  c.model.stochastic_depth = 0.1

  c.data.name = given.get("dataset", "cifar10")
  c.data.eval_split = "auto"
  c.data.crop_area_min = 0.1
  c.data.randaugment_layers = 2
  c.data.randaugment_magnitude = 10
  c.data.eval_short_side = round(side * 256 / 224)

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
