"""A small Mixer on CIFAR-10, or other small photographs, from random weights.

  python -m mixer prepare cifar10 --source=cifar-10-binary.tar.gz
  python train.py --config=configs/cifar10.py --workdir=runs/cifar10

Behind the colon may be, in any order:

  model    small (0.31 M parameters, for CPUs) or nano (1.13 M, for a GPU)
  dataset  a prepared set, a folder of images or a table of labels, as behind
           configs/scratch.py
  size     of the images, in pixels (32), or height x width

Hardware: two CPU cores (small) or one GPU (nano). Time and accuracy: 25 epochs
of `small` took 21 to 30 minutes of two shared Zen 5 cores and reached 84.8 %
(docs/results.md). `nano` has not been run; the best published Mixer of its
shape has 90.83 %, after 300 epochs. If left and right differ in yours:
--config.data.flip=False. AdamW alone: --config.optimizer.name=adamw
--config.optimizer.args={} --config.optimizer.learning_rate=0.003.
"""

import configs
from mixer import config as config_lib

_RECIPE = "configs/cifar10.py"
_MODELS = ("small", "nano")


def get_config(words: str = "") -> config_lib.Config:
  given = configs.parse(words, _RECIPE, "model=nano,dataset=cifar100")
  model = given.get("model", "small")
  configs.choose(f"model={model}", _RECIPE, [f"model={m}" for m in _MODELS])
  c = config_lib.default()
  c.batch_size = 128
  c.total = "25 epochs"
  configs.set_size(c, given.get("size", "32"))
  side = max(config_lib.image_size(c))
  configs.small_model(c, f"S/{configs.patch(c, _RECIPE)}", 4, 128, 64, 256)

  c.data.name = given.get("dataset", "cifar10")
  c.data.eval_split = "auto"
  c.data.crop = "pad"
  c.data.eval_short_side = side  # Small images are seen whole.
  c.data.threads = 2

  c.loss.label_smoothing = 0.1
  c.optimizer.name = "muon"
  # Of blocks' kernels; the second is of all else, which AdamW takes.
  c.optimizer.learning_rate = 2e-2
  c.optimizer.args = {"adam_learning_rate": 5e-3}
  c.optimizer.weight_decay = 0.1
  c.schedule.warmup = "5%"
  c.schedule.decay = "linear"
  c.sweep.learning_rates = (0.01, 0.02, 0.04)
  c.sweep.train_split = "train[:90%]"
  c.sweep.eval_split = "train[90%:]"

  c.log_every = "100 steps"
  c.eval_every = c.checkpoint_every = "8%"

  if model == "nano":  # For a GPU, as the published figure's.
    c.total = "100 epochs"
    configs.small_model(c, c.model.variant, 8, 128, 64, 512)
    c.model.dtype = "bfloat16"
    c.model.stochastic_depth = 0.1
    c.data.randaugment_layers = 2
    c.data.randaugment_magnitude = 5
    c.data.randaugment_scaled = True
    c.data.threads = 16
    c.loss.cutmix = 1.0
  return c
