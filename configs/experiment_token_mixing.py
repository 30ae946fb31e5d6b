"""The paper's other ways to mix tokens (appendix A.1), on the shipped glyphs.

  python train.py --config=configs/experiment_token_mixing.py --workdir=DIR1
  python train.py --config=configs/experiment_token_mixing.py:untied \
    --workdir=DIR2

The demo's pre-training, shortened to 300 steps, with token mixing as behind the
colon:

    shared     one MLP for all channels: the paper's own, to compare with
    untied     an MLP for each of the 128 channels
    grouped    an MLP that sees 4 neighbouring channels at once
    projected  an MLP that sees 4 learned views of all channels at once
    pyramid    block 2 of 0 to 3 leaves 4 of the 16 tokens

Hardware: two CPU cores. Time and accuracy: docs/experiments.md.
Expected, from the paper on JFT-300M: untied MLPs don't help; groups gain less
than 1 to 2 % of 5-shot accuracy on ImageNet; views gain 3 to 4 % of its top-5
accuracy with S/32 and nothing with larger models; pyramids save time on
JFT-300M, but lose on ImageNet and ImageNet-21k. It doesn't say how many
channels made a group, nor where a pyramid's tokens became how many: those here
are ours.
"""

from configs import demo_pretrain
from mixer import config as config_lib
from mixer.errors import UserError

KINDS = ("shared", "untied", "grouped", "projected", "pyramid")


def mixed(
  c: config_lib.Config, kind: str, pyramid: dict[int, int]
) -> config_lib.Config:
  """Sets the token mixing that stands behind the colon.

  Args:
    c: the config to change.
    kind: of `KINDS`.
    pyramid: for that kind, the tokens that blocks leave.

  Raises:
    UserError: there is no such kind.
  """
  if kind not in KINDS:
    raise UserError(
      f"there is no token mixing {kind!r}; there are "
      + ", ".join(KINDS)
      + ", as in --config=configs/experiment_token_mixing.py:untied."
    )
  if kind == "untied":
    c.model.token_mixing = "untied"
  elif kind in ("grouped", "projected"):
    c.model.token_groups = 4
    c.model.group_projection = kind == "projected"
  elif kind == "pyramid":
    c.model.pyramid_blocks = tuple(pyramid)
    c.model.pyramid_tokens = tuple(pyramid.values())
  return c


def get_config(kind: str = "shared") -> config_lib.Config:
  """The recipe.

  Args:
    kind: what stands behind the colon, of `KINDS`.

  Raises:
    UserError: there is no such kind.
  """
  c = demo_pretrain.get_config()
  c.total = "300 steps"
  c.eval_every = "50 steps"
  c.checkpoint_every = "300 steps"
  return mixed(c, kind, {2: 4})
