"""The paper's other ways to mix tokens (appendix A.1), with S/32.

  python train.py --config=configs/experiment_token_mixing_s32.py --workdir=DIR1
  python train.py --config=configs/experiment_token_mixing_s32.py:projected \
    --workdir=DIR2

As configs/mixer_s32_i21k.py, with hardware as told there, and token mixing as
behind the colon. FLOP of 300 epochs, and parameters with 19,167 classes:

    shared     2.3e19   28.4 M  the paper's own, to compare with
    untied     2.3e19  132.2 M  an MLP for each of the 512 channels
    grouped    2.3e19   29.0 M  an MLP that sees 4 neighbouring channels
    projected  2.6e19   31.1 M  an MLP that sees 4 learned views of all channels
    pyramid    1.3e19   28.3 M  block 2 leaves 25 of 49 tokens, block 5 13

FLOP are no time: untied MLPs move their weights through memory for every batch.
The paper's measure is 5-shot regression on ImageNet, which is evaluated along
the way: prepare imagenet2012 as well (docs/data.md). Expected: what the paper
found on JFT-300M with models of various sizes, which it gives for S/32 in one
case: `projected` gains 3 to 4 % of top-5 accuracy on ImageNet. Otherwise untied
MLPs don't help, groups gain less than 1 to 2 %, and pyramids lose too much on
ImageNet-21k. The paper names no sizes of groups and pyramids: those here are
ours. Not run here.
"""

from configs import experiment_token_mixing, mixer_s32_i21k
from mixer import config as config_lib


def get_config(kind: str = "shared") -> config_lib.Config:
  """The recipe.

  Args:
    kind: what stands behind the colon, of `experiment_token_mixing.KINDS`.

  Raises:
    UserError: there is no such kind.
  """
  c = mixer_s32_i21k.get_config()
  c.fewshot.name = "imagenet2012"
  c.fewshot.train_split = "train"
  c.fewshot.eval_split = "validation"
  c.fewshot.shots = (5,)
  return experiment_token_mixing.mixed(c, kind, {2: 25, 5: 13})
