"""The paper's other experiments: shuffled images, other ways to mix tokens.

  python train.py --config=configs/experiments.py:patches --workdir=DIR1
  python train.py --config=configs/experiments.py:untied,paper --workdir=DIR2

Behind the colon is what is compared, and `paper` for the paper's size:

  none, patches, pixels   images as they are; with their patches shuffled, and
                          the pixels inside each patch; with all pixels shuffled
                          (section 3.4)
  shared, untied          one token MLP for all channels, or one for each
  grouped, projected      a token MLP sees 4 neighbouring channels, or 4 learned
                          views of all channels, at once
  pyramid                 token mixing that leaves fewer tokens (appendix A.1)

Without `paper` it is the demo's pre-training (configs/demo.py) on two CPU
cores, 900 steps for images, 300 for token mixing. With `paper` it is B/16
(images) or S/32 (token mixing) on ImageNet-21k, where the paper took JFT-300M,
and its measure is 5-shot regression on ImageNet (imagenet2012, prepared as
well): hardware and time as in configs/mixer_i21k.py; not run here. FLOP of 300
epochs and parameters with 19,167 classes:

    shared     2.3e19   28.4 M  the paper's own
    untied     2.3e19  132.2 M  moves many more weights through memory
    grouped    2.3e19   29.0 M
    projected  2.6e19   31.1 M
    pyramid    1.3e19   28.3 M  block 2 leaves 25 of 49 tokens, block 5 13

Expected: docs/experiments.md. The paper does not give the sizes of its groups
and pyramids: those here are ours.
"""

import configs
from configs import demo, mixer_b16_i21k, mixer_i21k
from mixer import config as config_lib

PERMUTATIONS = ("none", "patches", "pixels")
MIXINGS = ("shared", "untied", "grouped", "projected", "pyramid")


def get_config(words: str = "none") -> config_lib.Config:
  kinds = PERMUTATIONS + MIXINGS
  choices = (*kinds, *(f"{kind},paper" for kind in kinds))
  configs.choose(words, "configs/experiments.py", choices)
  kind, _, paper = words.partition(",")
  shuffles = kind in PERMUTATIONS
  if paper:
    c = mixer_i21k.get_config("S/32")
    if shuffles:
      c = mixer_b16_i21k.get_config()
    c.fewshot.name = "imagenet2012"
    c.fewshot.eval_split = "validation"
    c.fewshot.shots = (5,)
  else:
    c = demo.get_config()
    c.total = "900 steps" if shuffles else "300 steps"
    c.eval_every = "150 steps" if shuffles else "50 steps"

  if kind in ("patches", "pixels"):
    c.data.permute = kind
  elif kind == "untied":
    c.model.token_mixing = "untied"
  elif kind in ("grouped", "projected"):
    c.model.token_groups = 4
    c.model.group_projection = kind == "projected"
  elif kind == "pyramid":
    c.model.pyramid_blocks = (2, 5) if paper else (2,)
    c.model.pyramid_tokens = (25, 13) if paper else (4,)
  return c
