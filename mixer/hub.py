"""Weights on the Hugging Face hub, fetched by huggingface_hub into its cache.

HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and tokens are what that library makes of
them.
"""

import pathlib
import re

from mixer.errors import UserError, first_line

FILES = ("config.json", "model.safetensors")
_NAME = re.compile(r"(?:hf-hub:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def is_name(name: str) -> bool:
  """Whether it is `timm/NAME` or `hf-hub:OWNER/NAME`, with any @REVISION."""
  own = name.startswith(("timm/", "hf-hub:"))
  return own and _NAME.fullmatch(name) is not None


def fetch(name: str) -> pathlib.Path:
  """The folder with a repository's `FILES`; downloads what isn't cached.

  Raises:
    UserError: the library is missing, or the hub gives no such files.
  """
  match = _NAME.fullmatch(name)
  assert match
  repository, revision = match.groups()
  try:
    import huggingface_hub
  except ImportError as e:
    raise UserError(
      f"{name} is on the Hugging Face hub, which takes huggingface_hub: make "
      "setup-hub, or pip install huggingface_hub safetensors."
    ) from e
  paths = []
  try:
    for file in FILES:
      paths.append(
        huggingface_hub.hf_hub_download(repository, file, revision=revision)
      )
  # What the hub and the network refuse is an OSError, a bad name a ValueError.
  except (OSError, ValueError) as e:
    raise UserError(
      f"{name} can't be fetched from the Hugging Face hub: {first_line(e)}. "
      "`hf auth login` helps where it asks for a token. Without a network, "
      f"fetch {' and '.join(FILES)} of https://huggingface.co/{repository} "
      "elsewhere into a folder, and name that folder."
    ) from e
  return pathlib.Path(paths[0]).parent
