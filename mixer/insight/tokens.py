"""Where tokens lie in the image, and how far apart they are."""

import math

import numpy as np

from mixer import model as model_lib


def grid_of(
  module: model_lib.MlpMixer, image_size: tuple[int, int]
) -> tuple[int, int]:
  """(rows, columns) of tokens of an image of that many pixels."""
  height, width = image_size
  return height // module.patch_size, width // module.patch_size


def places(
  module: model_lib.MlpMixer, image_size: tuple[int, int]
) -> np.ndarray | None:
  """Which patch of the image each token comes from.

  Returns:
    int `[S]`, patches counted in raster order; the identity, but for a model
    that permutes patches (section 3.4 of the paper). None for one that
    permutes all pixels, whose tokens come from everywhere.
  """
  count = math.prod(grid_of(module, image_size))
  if module.permute == "pixels":
    return None
  if module.permute == "patches":
    return model_lib.random_order(count, module.permute_seed)
  return np.arange(count)


def distances(grid: tuple[int, int]) -> np.ndarray:
  """Between the centres of patches, float64 `[S, S]`, in patches."""
  rows, columns = np.divmod(np.arange(math.prod(grid)), grid[1])
  return np.hypot(rows[:, None] - rows, columns[:, None] - columns)


def on_image(values: np.ndarray, places: np.ndarray) -> np.ndarray:
  """Puts numbers that belong to tokens where their patches lie.

  Args:
    values: `[..., S]`.
    places: of `places`.
  """
  out = np.empty_like(values)
  out[..., places] = values
  return out
