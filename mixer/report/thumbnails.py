"""Small images as text, to stand inside an HTML page."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mixer import preprocess
from mixer.datasets import split as split_lib

# Up to so many pixels a side every pixel counts, and costs little.
_EXACT = 64
# The longer side of the others, and the quality of their JPEGs.
_LARGEST, _QUALITY = 192, 85


def of_image(image: np.ndarray) -> str:
  """A data URI of an image.

  Args:
    image: uint8 `[H, W, 3]`.

  Returns:
    A PNG of every pixel if no side has more than 64; else a JPEG, made smaller
    where the longer side has more than 192.
  """
  height, width = image.shape[:2]
  if max(height, width) <= _EXACT:
    return png(image)
  pil = Image.fromarray(image)
  pil.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
  return _uri(pil, "jpeg", quality=_QUALITY)


def png(image: np.ndarray) -> str:
  """A data URI of a PNG of exactly these pixels, uint8 `[H, W, 3]`."""
  return _uri(Image.fromarray(image), "png", optimize=True)


def _uri(image: Image.Image, kind: str, **options: int) -> str:
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  text = base64.b64encode(buffer.getvalue()).decode("ascii")
  return f"data:image/{kind};base64,{text}"


def read(
  split: split_lib.Split,
  places: Sequence[int],
  size: tuple[int, int],
  short_side: int,
) -> dict[int, str]:
  """Thumbnails of some examples, as the model sees them.

  Args:
    split: that they are of.
    places: of the examples in it.
    size: (height, width) of the crop, in pixels.
    short_side: to which the shorter side is resized before, see
      `preprocess.evaluation`.

  Returns:
    A data URI for each place.

  Raises:
    UserError: an example can't be read.
  """
  found = {}
  for place, record in zip(places, split.read(places), strict=True):
    try:
      image = preprocess.evaluation(record["image"], size, short_side)
    except ValueError as e:
      raise split.decode_error(record["index"], e) from e
    found[place] = of_image(image)
  return found
