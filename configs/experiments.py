"""The paper's other experiments: shuffled images, other ways to mix tokens.

  python train.py --config=configs/experiments.py:patches --workdir=DIR1
  python train.py --config=configs/experiments.py:untied,paper --workdir=DIR2

Behind the colon: `none`, `patches` or `pixels` for images with nothing, their
patches or all pixels shuffled (section 3.4); `shared`, `untied`, `grouped`,
`projected` or `pyramid` for token mixing (appendix A.1; docs/experiments.md
explains them); and `,paper` for the paper's size.

Without `paper` it is the demo's pre-training (configs/demo.py) on two CPU
cores; with it B/16 (images) or S/32 (token mixing) on ImageNet-21k, where the
paper took JFT-300M: hardware and time as in configs/mixer_i21k.py, not run
here. FLOP of 300 epochs and parameters with 19,167 classes: shared 2.3e19 and
28.4 M, untied 2.3e19 and 132.2 M, grouped 2.3e19 and 29.0 M, projected 2.6e19
and 31.1 M, pyramid 1.3e19 and 28.3 M. Sizes of groups and pyramids are ours.
Expected: docs/experiments.md.
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
