"""What a report shows of a model's weights: figures 5 to 7 of the paper.

Some hidden units of the token-mixing MLPs, and some of the stem's kernels,
a weight a pixel. `mixer.insight.kernels` orders and colours them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mixer import config as config_lib
from mixer import sharding
from mixer.errors import UserError
from mixer.insight import kernels
from mixer.report import thumbnails

# Of each kind so many at most, side by side, and pixels between them.
_MOST, _COLUMNS = 64, 8


def gather(params: Any, mesh: Mesh) -> dict[str, Any]:
  """Brings to every host the few weights that are shown.

  All hosts have to call this.

  Args:
    params: nested dict of a Mixer's weights, as they lie on the mesh.
    mesh: of all devices.

  Returns:
    The same, of numpy arrays, without all that isn't shown: no more than the
    kernels of the stem and of three token-mixing MLPs.
  """
  shown: dict[str, Any] = {"stem": {"kernel": params["stem"]["kernel"]}}
  blocks = _numbers(params)
  # The first, the middle and the last one.
  for i in {0, len(blocks) // 2, len(blocks) - 1} if blocks else ():
    name = f"MixerBlock_{blocks[i]}"
    kernel = params[name]["token_mixing"]["Dense_0"]["kernel"]
    # An MLP for each channel can be larger than a host.
    if kernel.ndim == 2:
      shown[name] = {"token_mixing": {"Dense_0": {"kernel": kernel}}}
  everywhere = sharding.replicated(mesh)
  return jax.device_get(jax.jit(lambda x: x, out_shardings=everywhere)(shown))


def _numbers(params: Mapping[str, Any]) -> list[int]:
  """Of the blocks that are there, in order."""
  prefix = "MixerBlock_"
  names = (name for name in params if name.startswith(prefix))
  return sorted(int(name.removeprefix(prefix)) for name in names)


def figures(
  params: Mapping[str, Any], config: config_lib.Config
) -> tuple[dict[str, Any], list[str]]:
  """Draws them.

  Args:
    params: as of `gather`.
    config: of the run that they are of.

  Returns:
    What the page takes for `weights`; and a sentence for each reason why
    something isn't drawn.
  """
  found: dict[str, Any] = {"stem": None, "tokens": []}
  notes = []
  order = ""
  if config.data.permute:
    order = (
      f" This run permutes the {config.data.permute} of its images first, so "
      "neighbours here are no neighbours in an image."
    )
  patch = params["stem"]["kernel"].shape[0]
  if np.isfinite(params["stem"]["kernel"]).all():
    images = kernels.stem_kernels(params)
    which = _spread(len(images), 1)
    found["stem"] = _figure(
      "Stem",
      f"{_some(len(which), len(images), 'kernels')} of {patch} x {patch} "
      "pixels, low frequencies first; each scaled by its largest weight, "
      f"mid-grey is 0.{order}",
      images[which],
    )
  else:
    notes.append("The stem's kernels are not drawn: they are not finite.")
  if config.model.token_mixing != "shared":
    notes.append(
      "No token-mixing weights are drawn: each channel has an MLP of its own "
      f"(model.token_mixing={config.model.token_mixing})."
    )
    return found, notes
  height, width = config_lib.image_size(config)
  for block in _numbers(params):
    mlp = params[f"MixerBlock_{block}"]["token_mixing"]["Dense_0"]
    try:
      if not np.isfinite(mlp["kernel"]).all():
        raise UserError(f"units of block {block} are not finite.")
      grid = height // patch, width // patch
      places = kernels.token_places(grid)
      units = kernels.token_units(params, block, grid, places)
    except UserError as e:
      notes.append(f"Token-mixing weights that are not drawn: {e}")
      continue
    which = _spread(len(units), 2)
    found["tokens"].append(
      _figure(
        f"Token mixing, block {block}",
        f"{_some(len(which), len(units), 'hidden units')} of block {block}, "
        f"counted from 0: how much each takes in of every token, laid out as "
        f"the {grid[0]} x {grid[1]} tokens lie in the image; "
        "red above 0, blue below, each scaled by its largest weight. Low "
        f"frequencies first, each beside its closest inverse.{order}",
        units[which],
      )
    )
  return found, notes


def _spread(count: int, together: int) -> np.ndarray:
  """Places, at most 64, spread evenly; so many neighbours stay together."""
  groups = -(-count // together)
  chosen = np.linspace(0, groups - 1, min(groups, _MOST // together))
  first = np.round(chosen).astype(int) * together
  places = (first[:, None] + np.arange(together)).ravel()
  return places[places < count]


def _some(shown: int, count: int, what: str) -> str:
  if shown == count:
    return f"All {count:,} {what}"
  return f"{shown} of {count:,} {what}, spread evenly,"


def _figure(title: str, caption: str, images: np.ndarray) -> dict[str, Any]:
  columns = min(_COLUMNS, len(images))
  picture = kernels.montage(images, columns)
  height, width = picture.shape[:2]
  return {
    "title": title,
    "caption": caption,
    "image": thumbnails.png(picture),
    "width": width,
    "height": height,
    "alt": f"{len(images)} small pictures of weights in rows of {columns}",
  }
