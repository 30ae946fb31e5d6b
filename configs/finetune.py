"""Fine-tunes a Mixer as in the paper (section 3, appendix B).

  python train.py --config=configs/finetune.py --workdir=DIR \
    --config.init_from=PRETRAINING_WORKDIR \
    --config.data.name=cifar10 --config.total="10000 steps"

The weights come from a workdir of a pre-training run, or from one checkpoint
in it; the head starts at zero, with the new data set's classes. The paper
takes 20000 steps for ImageNet, 10000 for CIFAR-10 and CIFAR-100, 500 for Pets
and Flowers, and the best of the learning rates .003, .01, .03 and .06 on a part
of the training split that is held out for the choice:

    --config.data.train_split="train[:98%]"
    --config.data.eval_split="train[98%:]"

Hardware: one GPU or a few TPU chips; batch 512 is divided among all devices.
Expected: B/16 pre-trained on ImageNet-21k reaches 80.64 % on ImageNet (the
paper's number) and 96.82 % on CIFAR-10 (the authors' published run).
"""

from mixer import config as config_lib


def get_config() -> config_lib.Config:
  """The recipe."""
  c = config_lib.default()
  c.batch_size = 512
  c.total = "10000 steps"
  c.image_size = 224

  c.model.variant = "B/16"
  c.model.dtype = "bfloat16"

  c.data.name = "cifar10"
  c.data.train_split = "train"
  c.data.eval_split = "test"
  c.data.crop = "inception"
  c.data.crop_area_min = 0.05
  c.data.flip = True
  c.data.eval_short_side = 256

  c.loss.name = "softmax"

  c.optimizer.name = "sgd"
  c.optimizer.learning_rate = 0.01
  c.optimizer.momentum = 0.9
  c.optimizer.clip_norm = 1.0
  c.schedule.warmup = "500 steps"
  c.schedule.decay = "cosine"

  c.log_every = "50 steps"
  c.eval_every = "1000 steps"
  c.checkpoint_every = "1000 steps"
  return c
