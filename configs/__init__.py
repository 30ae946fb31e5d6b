"""What recipes share. Each has `get_config(words)`, with words from FILE:WORDS.

Large recipes start from `mixer_b16_i21k`, all others from the defaults of
`mixer.config`.
"""

import os
import re
from collections.abc import Sequence

from mixer import config as config_lib
from mixer.errors import UserError

_MOST_TOKENS = 1024  # More make the token MLPs large and slow.


def choose(words: str, recipe: str, choices: Sequence[str]) -> None:
  """Refuses other words behind a recipe's colon than these."""
  if words not in choices:
    raise UserError(
      f"{config_lib.shown(words)} behind {recipe}: is none of "
      f"{', '.join(choices)}; as in --config={recipe}:{choices[-1]}."
    )


def parse(words: str, recipe: str, example: str) -> dict[str, str]:
  """Reads "model=B/16,dataset=birds,size=96" -> {"model": "B/16", ...}."""
  given = {}
  for word in filter(None, words.split(",")):
    match = re.fullmatch(
      r"(model|dataset|size)=((?<!size=).+|[1-9]\d{0,4}(?:x[1-9]\d{0,4})?)",
      word,
    )
    if not match:
      raise UserError(
        f"{config_lib.shown(word)} behind {recipe}: should be model=, dataset= "
        f"or size=PIXELS or HEIGHTxWIDTH, as in {recipe}:{example}."
      )
    given[match[1]] = match[2]
  path = os.path.abspath(os.path.expanduser(given.get("dataset", "")))
  if "dataset" in given and os.path.exists(path):  # Of images, or a table.
    given["dataset"] = f"folder:{path}"
  return given


def set_size(c: config_lib.Config, size: str) -> None:
  """Sets the size of images, "224" or "224x320"."""
  height, _, width = size.partition("x")
  c.image_size = int(height)
  c.image_width = int(width) if width not in ("", height) else 0


def patch(c: config_lib.Config, recipe: str) -> int:
  """The largest patch up to 16 pixels with at least 7 to each side."""
  height, width = config_lib.image_size(c)
  sizes = range(min(16, height // 7, width // 7), 0, -1)
  side = next((p for p in sizes if not height % p and not width % p), 1)
  if height * width > _MOST_TOKENS * side**2:
    raise UserError(
      f"size={height}x{width} behind {recipe}: no patch of up to 16 pixels "
      "divides it into a fit number of tokens; take multiples of 16 as in "
      "size=224x320, or name a model as in model=S/32."
    )
  return side


def small_model(
  c: config_lib.Config,
  variant: str,
  blocks: int,
  channels: int,
  tokens_mlp: int,
  channels_mlp: int,
) -> None:
  """Sets a model smaller than the paper's, in float32 for CPUs."""
  c.model.variant = variant
  c.model.num_blocks = blocks
  c.model.hidden_dim = channels
  c.model.tokens_mlp_dim = tokens_mlp
  c.model.channels_mlp_dim = channels_mlp
  c.model.dtype = "float32"
