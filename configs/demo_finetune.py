"""The demo's fine-tuning: handwritten digits, from the glyphs' weights.

  python train.py --config=configs/demo_finetune.py --workdir=runs/digits \
    --config.init_from=runs/glyphs

Without `init_from` it trains from scratch, for comparison. `make demo` runs
both, with 5, 10, 25 and all labels a class (`data.examples_per_class`), with
a learning rate and a length chosen on `train[80%:]`, never on test.
"""

from configs import demo_pretrain
from mixer import config as config_lib


def get_config() -> config_lib.Config:
  """The recipe; model and image size are those of the pre-training."""
  c = demo_pretrain.get_config()
  c.batch_size = 32
  c.total = "300 steps"

  c.data.name = "digits"
  c.data.crop = "resize"
  c.data.affine_degrees = 10.0
  c.data.affine_scale = 0.1
  c.data.affine_translate = 0.1

  c.optimizer.learning_rate = 1e-3

  c.log_every = "10 steps"
  c.eval_every = "100%"
  c.checkpoint_every = "100%"
  c.fewshot.name = ""
  c.report = False  # Of one run; the demo makes many, and a picture of all.
  return c
