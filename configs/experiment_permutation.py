"""The paper's permutation study (section 3.4), on the shipped glyphs.

  python train.py --config=configs/experiment_permutation.py --workdir=DIR1
  python train.py --config=configs/experiment_permutation.py:patches \
    --workdir=DIR2
  python train.py --config=configs/experiment_permutation.py:pixels \
    --workdir=DIR3

The demo's pre-training (configs/demo_pretrain.py) on images as they are, on
images whose 4 x 4 patches are shuffled, and the 16 pixels inside each, or on
images whose 256 pixels are. The permutation is the same for all images, in
training, evaluation and few-shot; --config.data.permute_seed makes another.

Hardware: two CPU cores. Time and accuracy: docs/experiments.md.
Expected: the first two differ by chance alone; shuffling all pixels costs 8 of
88 points of 5-shot accuracy on the digits. The paper, with Mixer-B/16 on
JFT-300M, found the former as well, and a loss of about 45 % by the latter.
"""

from configs import demo_pretrain
from mixer import config as config_lib
from mixer.errors import UserError

_KINDS = {"none": "", "patches": "patches", "pixels": "pixels"}


def permuted(c: config_lib.Config, kind: str) -> config_lib.Config:
  """Sets the permutation that stands behind the colon.

  Raises:
    UserError: there is no such permutation.
  """
  if kind not in _KINDS:
    raise UserError(
      f"there is no permutation {kind!r}; there are "
      + ", ".join(_KINDS)
      + ", as in --config=configs/experiment_permutation.py:patches."
    )
  c.data.permute = _KINDS[kind]
  return c


def get_config(kind: str = "none") -> config_lib.Config:
  """The recipe.

  Args:
    kind: what stands behind the colon: none, patches or pixels.

  Raises:
    UserError: there is no such permutation.
  """
  return permuted(demo_pretrain.get_config(), kind)
